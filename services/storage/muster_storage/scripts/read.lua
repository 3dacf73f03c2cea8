-- Rows of named tasks. ARGV: tenant, most bytes, id...
-- Answer: per id {spec, status, outcome, progress} or nil when unknown; it ends early once it
-- holds that many bytes.
local answer, bytes, most = {}, 0, tonumber(ARGV[2])
for i = 3, #ARGV do
  local row, size = row_of(ARGV[1], ARGV[i])
  answer[#answer + 1] = row or false
  bytes = bytes + (size or 0)
  if bytes >= most then
    break
  end
end
return answer
