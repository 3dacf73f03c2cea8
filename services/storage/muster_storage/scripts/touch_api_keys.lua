-- Last use of keys; never goes back. ARGV per key: id, unix ms.
for i = 1, #ARGV, 2 do
  if call('HEXISTS', P .. 'apikeys', ARGV[i]) == 1 then
    local before = tonumber(call('HGET', P .. 'apikeys:used', ARGV[i]) or '0')
    if tonumber(ARGV[i + 1]) > before then
      call('HSET', P .. 'apikeys:used', ARGV[i], ARGV[i + 1])
    end
  end
end
return 1
