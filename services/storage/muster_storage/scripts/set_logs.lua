-- Points attempts at the blobs with their logs. ARGV per log: tenant, task id, attempt, sha256, record.
-- Logs of tasks that are gone are left out. Answer: how many were taken.
local taken = 0
for i = 1, #ARGV, 5 do
  local tenant, id, attempt, sha = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if call('EXISTS', standing_key(tenant, id)) == 1 then
    local logs = P .. tenant .. ':l:' .. id
    local before = call('HGET', logs, attempt .. ':b')
    call('HSET', logs, attempt, ARGV[i + 4], attempt .. ':b', sha)
    if before ~= sha then
      local holder = 'l:' .. id .. ':' .. attempt
      if before then
        release_blob(tenant, before, holder)
      end
      hold_blob(tenant, sha, holder)
    end
    taken = taken + 1
  end
end
return taken
