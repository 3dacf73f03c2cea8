-- Compare-and-set of many tasks. ARGV: term, events kept, then per task
-- tenant id expect_state expect_attempt state attempt agent status outcome output_blob event_head event
-- (outcome '' = keep the one there is).
-- Answer: {'OK', per task '' = done, 0 = not found, else the standing status} or {'STALE', present term}.
local term = ARGV[1]
local present = present_term()
if present ~= term then
  return { 'STALE', present }
end
local clock = cluster_clock()
local answer = { 'OK' }
local ended = {}
for i = 3, #ARGV, 12 do
  local tenant, id = ARGV[i], ARGV[i + 1]
  local key = task_key(tenant, id)
  local row = call('HMGET', key, 's', 'a', 'g', 'st', 'ob', 'p')
  local was = row[1]
  local status = ARGV[i + 7]
  if not was then
    answer[#answer + 1] = 0
  elseif was ~= ARGV[i + 2] or row[2] ~= ARGV[i + 3] then
    -- The very status that was asked for stands: the call is repeated because its answer was lost.
    answer[#answer + 1] = row[4] == status and '' or row[4]
  else
    local state, attempt, agent = ARGV[i + 4], ARGV[i + 5], ARGV[i + 6]
    local outcome, blob, held = ARGV[i + 8], ARGV[i + 9], row[5] or ''
    if outcome == '' then
      call('HSET', key, 's', state, 'a', attempt, 'g', agent, 'st', status)
    else
      call('HSET', key, 's', state, 'a', attempt, 'g', agent, 'st', status, 'out', outcome)
      if held ~= blob then
        call('HSET', key, 'ob', blob)
        if held ~= '' then
          release_blob(tenant, held, 'o:' .. id)
        end
        if blob ~= '' then
          hold_blob(tenant, blob, 'o:' .. id)
        end
      end
    end
    if row[6] and attempt ~= row[2] then
      call('HDEL', key, 'p')
    end
    local index = P .. tenant .. ':i:'
    if was ~= state then
      move(index .. 's:' .. was, id, false)
      move(index .. 's:' .. state, id, true)
      if tonumber(state) >= 4 then
        ended[#ended + 1] = clock
        ended[#ended + 1] = tenant .. ':' .. id
      end
    end
    if row[3] ~= agent then
      if row[3] ~= '' then
        move(index .. 'a:' .. row[3], id, false)
      end
      if agent ~= '' then
        move(index .. 'a:' .. agent, id, true)
      end
    end
    emit(ARGV[i + 10], ARGV[i + 11])
    answer[#answer + 1] = ''
  end
end
if #ended > 0 then
  call('ZADD', P .. 'ended', unpack(ended))
end
write_moves()
write_events(ARGV[2])
return answer
