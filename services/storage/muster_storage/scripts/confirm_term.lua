-- Advances the clock of the cluster while the term is the present one. ARGV: term, advance_ms.
-- Answer: {1 = present | 0, clock}.
if present_term() ~= ARGV[1] then
  return { 0, cluster_clock() }
end
return { 1, tostring(call('INCRBY', P .. 'clock', ARGV[2])) }
