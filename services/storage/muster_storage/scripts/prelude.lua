-- Put before every script: key names, gathered index changes, events, references to blobs.
-- KEYS[1] is the prefix of all keys; its hash tag keeps them in one slot.
local call = redis.call
local P = KEYS[1]

-- A task is up to four keys. `t`: its specification, which never changes. `s`: what stands of it,
-- "<extras><state>:<attempt>:<agent>\n<status>", where extras is 1 when there is a key `x` and state
-- is one digit. `o`: its outcome. `x`: a hash of what few tasks have, `p` its progress and `ob` the
-- blob of its outcome. Plain strings, because one MGET or MSET then serves a hundred tasks.
local function spec_key(tenant, id)
  return P .. tenant .. ':t:' .. id
end

local function standing_key(tenant, id)
  return P .. tenant .. ':s:' .. id
end

local function outcome_key(tenant, id)
  return P .. tenant .. ':o:' .. id
end

local function extras_key(tenant, id)
  return P .. tenant .. ':x:' .. id
end

local function status_of(standing)
  return string.sub(standing, string.find(standing, '\n', 4, true) + 1)
end

local function cluster_clock()
  return call('GET', P .. 'clock') or '0'
end

local function present_term()
  return call('GET', P .. 'term') or '0'
end

-- A number of at most 53 bits as a protobuf varint.
local function varint(number)
  local encoded = ''
  repeat
    local low = number % 128
    number = (number - low) / 128
    encoded = encoded .. string.char(number > 0 and low + 128 or low)
  until number == 0
  return encoded
end

-- {spec, status, outcome, progress} of a task, '' for what it has not; nil when it is unknown.
local function row_of(tenant, id)
  local keys = { spec_key(tenant, id), standing_key(tenant, id), outcome_key(tenant, id) }
  local row = call('MGET', unpack(keys))
  local standing = row[2]
  if not standing then
    return nil
  end
  row[1] = row[1] or ''
  row[2] = status_of(standing)
  row[3] = row[3] or ''
  row[4] = string.sub(standing, 1, 1) == '1' and call('HGET', extras_key(tenant, id), 'p') or ''
  return row, #row[1] + #row[2] + #row[3] + #row[4]
end

-- Changes of one index by many tasks become one ZADD and one ZREM. A task stands in one call of a
-- script at most once, so the order of its changes does not matter.
local added, removed = {}, {}

local function put_into(index, id)
  local members = added[index]
  if not members then
    members = { index }
    added[index] = members
  end
  local n = #members
  members[n + 1], members[n + 2] = '0', id
end

local function take_from(index, id)
  local members = removed[index]
  if not members then
    members = { index }
    removed[index] = members
  end
  members[#members + 1] = id
end

local function write_indexes()
  for _, members in pairs(added) do
    call('ZADD', unpack(members))
  end
  for _, members in pairs(removed) do
    call('ZREM', unpack(members))
  end
end

-- Events are numbered without holes, so that a reader sees from the numbers what was trimmed. Those
-- of one call are one entry of the stream, whose id is the number of the last of them: for each run
-- of events with one head a field of that name, its value each event behind its length.
local entry, run_head, run, event_count = { P .. 'events', '' }, nil, {}, 0

local function end_run()
  if run_head then
    local n = #entry
    entry[n + 1], entry[n + 2] = run_head, table.concat(run)
  end
end

local function emit(head, event)
  if head ~= run_head then
    end_run()
    run_head, run = head, {}
  end
  event_count = event_count + 1
  local n = #run
  run[n + 1], run[n + 2] = struct.pack('>I4', #event), event
end

-- Answers the number of the first event, 0 when there was none.
local function write_events(kept)
  if event_count == 0 then
    return 0
  end
  end_run()
  local last = call('INCRBY', P .. 'seq', event_count)
  local id = string.format('%.0f-0', last)
  entry[2] = id
  call('XADD', unpack(entry))
  local oldest = last - tonumber(kept)
  if oldest > 0 then
    call('XTRIM', P .. 'events', 'MINID', '~', string.format('%.0f', oldest))
  end
  -- Readers wait at this one, whose entries say no more than how far the log goes.
  call('XADD', P .. 'news', 'MAXLEN', '1', id, 'n', '')
  return last - event_count + 1
end

-- A blob is kept while somebody refers to it or it is pinned; else it waits in `idle`, from where
-- the sweep takes it after the grace period.
local function hold_blob(tenant, sha, holder)
  call('SADD', P .. tenant .. ':br:' .. sha, holder)
  call('ZREM', P .. 'blobs:idle', tenant .. '/' .. sha)
end

local function release_blob(tenant, sha, holder)
  local holders = P .. tenant .. ':br:' .. sha
  call('SREM', holders, holder)
  if call('EXISTS', holders) == 0 and call('HGET', P .. tenant .. ':b:' .. sha, 'pin') == '0' then
    call('ZADD', P .. 'blobs:idle', cluster_clock(), tenant .. '/' .. sha)
  end
end
