-- ARGV: tenant, key, value, content type, if_match ('' = any, '*' = must be there), 1 = must not be there.
-- Answer: {1 = written | 0, etag that stands now or '', 1 = created}.
local row = P .. ARGV[1] .. ':v:' .. ARGV[2]
local present = call('HGET', row, 'e')
local refused
if ARGV[6] == '1' then
  refused = present
elseif ARGV[5] == '*' then
  refused = not present
elseif ARGV[5] ~= '' then
  refused = present ~= ARGV[5]
end
if refused then
  return { 0, present or '', 0 }
end
-- One counter for all values: a value that was deleted and made again never gets an old etag.
local etag = tostring(call('INCR', P .. 'version'))
call('HSET', row, 'v', ARGV[3], 'c', ARGV[4], 'e', etag)
call('ZADD', P .. ARGV[1] .. ':values', '0', ARGV[2])
return { 1, etag, present and 0 or 1 }
