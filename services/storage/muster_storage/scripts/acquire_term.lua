-- The next term, which is above another. ARGV: events kept, event_head, event (lacks its term,
-- which is added here), above.
-- Answer: {term, clock}.
local term = call('INCR', P .. 'term')
local above = tonumber(ARGV[4])
if term <= above then
  term = call('INCRBY', P .. 'term', above + 1 - term)
end
-- Field 11 of an Event.
emit(ARGV[2], ARGV[3] .. '\88' .. varint(term))
write_events(ARGV[1])
return { term, cluster_clock() }
