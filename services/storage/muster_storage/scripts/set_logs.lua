-- Points attempts at the blobs with their logs. ARGV per log: tenant, task id, attempt, sha256, record,
-- rank. Logs of tasks that are gone are left out, and those of a lower rank than what is there (a
-- monitor that the agent has left). Answer: how many were taken.
local taken = 0
for i = 1, #ARGV, 6 do
  local tenant, id, attempt, sha = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local logs = P .. tenant .. ':l:' .. id
  local rank = tonumber(ARGV[i + 5])
  if call('EXISTS', standing_key(tenant, id)) == 1
    and rank >= tonumber(call('HGET', logs, attempt .. ':r') or 0) then
    local before = call('HGET', logs, attempt .. ':b')
    call('HSET', logs, attempt, ARGV[i + 4], attempt .. ':b', sha, attempt .. ':r', rank)
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
