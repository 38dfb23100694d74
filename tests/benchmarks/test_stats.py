import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.failure import BenchError
from benchmarks.stats import rotated, round_ratios, share_bounds, spread

positive = st.floats(min_value=1e-6, max_value=1e9)


@settings(deadline=None)  # busy machines are no failure
@given(st.lists(positive, min_size=1, max_size=15))
def test_a_spread_is_median_and_extremes(values: list[float]) -> None:
    found = spread(values, "x")
    assert (found.median, found.low, found.high) == (statistics.median(values), min(values), max(values))
    assert found.rounds == len(values)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_figures_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(BenchError, match=r"requests per second.*positive"):
        spread([1.0, bad, 2.0], "requests per second")


def test_no_figures_are_refused() -> None:
    with pytest.raises(BenchError, match="no figures"):
        spread([], "x")


@settings(deadline=None)  # busy machines are no failure
@given(
    st.dictionaries(st.integers(1, 50), st.tuples(positive, positive), min_size=1, max_size=15),
    st.floats(min_value=0.01, max_value=100),
)
def test_what_disturbs_a_whole_round_cancels_out(rounds: dict[int, tuple[float, float]], disturbance: float) -> None:
    disturbed = min(rounds)
    ours = {number: pair[0] for number, pair in rounds.items()}
    theirs = {number: pair[1] for number, pair in rounds.items()}
    calm = round_ratios(ours, theirs, "x")
    ours[disturbed] *= disturbance
    theirs[disturbed] *= disturbance
    assert round_ratios(ours, theirs, "x").median == pytest.approx(calm.median)


def test_ratios_are_taken_within_rounds_not_of_medians() -> None:
    found = round_ratios({1: 1.0, 2: 20.0, 3: 300.0}, {1: 2.0, 2: 10.0, 3: 100.0}, "x")
    assert (found.median, found.low, found.high) == (2.0, 0.5, 3.0)


@pytest.mark.parametrize("theirs", [{}, {1: 1.0}, {1: 1.0, 3: 1.0}, {1: 1.0, 2: 0.0}])
def test_rounds_that_do_not_pair_are_refused(theirs: dict[int, float]) -> None:
    with pytest.raises(BenchError):
        round_ratios({1: 1.0, 2: 1.0}, theirs, "x")


@settings(deadline=None)  # busy machines are no failure
@given(st.lists(st.integers(), min_size=1, max_size=9, unique=True))
def test_rotation_gives_everyone_every_place_once(items: list[int]) -> None:
    orders = [rotated(items, by) for by in range(len(items))]
    assert all(sorted(order) == sorted(items) for order in orders)
    assert all(sorted(place) == sorted(items) for place in zip(*orders, strict=True))


def test_share_bounds_narrow_with_the_count_and_are_exact_for_a_rule() -> None:
    low, high = share_bounds(0.05, 10_000)
    assert low < 0.05 < high
    assert high - low == pytest.approx(10 * math.sqrt(0.05 * 0.95 / 10_000))
    narrow = share_bounds(0.05, 1_000_000)
    assert low < narrow[0] < narrow[1] < high
    assert share_bounds(1.0, 10) == (1.0, 1.0)
