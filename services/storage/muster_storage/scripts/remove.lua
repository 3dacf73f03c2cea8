-- Removes ended tasks with all that hangs on them. ARGV per task: tenant id skill label_count label...
-- Answer: how many were there.
local removed = 0
local i, n = 1, #ARGV
while i <= n do
  local tenant, id, skill, labels = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local standing = call('GET', standing_key(tenant, id))
  local extras, state, agent = string.match(standing or '', '^(.)(%d):%d+:(.-)\n')
  local ended = state and tonumber(state) >= 4
  if ended then
    local index = P .. tenant .. ':i:'
    take_from(index .. 'all', id)
    take_from(index .. 's:' .. state, id)
    take_from(index .. 'k:' .. skill, id)
    if agent ~= '' then
      take_from(index .. 'a:' .. agent, id)
    end
    for l = i + 4, i + 3 + labels do
      take_from(index .. 'l:' .. ARGV[l], id)
    end
    local blob = extras == '1' and call('HGET', extras_key(tenant, id), 'ob')
    if blob then
      release_blob(tenant, blob, 'o:' .. id)
    end
    local logs = P .. tenant .. ':l:' .. id
    for _, field in ipairs(call('HKEYS', logs)) do
      local attempt = string.match(field, '^(%d+):b$')
      if attempt then
        release_blob(tenant, call('HGET', logs, field), 'l:' .. id .. ':' .. attempt)
      end
    end
    local kept = { spec_key(tenant, id), standing_key(tenant, id), outcome_key(tenant, id) }
    call('DEL', extras_key(tenant, id), logs, unpack(kept))
    -- A repeated request must not make anew what has run.
    local request = call('GET', P .. tenant .. ':rp:' .. string.sub(id, 1, 22))
    if request then
      call('HSET', P .. tenant .. ':r:' .. request, 'gone', '1')
    end
    removed = removed + 1
  end
  if ended or not standing then
    call('ZREM', P .. 'ended', tenant .. ':' .. id)
  end
  i = i + 4 + labels
end
write_indexes()
return removed
