-- A blob is about to stand under its name. ARGV: tenant, sha256, bytes, 1 = pinned.
-- Answer: 1, or 0 while the sweep is deleting the file of that name.
local tenant, sha = ARGV[1], ARGV[2]
local name = tenant .. '/' .. sha
if call('ZSCORE', P .. 'blobs:dying', name) then
  return 0
end
local row = P .. tenant .. ':b:' .. sha
call('HSET', row, 'n', ARGV[3])
if ARGV[4] == '1' then
  call('HSET', row, 'pin', '1')
  call('ZREM', P .. 'blobs:idle', name)
else
  call('HSETNX', row, 'pin', '0')
  if call('HGET', row, 'pin') == '0' and call('EXISTS', P .. tenant .. ':br:' .. sha) == 0 then
    call('ZADD', P .. 'blobs:idle', cluster_clock(), name)
  end
end
return 1
