-- Removes ended tasks with all that hangs on them. ARGV per task: tenant id skill label_count label...
-- Answer: how many were there.
local removed = 0
local i, n = 1, #ARGV
while i <= n do
  local tenant, id, skill, labels = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local key = task_key(tenant, id)
  local row = call('HMGET', key, 's', 'g', 'ob')
  if row[1] and tonumber(row[1]) >= 4 then
    local index = P .. tenant .. ':i:'
    move(index .. 'all', id, false)
    move(index .. 's:' .. row[1], id, false)
    move(index .. 'k:' .. skill, id, false)
    if row[2] ~= '' then
      move(index .. 'a:' .. row[2], id, false)
    end
    for l = i + 4, i + 3 + labels do
      move(index .. 'l:' .. ARGV[l], id, false)
    end
    if row[3] and row[3] ~= '' then
      release_blob(tenant, row[3], 'o:' .. id)
    end
    local logs = P .. tenant .. ':l:' .. id
    for _, field in ipairs(call('HKEYS', logs)) do
      local attempt = string.match(field, '^(%d+):b$')
      if attempt then
        release_blob(tenant, call('HGET', logs, field), 'l:' .. id .. ':' .. attempt)
      end
    end
    call('DEL', key, logs)
    -- A repeated request must not make anew what has run.
    local request = call('GET', P .. tenant .. ':rp:' .. string.sub(id, 1, 22))
    if request then
      call('HSET', P .. tenant .. ':r:' .. request, 'gone', '1')
    end
    removed = removed + 1
  end
  if not row[1] or tonumber(row[1]) >= 4 then
    call('ZREM', P .. 'ended', tenant .. ':' .. id)
  end
  i = i + 4 + labels
end
write_moves()
return removed
