"""Rounds: their order, medians over them and ratios within them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.failure import BenchError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over several rounds."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float], what: str) -> Spread:
    """Median and extremes. Zero, negative, infinite and absent figures are failed runs, so they raise BenchError."""
    if not values:
        raise BenchError(f"{what}: no figures")
    for value in values:
        if not math.isfinite(value) or value <= 0:
            raise BenchError(f"{what}: the figure {value!r} is not a positive number")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def round_ratios(ours: Mapping[int, float], theirs: Mapping[int, float], what: str) -> Spread:
    """ours/theirs within each round, then their spread: what disturbs a whole round cancels out.

    Both map round number -> figure. Raises BenchError unless both have the same rounds.
    """
    if ours.keys() != theirs.keys():
        raise BenchError(f"{what}: rounds {sorted(ours)} cannot be compared with rounds {sorted(theirs)}")
    spread(list(theirs.values()), what)
    return spread([ours[number] / theirs[number] for number in sorted(ours)], what)


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """The same items in the same cycle, another one first each time: nobody is always the first of a round."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def share_bounds(share: float, count: int, sigmas: float = 5.0) -> tuple[float, float]:
    """Between which bounds a binomial share of `count` draws lies, but for one case in 10^6 at 5 sigma."""
    if share in (0.0, 1.0):
        return share, share
    margin = sigmas * math.sqrt(share * (1 - share) / count)
    return share - margin, share + margin
