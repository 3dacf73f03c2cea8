-- ARGV: agent, wish ('1' = none), who, events kept, event_head, event.
if ARGV[2] == '1' then
  call('HDEL', P .. 'wishes', ARGV[1])
else
  call('HSET', P .. 'wishes', ARGV[1], ARGV[2] .. ':' .. ARGV[3])
end
emit(ARGV[5], ARGV[6])
write_events(ARGV[4])
return 1
