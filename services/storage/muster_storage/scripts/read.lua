-- Rows of named tasks. ARGV: tenant, most bytes, id...
-- Answer: per id {spec, status, outcome, progress} or nil when unknown; it ends early once it
-- holds that many bytes.
local answer, bytes, most = {}, 0, tonumber(ARGV[2])
for i = 3, #ARGV do
  local row = call('HMGET', task_key(ARGV[1], ARGV[i]), 'spec', 'st', 'out', 'p')
  if row[1] then
    for f = 1, 4 do
      row[f] = row[f] or ''
      bytes = bytes + #row[f]
    end
    answer[#answer + 1] = row
  else
    answer[#answer + 1] = false
  end
  if bytes >= most then
    break
  end
end
return answer
