-- Writes new tasks; a task that exists stands. ARGV: term, events kept, then per task
-- tenant id skill state attempt agent spec status stamp event_head event label_count label...
-- (stamp 1 = the status lacks created_clock_ms, which is added here).
-- Answer: {'OK', clock, per task '' or the standing status} or {'STALE', present term}.
local term = ARGV[1]
if term ~= '0' then
  local present = present_term()
  if present ~= term then
    return { 'STALE', present }
  end
end
local clock = cluster_clock()
local answer = { 'OK', clock }
-- Field 9 of a TaskStatus; in a message that has it already the later one would count.
local created_at = '\72' .. varint(tonumber(clock))
local tenants = {}
local i, n = 3, #ARGV
while i <= n do
  local tenant, id, skill = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local state, agent = ARGV[i + 3], ARGV[i + 5]
  local labels = tonumber(ARGV[i + 11])
  local key = task_key(tenant, id)
  local standing = call('HGET', key, 'st')
  if standing then
    answer[#answer + 1] = standing
  else
    local status = ARGV[i + 7]
    if ARGV[i + 8] == '1' then
      status = status .. created_at
    end
    call('HSET', key, 's', state, 'a', ARGV[i + 4], 'g', agent, 'spec', ARGV[i + 6], 'st', status)
    local index = P .. tenant .. ':i:'
    move(index .. 'all', id, true)
    move(index .. 's:' .. state, id, true)
    move(index .. 'k:' .. skill, id, true)
    if agent ~= '' then
      move(index .. 'a:' .. agent, id, true)
    end
    for l = i + 12, i + 11 + labels do
      move(index .. 'l:' .. ARGV[l], id, true)
    end
    tenants[tenant] = true
    emit(ARGV[i + 9], ARGV[i + 10])
    answer[#answer + 1] = ''
  end
  i = i + 12 + labels
end
for tenant in pairs(tenants) do
  call('SADD', P .. 'tenants', tenant)
end
write_moves()
write_events(ARGV[2])
return answer
