"""HTTP/2 sessions without I/O, over libnghttp2: see _h2.pxd for what they promise."""
