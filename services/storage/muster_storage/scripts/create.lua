-- Writes new tasks of one tenant; a task that exists stands. ARGV: term, events kept, tenant, then
-- per group of tasks that agree in it
-- count state head agent skill stamp event_head label_count label...
-- and per task of the group id spec status event; head is "<state>:<attempt>:<agent>\n"
-- (stamp 1 = the statuses lack created_clock_ms, which is added here).
-- Answer: {'OK', clock, number of the first event} and, when any task exists, per task '' or the
-- standing status; or {'STALE', present term}.
local term = ARGV[1]
if term ~= '0' then
  local present = present_term()
  if present ~= term then
    return { 'STALE', present }
  end
end
local tenant = ARGV[3]
local standing_prefix, spec_prefix = standing_key(tenant, ''), spec_key(tenant, '')
local index = P .. tenant .. ':i:'
local everything = index .. 'all'
local keys, n = {}, 0
local i, last = 4, #ARGV
while i <= last do
  local count = tonumber(ARGV[i])
  i = i + 8 + tonumber(ARGV[i + 7])
  for _ = 1, count do
    n = n + 1
    keys[n] = standing_prefix .. ARGV[i]
    i = i + 4
  end
end
local there = call('MGET', unpack(keys))
local clock = cluster_clock()
-- Field 9 of a TaskStatus; in a message that has it already the later one would count.
local created_at = '\72' .. varint(tonumber(clock))
local answer, exists = { 'OK', clock, 0 }, false
local written, w = {}, 0
n, i = 0, 4
while i <= last do
  local count, state, head, agent = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local by_skill, stamp, event_head = index .. 'k:' .. ARGV[i + 4], ARGV[i + 5], ARGV[i + 6]
  local labels, first_label = tonumber(ARGV[i + 7]), i + 8
  local by_state, by_agent = index .. 's:' .. state, agent ~= '' and index .. 'a:' .. agent
  local before = '0' .. head
  local after = stamp == '1' and created_at or ''
  i = i + 8 + labels
  for _ = 1, count do
    n = n + 1
    local id, standing = ARGV[i], there[n]
    if standing then
      exists = true
      answer[n + 3] = status_of(standing)
    else
      written[w + 1], written[w + 2] = spec_prefix .. id, ARGV[i + 1]
      written[w + 3], written[w + 4] = keys[n], before .. ARGV[i + 2] .. after
      w = w + 4
      put_into(everything, id)
      put_into(by_state, id)
      put_into(by_skill, id)
      if by_agent then
        put_into(by_agent, id)
      end
      for l = first_label, first_label + labels - 1 do
        put_into(index .. 'l:' .. ARGV[l], id)
      end
      emit(event_head, ARGV[i + 3])
      answer[n + 3] = ''
    end
    i = i + 4
  end
end
if w > 0 then
  call('MSET', unpack(written))
  call('SADD', P .. 'tenants', tenant)
  write_indexes()
end
local first = write_events(ARGV[2])
if exists then
  return answer
end
return { 'OK', clock, first }
