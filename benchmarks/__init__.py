"""Benchmarks of graylb: `load` against other proxies, `micro` in process. Run by `python -m benchmarks`."""
