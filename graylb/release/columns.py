"""The alias table of an anonymous split: columns of at most two versions, in which every version is one interval.

A draw n becomes the point frac((n + 1) * golden ratio) of [0, 1). What an interval gets of any 100 successive points of
this rotation strays little from its length (three-distance theorem; Niederreiter, Random Number Generation and
Quasi-Monte Carlo Methods, 1992), but the errors of several intervals add up. Vose's construction scatters a version
over many; so columns are made as narrow as the lightest version, which leaves at most one border in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm

MOST_COLUMNS = 1 << 16
FULL = (1 << 32) - 1

Column = tuple[int, int, int]
"""(threshold, first, second): `first` when the coin, 32 bits, is below the threshold, else `second`."""


def columns(weights: Sequence[float]) -> list[Column] | None:
    """Columns for positive weights; None when the lightest is below 1 / MOST_COLUMNS of the whole: too light for this.

    Raises ValueError when there is no weight or one is not positive.
    """
    exact = [Fraction(weight) for weight in weights]
    if not exact or min(exact) <= 0:
        raise ValueError(f"weights {list(weights)!r}: expected positive numbers")
    # integers in the same proportions: fractions would make a table of many columns slow
    scale = lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    total = sum(parts)
    count = 1
    while count * min(parts) < total:
        count *= 2
    if count > MOST_COLUMNS:
        return None
    borders = [border * count for border in accumulate(parts)]  # a column is `total` wide
    found: list[Column] = []
    version = 0
    while len(found) < count:
        whole = borders[version] // total - len(found)
        if whole > 0:
            found += [(FULL, version, version)] * whole
        else:
            coin = Fraction((borders[version] - len(found) * total) << 32, total)
            found.append((round(coin), version, version + 1))
        # a border on the column's edge belongs to the next column's first version
        while version + 1 < len(borders) and borders[version] <= len(found) * total:
            version += 1
    return found
