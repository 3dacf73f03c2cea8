-- Events without a change of state. ARGV: term (0 = not a scheduler), events kept, then per event
-- tenant task_id attempt progress event_head event (task_id '' = about no task; progress '' = keep).
-- What is about another attempt than the one under way is dropped.
-- Answer: {'OK', number taken} or {'STALE', present term}.
local term = ARGV[1]
if term ~= '0' then
  local present = present_term()
  if present ~= term then
    return { 'STALE', present }
  end
end
local taken = 0
for i = 3, #ARGV, 6 do
  local id = ARGV[i + 1]
  local wanted = true
  if id ~= '' then
    local key = task_key(ARGV[i], id)
    local row = call('HMGET', key, 's', 'a')
    wanted = (row[1] == '2' or row[1] == '3') and row[2] == ARGV[i + 2]
    if wanted and ARGV[i + 3] ~= '' then
      call('HSET', key, 'p', ARGV[i + 3])
    end
  end
  if wanted then
    taken = taken + 1
    emit(ARGV[i + 4], ARGV[i + 5])
  end
end
write_events(ARGV[2])
return { 'OK', taken }
