-- Requests of one case, and exact figures as one JSON line: wrk keeps every latency in its own microsecond.
-- Arguments after `--`: METHOD BODY_BYTES USERS. With USERS each request names the next one in x-user-id: u0, u1, …
local prepared, turn = {}, 0

function init(arguments)
   wrk.method = arguments[1]
   local size, users = tonumber(arguments[2]), tonumber(arguments[3])
   if size > 0 then
      wrk.body = string.rep("b", size)
      wrk.headers["Content-Type"] = "application/octet-stream"
   end
   for each = 0, users - 1 do
      wrk.headers["X-User-Id"] = "u" .. each
      prepared[each] = wrk.format()
   end
   if users > 0 then
      request = function() -- without this function wrk renders the request once
         turn = (turn + 1) % users
         return prepared[turn]
      end
   end
end

function done(summary, latency, requests)
   local failed = summary.errors
   io.write(string.format(
      '{"requests":%d,"duration_us":%d,"bytes":%.0f,"p50_us":%.0f,"p99_us":%.0f,"p999_us":%.0f,"max_us":%.0f,'
      .. '"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
      summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
      failed.connect, failed.read, failed.write, failed.status, failed.timeout))
end
