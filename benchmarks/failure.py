"""The one way a benchmark ends early."""

from __future__ import annotations


class BenchError(Exception):
    """A run that must not produce figures. The text says what, where and what was expected."""
