-- ARGV: tenant, key, if_match ('' or '*' = any). Answer: {1 = deleted | 0, etag that was there or ''}.
local row = P .. ARGV[1] .. ':v:' .. ARGV[2]
local present = call('HGET', row, 'e')
if not present then
  return { 0, '' }
end
if ARGV[3] ~= '' and ARGV[3] ~= '*' and ARGV[3] ~= present then
  return { 0, present }
end
call('DEL', row)
call('ZREM', P .. ARGV[1] .. ':values', ARGV[2])
return { 1, present }
