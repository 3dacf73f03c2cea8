-- Takes blobs whose files are to be deleted: idle since before ARGV[1], or left by a sweep that
-- died before ARGV[2] (both cluster ms); at most ARGV[3]. Answer: tenant/sha256...
local clock, most = cluster_clock(), ARGV[3]
local dying = call('ZRANGEBYSCORE', P .. 'blobs:dying', '-inf', ARGV[2], 'LIMIT', 0, most)
for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'blobs:idle', '-inf', ARGV[1], 'LIMIT', 0, most)) do
  local tenant, sha = string.match(name, '^(.-)/(.*)$')
  call('ZREM', P .. 'blobs:idle', name)
  local row = P .. tenant .. ':b:' .. sha
  if call('EXISTS', P .. tenant .. ':br:' .. sha) == 0 and call('HGET', row, 'pin') ~= '1' then
    call('DEL', row)
    dying[#dying + 1] = name
  end
end
for _, name in ipairs(dying) do
  call('ZADD', P .. 'blobs:dying', clock, name)
end
return dying
