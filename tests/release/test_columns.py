"""Columns of an anonymous split against cumulative intervals."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.release.columns import FULL, MOST_COLUMNS, columns

WEIGHTS = st.lists(st.one_of(st.integers(1, 100), st.floats(0.01, 100)), min_size=1, max_size=8)


@given(WEIGHTS)
def test_every_version_is_one_interval_as_long_as_its_share(weights: list[float]) -> None:
    found = columns(weights)
    assert found is not None
    shares = [0.0] * len(weights)
    order: list[int] = []
    for threshold, first, second in found:
        part = 1.0 if first == second else threshold / 2**32
        shares[first] += part / len(found)
        shares[second] += (1 - part) / len(found)
        order += [first] if part == 1 else [first, second]
    assert order == sorted(order)
    for share, weight in zip(shares, weights, strict=True):
        assert share == pytest.approx(weight / sum(weights), abs=1e-8)


@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_a_point_gets_the_version_of_its_interval(weights: list[float], point: float) -> None:
    found = columns(weights)
    assert found is not None
    threshold, first, second = found[int(point * len(found))]
    chosen = first if point * len(found) % 1 < threshold / 2**32 or threshold == FULL else second
    borders = list(accumulate(weight / sum(weights) for weight in weights))
    if min(abs(point - border) for border in borders) > 1e-9:
        assert chosen == min(bisect_right(borders, point), len(weights) - 1)


def test_a_hundredth_of_a_percent_fits_and_a_millionth_does_not() -> None:
    found = columns([99.99, 0.01])
    assert found is not None
    assert len(found) == 1 << 14 <= MOST_COLUMNS
    assert columns([1e6, 1]) is None


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected positive"):
        columns(weights)
