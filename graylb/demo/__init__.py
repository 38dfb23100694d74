"""Two small versioned upstreams and the proxy on the demo document: `python -m graylb.demo`."""
