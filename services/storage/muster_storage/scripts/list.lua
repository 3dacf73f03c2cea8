-- One page of an index in the order of ids.
-- ARGV: tenant, 1 = newest first, cursor, most rows, most ids looked at, most bytes, index,
-- further index that must hold the id too...
-- Answer: {next cursor or '', {spec, status, outcome, progress}...}.
local tenant, newest_first, cursor = ARGV[1], ARGV[2] == '1', ARGV[3]
local most_rows, most_ids, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local bound = '(' .. cursor
local ids
if newest_first then
  if cursor == '' then
    bound = '+'
  end
  ids = call('ZREVRANGEBYLEX', ARGV[7], bound, '-', 'LIMIT', 0, most_ids + 1)
else
  if cursor == '' then
    bound = '-'
  end
  ids = call('ZRANGEBYLEX', ARGV[7], bound, '+', 'LIMIT', 0, most_ids + 1)
end
local answer, bytes, seen = { '' }, 0, 0
for i = 1, math.min(#ids, most_ids) do
  if #answer > most_rows or bytes >= most_bytes then
    break
  end
  seen = i
  local id, wanted = ids[i], true
  for k = 8, #ARGV do
    if not call('ZSCORE', ARGV[k], id) then
      wanted = false
      break
    end
  end
  if wanted then
    local row, size = row_of(tenant, id)
    if row then
      bytes = bytes + size
      answer[#answer + 1] = row
    end
  end
end
if seen < #ids then
  answer[1] = ids[seen]
end
return answer
