-- Counts answers by x-graylb-version and prints them as JSON. Arguments after `--`: one header as NAME=VALUE, or nothing;
-- with NAME=* the value is one of 2,000 users in turn, and a user who was ever on two versions is counted as torn.
local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(arguments)
   name, value = (arguments[1] or ""):match("([^=]+)=(.*)")
   sent, got = 0, 0
   counts, users, torn = {}, {}, 0
   if name and value ~= "*" then wrk.headers[name] = value end
end

function request()
   if value == "*" then
      sent = sent + 1
      wrk.headers[name] = "user-" .. sent % 2000
   end
   return wrk.format()
end

function response(status, headers, body)
   local version = headers["x-graylb-version"] or "none"
   counts[version] = (counts[version] or 0) + 1
   local user = value == "*" and body:match('"x%-user%-id":"(user%-%d+)"')
   if user then
      if users[user] and users[user] ~= version then torn = torn + 1 end
      users[user] = version
   end
end

function done(summary, latency, requests)
   local total, all_torn = {}, 0
   for _, thread in ipairs(threads) do
      for version, count in pairs(thread:get("counts")) do total[version] = (total[version] or 0) + count end
      all_torn = all_torn + thread:get("torn")
   end
   local parts = {}
   for version, count in pairs(total) do table.insert(parts, string.format('"%s":%d', version, count)) end
   local e = summary.errors
   io.write(string.format('{"requests":%d,"failed":%d,"torn":%d,"versions":{%s}}\n', summary.requests,
      e.connect + e.read + e.write + e.status + e.timeout, all_torn, table.concat(parts, ",")))
end
