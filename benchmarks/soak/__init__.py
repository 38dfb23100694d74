"""A long mixed load: what grows, what leaks, what breaks. `python -m benchmarks.soak`."""
