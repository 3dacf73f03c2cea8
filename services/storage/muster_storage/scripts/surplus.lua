-- The oldest ended tasks beyond so many that are kept. ARGV: kept, ended before this clock, most.
-- Answer: members of `ended`, tenant:id.
local surplus = call('ZCARD', P .. 'ended') - tonumber(ARGV[1])
if surplus <= 0 then
  return {}
end
local most = math.min(surplus, tonumber(ARGV[3]))
return call('ZRANGEBYSCORE', P .. 'ended', '-inf', '(' .. ARGV[2], 'LIMIT', 0, most)
