-- Fixes the first time of a request. ARGV: tenant key body_hash now_ms.
-- Answer: {1 = first | 0 = seen before | 2 = seen with another body, first_ms}.
local key = P .. ARGV[1] .. ':r:' .. ARGV[2]
local row = call('HMGET', key, 'h', 'f')
if row[1] then
  return { row[1] == ARGV[3] and 0 or 2, row[2] }
end
call('HSET', key, 'h', ARGV[3], 'f', ARGV[4])
call('ZADD', P .. 'requests', cluster_clock(), ARGV[1] .. ':' .. ARGV[2])
return { 1, ARGV[4] }
