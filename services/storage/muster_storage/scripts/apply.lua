-- Compare-and-set of tasks of one tenant. ARGV: term, events kept, tenant, then per group of tasks
-- that agree in it
-- count was state head agent event_head kind
-- and per task of the group id status event, with an outcome (kind 1 or 2) the outcome, and with its
-- blob (kind 2) the blob. `was` is what must stand, "<state>:<attempt>:"; head is what will,
-- "<state>:<attempt>:<agent>\n". Without an outcome (kind 0) the one that there is stays.
-- Answer: {'OK', number of the first event} and, unless all are done, per task '' = done,
-- 0 = not found, else the standing status; or {'STALE', present term}.
local term = ARGV[1]
local present = present_term()
if present ~= term then
  return { 'STALE', present }
end
local sub, find = string.sub, string.find
local tenant = ARGV[3]
local standing_prefix, outcome_prefix = standing_key(tenant, ''), outcome_key(tenant, '')
local index = P .. tenant .. ':i:'
local keys, n = {}, 0
local i, last = 4, #ARGV
while i <= last do
  local count, fields = tonumber(ARGV[i]), 3 + tonumber(ARGV[i + 6])
  i = i + 7
  for _ = 1, count do
    n = n + 1
    keys[n] = standing_prefix .. ARGV[i]
    i = i + fields
  end
end
local there = call('MGET', unpack(keys))

-- Progress belongs to an attempt, a blob to an outcome. Answers whether extras are left.
local function change_extras(id, standing, new_attempt, outcome, blob)
  local key = extras_key(tenant, id)
  if sub(standing, 1, 1) == '1' and new_attempt then
    call('HDEL', key, 'p')
  end
  if outcome then
    local held = call('HGET', key, 'ob') or ''
    if held ~= blob then
      if held ~= '' then
        release_blob(tenant, held, 'o:' .. id)
        call('HDEL', key, 'ob')
      end
      if blob ~= '' then
        hold_blob(tenant, blob, 'o:' .. id)
        call('HSET', key, 'ob', blob)
      end
    end
  end
  return call('EXISTS', key)
end

local clock = cluster_clock()
local answer, refused = { 'OK', 0 }, false
local written, w = {}, 0
local ended, e = { P .. 'ended' }, 1
n, i = 0, 4
while i <= last do
  local count, was, state, head = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local agent, event_head, kind = ARGV[i + 4], ARGV[i + 5], tonumber(ARGV[i + 6])
  local was_state, upto = sub(was, 1, 1), #was + 1
  local from, to = index .. 's:' .. was_state, index .. 's:' .. state
  local new_attempt = sub(head, 3, #was) ~= sub(was, 3)
  local ends = tonumber(state) >= 4
  i = i + 7
  for _ = 1, count do
    n = n + 1
    local id, status, standing = ARGV[i], ARGV[i + 1], there[n]
    if not standing then
      answer[n + 2], refused = 0, true
    elseif sub(standing, 2, upto) ~= was then
      local stands = status_of(standing)
      -- The very status that was asked for stands: the call is repeated as its answer was lost.
      answer[n + 2] = stands == status and '' or stands
      refused = true
    else
      local extras = sub(standing, 1, 1)
      if extras == '1' or kind == 2 then
        local outcome, blob = kind > 0, kind == 2 and ARGV[i + 4] or ''
        extras = tostring(change_extras(id, standing, new_attempt, outcome, blob))
      end
      written[w + 1], written[w + 2] = keys[n], extras .. head .. status
      w = w + 2
      if kind > 0 then
        written[w + 1], written[w + 2] = outcome_prefix .. id, ARGV[i + 3]
        w = w + 2
      end
      if was_state ~= state then
        take_from(from, id)
        put_into(to, id)
        if ends then
          ended[e + 1], ended[e + 2] = clock, tenant .. ':' .. id
          e = e + 2
        end
      end
      local before = sub(standing, upto + 1, find(standing, '\n', upto + 1, true) - 1)
      if before ~= agent then
        if before ~= '' then
          take_from(index .. 'a:' .. before, id)
        end
        if agent ~= '' then
          put_into(index .. 'a:' .. agent, id)
        end
      end
      emit(event_head, ARGV[i + 2])
      answer[n + 2] = ''
    end
    i = i + 3 + kind
  end
end
if w > 0 then
  call('MSET', unpack(written))
  write_indexes()
end
if e > 1 then
  call('ZADD', unpack(ended))
end
local first = write_events(ARGV[2])
if refused then
  return answer
end
return { 'OK', first }
