"""Rests between revisions: none for changes now and then, and a bounded share of the processor in a storm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graylb.control.pace import ALLOWED, LONGEST, REST, Pace


@given(st.lists(st.floats(0.0005, 0.04), min_size=1, max_size=50))
def test_changes_now_and_then_never_wait(works: list[float]) -> None:
    pace, now = Pace(), 1000.0
    for work in works:
        now += REST * 0.04
        assert pace.rest(now, now + work) == 0.0
        now += work


@given(st.floats(0.001, 0.08), st.integers(200, 400))
def test_a_storm_leaves_the_processor_to_traffic(work: float, count: int) -> None:
    pace, now, worked = Pace(), 0.0, 0.0
    for _ in range(count):
        rest = pace.rest(now, now + work)
        assert 0.0 <= rest <= LONGEST
        now += work + rest
        worked += work
    assert worked <= now / (1 + REST) + ALLOWED + work


@given(st.floats(0.1, 5.0))
def test_no_revision_waits_longer_than_that(work: float) -> None:
    pace, now = Pace(), 0.0
    for _ in range(20):
        rest = pace.rest(now, now + work)
        assert rest <= LONGEST
        now += work + rest
    assert pace.rest(now + 100 * REST * work, now + 100 * REST * work + 0.01) == 0.0
