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
    local key = standing_key(ARGV[i], id)
    local standing = call('GET', key) or ''
    local state, attempt = string.match(standing, '^.(%d):(%d+):')
    wanted = (state == '2' or state == '3') and attempt == ARGV[i + 2]
    if wanted and ARGV[i + 3] ~= '' then
      call('HSET', extras_key(ARGV[i], id), 'p', ARGV[i + 3])
      if string.sub(standing, 1, 1) == '0' then
        call('SETRANGE', key, 0, '1')
      end
    end
  end
  if wanted then
    taken = taken + 1
    emit(ARGV[i + 4], ARGV[i + 5])
  end
end
write_events(ARGV[2])
return { 'OK', taken }
