-- ARGV: id, record, most keys. Answer: 1 = created, 0 = the id is taken, 2 = too many keys.
local keys = P .. 'apikeys'
if call('HEXISTS', keys, ARGV[1]) == 1 then
  return 0
end
if call('HLEN', keys) >= tonumber(ARGV[3]) then
  return 2
end
call('HSET', keys, ARGV[1], ARGV[2])
return 1
