-- ARGV: policy, version that must stand ('' = any), events kept, event_head, event.
-- Answer: {1 = written | 0, version that stands now}.
local present = call('HGET', P .. 'policy', 'e') or '0'
if ARGV[2] ~= '' and ARGV[2] ~= present then
  return { 0, present }
end
local version = tostring(call('HINCRBY', P .. 'policy', 'e', 1))
call('HSET', P .. 'policy', 'v', ARGV[1])
emit(ARGV[4], ARGV[5])
write_events(ARGV[3])
return { 1, version }
