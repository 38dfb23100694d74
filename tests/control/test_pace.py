"""Rests between revisions: none for changes now and then, and a bounded share of the processor in a storm."""

from __future__ import annotations

import asyncio
import time
import types
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.control import pace
from graylb.control.assembly import base_of
from graylb.control.etcd import bursts
from graylb.control.layers import Layers
from graylb.control.pace import ALLOWED, APART, LATELY, LONGEST, QUIET, REST, SPREAD, Pace, staggered
from graylb.control.sources import Fragment, Update
from graylb.control.state import State
from graylb.model import documents


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


def test_a_storm_of_long_work_owes_no_more_than_one_rest() -> None:
    """What it could not pay had made changes wait for minutes after a minute's storm."""
    pace, now = Pace(), 0.0
    for _ in range(100):
        now += pace.rest(now, now + 0.3) + 0.3
    now += ALLOWED + LONGEST
    assert pace.rest(now, now + 0.01) == 0.0


@given(st.integers(1, 300))
def test_workers_are_handed_a_table_apart_in_a_storm_alone(workers: int) -> None:
    pace, now = Pace(), 1000.0
    assert pace.apart(workers, now) == 0.0
    assert pace.rest(now, now + 0.01) == 0.0
    assert pace.apart(workers, now + 0.02) == 0.0
    for _ in range(10):
        now += pace.rest(now, now + 0.2) + 0.2
    assert 0.0 < pace.apart(workers, now) <= APART
    assert pace.apart(workers, now) * (workers - 1) <= SPREAD * 1.001
    assert pace.apart(workers, now + LATELY) == 0.0, "a change by itself is everywhere at once"


@pytest.mark.parametrize("apart", [0.0, 0.001])
def test_staggered_works_are_begun_in_order_and_none_waits_for_another(apart: float) -> None:
    async def test() -> None:
        begun: list[int] = []
        last = asyncio.Event()

        async def work(number: int) -> int:
            begun.append(number)
            if number == 4:
                last.set()
            await last.wait()
            return number

        async with asyncio.timeout(10):
            assert await staggered([partial(work, number) for number in range(5)], apart) == [0, 1, 2, 3, 4]
        assert begun == [0, 1, 2, 3, 4]

    asyncio.run(test())


def test_pauses_are_few_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each takes: a change must not wait for ever on a busy machine."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(pace, "STRETCH", 0.0)
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(sleep=sleep, perf_counter=time.perf_counter))
    breath = pace.Pauses()
    for _ in range(10_000):
        breath()
    assert 0 < len(slept) <= pace.PAUSES / pace.PAUSE


def test_work_breathes_between_services_and_keys() -> None:
    drawn: list[int] = []
    layers = Layers("/x/")
    values = {f"services/s{n}/instances/a": b'{"address": "10.0.0.1:80", "version": "v1"}' for n in range(7)}
    values |= {f"services/s{n}/service": b'{"hosts": ["s%d.test"]}' % n for n in range(7)}
    update = Update(1, {key: Fragment(key, value, 1) for key, value in values.items()}, whole=True)
    document = documents.load(b"{listeners: [{address: 127.0.0.1:1}], etcd: {endpoints: [127.0.0.1:1]}}", "x")
    layers.apply(update, document, base_of(document, {}, "x"), State(), None, lambda: drawn.append(1))
    assert len(drawn) == 7 * 5, "for each key, and each service assembled, compiled and placed"


@pytest.mark.parametrize("came", ["long ago", "now", "all the time"])
def test_a_rest_is_over_once_the_storm_is(monkeypatch: pytest.MonkeyPatch, came: str) -> None:
    """Changes that wait for the end of a rest are in force within a second of the storm's end."""
    monkeypatch.setattr(pace, "QUIET", 0.06)
    monkeypatch.setattr(pace, "LOOK_EVERY", 0.01)

    async def test() -> None:
        now = asyncio.get_running_loop().time
        began = now()
        last = {"long ago": lambda: began - 1, "now": lambda: began, "all the time": now}[came]
        await pace.rested(0.25, last)
        took = now() - began
        assert took >= {"long ago": 0.0, "now": 0.06, "all the time": 0.249}[came]
        if came != "all the time":
            assert now() - last() >= pace.QUIET

    asyncio.run(test())


def test_a_revision_and_its_rest_are_of_one_storm() -> None:
    assert LONGEST + 0.3 < LATELY, "or workers would be handed the next table at once"
    assert QUIET > bursts.REST + 0.1, "or a storm would seem to be over between two bursts of it"


def test_work_whose_pauses_are_used_up_lets_others_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    yields: list[bool] = []
    monkeypatch.setattr(pace, "STRETCH", 0.0)
    monkeypatch.setattr(pace, "PAUSES", 0.0)
    monkeypatch.setattr(pace, "os", types.SimpleNamespace(sched_yield=lambda: yields.append(True)))
    breath = pace.Pauses()
    for _ in range(10):
        breath()
    assert len(yields) == 10
