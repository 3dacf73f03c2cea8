-- Fixes the first time of a request. ARGV: tenant key body_hash now_ms id_prefix (of now_ms).
-- Answer: {1 = first | 0 = seen before | 2 = seen with another body | 3 = seen before, and tasks of
-- it have been removed since, first_ms}.
local key = P .. ARGV[1] .. ':r:' .. ARGV[2]
local row = call('HMGET', key, 'h', 'f', 'gone')
if row[1] then
  return { row[1] ~= ARGV[3] and 2 or row[3] and 3 or 0, row[2] }
end
call('HSET', key, 'h', ARGV[3], 'f', ARGV[4])
-- By which the removal of a task finds its request.
call('SET', P .. ARGV[1] .. ':rp:' .. ARGV[5], ARGV[2])
call('ZADD', P .. 'requests', cluster_clock(), ARGV[1] .. ':' .. ARGV[2])
return { 1, ARGV[4] }
