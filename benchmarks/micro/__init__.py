"""Nanoseconds per operation of the hot path, in process: C-level loops that graylb's modules expose."""
