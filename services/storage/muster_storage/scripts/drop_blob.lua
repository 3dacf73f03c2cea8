-- Gives up a blob on request. ARGV: tenant, sha256.
-- Answer: 0 = unknown, 1 = still referred to (only unpinned), 2 = its file is to be deleted now.
local tenant, sha = ARGV[1], ARGV[2]
local row = P .. tenant .. ':b:' .. sha
if call('EXISTS', row) == 0 then
  return 0
end
if call('EXISTS', P .. tenant .. ':br:' .. sha) == 1 then
  call('HSET', row, 'pin', '0')
  return 1
end
call('DEL', row)
call('ZREM', P .. 'blobs:idle', tenant .. '/' .. sha)
call('ZADD', P .. 'blobs:dying', cluster_clock(), tenant .. '/' .. sha)
return 2
