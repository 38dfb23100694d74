"""HTTP/2 and TLS: load over h2c and TLS, streams that are slow, idle or hostile, and h2spec."""
