-- Forgets requests none of whose tasks is left; the others are looked at again later.
-- ARGV: score of the next look, then per request tenant key first_ms id_prefix.
-- Answer: how many were forgotten.
local forgotten = 0
for i = 2, #ARGV, 4 do
  local tenant, name, prefix = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  local key = P .. tenant .. ':r:' .. name
  local member = tenant .. ':' .. name
  local first = call('HGET', key, 'f')
  if not first then
    call('ZREM', P .. 'requests', member)
  elseif first == ARGV[i + 2] then
    local left = call('ZRANGEBYLEX', P .. tenant .. ':i:all', '[' .. prefix, '(' .. prefix .. '\255', 'LIMIT', 0, 1)
    if #left > 0 then
      call('ZADD', P .. 'requests', ARGV[1], member)
    else
      call('DEL', key, P .. tenant .. ':rp:' .. prefix)
      call('ZREM', P .. 'requests', member)
      forgotten = forgotten + 1
    end
  end
end
return forgotten
