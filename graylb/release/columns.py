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
    total = sum(exact)
    count = 1
    while count * min(exact) < total:
        count *= 2
    if count > MOST_COLUMNS:
        return None
    borders = [border / total * count for border in accumulate(exact)]
    found: list[Column] = []
    version = 0
    for column in range(count):
        border = borders[version]
        if border >= column + 1:
            found.append((FULL, version, version))
        else:
            found.append((round((border - column) * 2**32), version, version + 1))
        # a border on the column's edge belongs to the next column's first version
        while version + 1 < len(borders) and borders[version] <= column + 1:
            version += 1
    return found
