"""How large the tables of the micro benchmark are."""

from __future__ import annotations

RULES = (10, 1_000, 10_000)
INSTANCES = (2, 100, 10_000, 100_000)
HEADS = 200
"""Differing requests of one match figure, so that no single hash chain stands for all."""
