-- Request of one case, and exact figures as one JSON line: wrk keeps every latency in its own microsecond.
-- Arguments after `--`: METHOD BODY_BYTES. Without a `request` function wrk renders the request once.
function init(arguments)
   wrk.method = arguments[1]
   local size = tonumber(arguments[2])
   if size > 0 then
      wrk.body = string.rep("b", size)
      wrk.headers["Content-Type"] = "application/octet-stream"
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
