-- The next term. ARGV: events kept, event_head, event (lacks its term, which is added here).
-- Answer: {term, clock}.
local term = call('INCR', P .. 'term')
-- Field 11 of an Event.
emit(ARGV[2], ARGV[3] .. '\88' .. varint(term))
write_events(ARGV[1])
return { term, cluster_clock() }
