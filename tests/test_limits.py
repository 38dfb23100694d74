"""Limits of traffic without I/O: breakers, rates and their tables of keys, adaptive concurrency, watermarks."""

from __future__ import annotations

import heapq
import math
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _limits

BOUNDS: dict[str, Any] = {"requests": 0, "pending": 0, "connections": 0, "adaptive": None}
ADAPTIVE = {"min": 10, "max": 1000, "tolerance": 25, "interval": 0.1, "probe": 60.0}
SECOND = 1_000_000


def limits(*rates: dict[str, Any]) -> dict[str, Any]:
    return {"service": BOUNDS, "version": BOUNDS, "instance": BOUNDS, "rates": list(rates)}


def rate(number: float, burst: int = 1, name: str = "r", **more: Any) -> dict[str, Any]:
    return {"name": name, "rate": number, "burst": burst, "fields": [], "rule": -1, "keys": 1024, **more}


def bench(*rates: dict[str, Any], workers: int = 1) -> _limits.Bench:
    made = _limits.Bench()
    made.configure(limits(*rates), workers)
    return made


class Bucket:
    """A token bucket as anyone would write it: filled by a clock, exact."""

    def __init__(self, every: int, burst: int) -> None:
        self.every, self.burst, self.tokens, self.at = every, Fraction(burst), Fraction(burst), 0

    def take(self, now: int) -> int:
        """Nanoseconds to wait; 0: a token was taken."""
        self.tokens = min(self.burst, self.tokens + Fraction(now - self.at, self.every))
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return math.ceil((1 - self.tokens) * self.every)


STEPS = st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(0, 3)), max_size=60)


# ---- breakers --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.booleans(), max_size=40))
def test_a_breaker_lets_so_many_in(most: int, workers: int, steps: list[bool]) -> None:
    """Each worker its share, rounded up; who ends makes room; nothing is left when all have ended."""
    made = _limits.Bench()
    made.bound({**BOUNDS, "requests": most}, workers)
    share, inside = math.ceil(most / workers), 0
    for comes in steps:
        if not comes:
            if inside:
                made.end()
                inside -= 1
        elif made.refuses():
            assert (made.refuses(), inside) == ("requests", share)
        else:
            made.begin()
            inside += 1
            assert inside <= share
        assert made.figures()["requests"] == inside
    for _ in range(inside):
        made.end()
    assert made.figures()["requests"] == 0


def test_no_limit_is_none() -> None:
    made = _limits.Bench()
    made.bound(BOUNDS)
    for _ in range(10_000):
        assert made.refuses() == ""
        made.begin()


def test_counts_go_on_when_limits_change() -> None:
    made = _limits.Bench()
    made.bound({**BOUNDS, "requests": 5})
    for _ in range(5):
        made.begin()
    made.bound({**BOUNDS, "requests": 3})
    made.end()
    assert made.refuses() == "requests"  # four are more than three still
    made.end()
    made.end()
    assert made.refuses() == ""
    made.bound({**BOUNDS, "requests": 2})
    assert made.refuses() == "requests"


# ---- rates -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from([0.1, 1.0, 2.0, 10.0, 1000.0]), st.integers(1, 7), st.integers(1, 3), STEPS)
def test_a_rate_is_a_token_bucket(number: float, burst: int, workers: int, steps: list[tuple[int, int]]) -> None:
    made = bench(rate(number, burst), workers=workers)
    oracle = Bucket(round(1e9 * workers / number), math.ceil(burst / workers))
    now = 1000 * SECOND
    oracle.at = now * 1000
    for pause, _ in steps:
        now += pause // round(number + 1)
        assert made.wait([], now) == oracle.take(now * 1000)


@given(STEPS)
def test_each_key_has_a_bucket(steps: list[tuple[int, int]]) -> None:
    made = bench(rate(2.0, 3, fields=[0]))
    oracles = [Bucket(500_000_000, 3) for _ in range(4)]
    now = 1000 * SECOND
    for pause, caller in steps:
        now += pause // 4
        assert made.wait([b"caller %d" % caller], now) == oracles[caller].take(now * 1000)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 200)), max_size=300))
def test_who_is_forgotten_has_more_and_never_less(keys: int, steps: list[tuple[int, int]]) -> None:
    """Whatever is asked of a table that is too small, nobody waits longer than by a bucket of his own."""
    made = bench(rate(1.0, 2, fields=[0], keys=keys))
    oracles: dict[int, Bucket] = {}
    now = 1000 * SECOND
    for pause, caller in steps:
        now += pause // 100
        wait = made.wait([b"%d" % caller], now)
        own = oracles.setdefault(caller, Bucket(1_000_000_000, 2))
        before = own.tokens
        expected = own.take(now * 1000)
        assert wait <= expected
        if wait == 0 and expected:  # it got one that it had not: the oracle is in debt no further than empty
            own.tokens = min(own.tokens, before)


def test_who_uses_up_his_rate_is_remembered_in_a_flood_of_others() -> None:
    made = bench(rate(1.0, 100, fields=[0], keys=64))
    now = 1000 * SECOND
    for _ in range(100):
        assert made.wait([b"greedy"], now) == 0
    for number in range(20_000):
        assert made.wait([b"other %d" % number], now) == 0
    assert made.wait([b"greedy"], now) > 0


def test_the_first_key_that_is_present_counts() -> None:
    made = bench(rate(1.0, 1, fields=[0, 1]))
    now = 1000 * SECOND
    assert made.wait([b"a", b"x"], now) == 0
    assert made.wait([None, b"x"], now) == 0  # another bucket: it is of the other source
    assert made.wait([None, b"x"], now) > 0
    assert made.wait([b"a", b"y"], now) > 0
    assert made.wait([b"", b"z"], now) == 0  # an empty one is none
    assert made.wait([None, b"a"], now) == 0  # the same text of another source is somebody else
    for _ in range(10):
        assert made.wait([None, None], now) == 0  # who has none of it is not limited


def test_all_rates_or_none_take_a_token() -> None:
    """A request that one rate refuses costs nothing at the others."""
    made = bench(rate(1.0, 5, "whole"), rate(1.0, 1, "each", fields=[0]))
    now = 1000 * SECOND
    assert made.wait([b"a"], now) == 0
    for _ in range(20):
        assert made.wait([b"a"], now) == 1_000_000_000
    for caller in (b"b", b"c", b"d", b"e"):
        assert made.wait([caller], now) == 0
    assert made.wait([b"f"], now) > 0
    assert made.figures()["limits"]["rates"] == {"whole": 1, "each": 20}


def test_a_rate_of_one_rule() -> None:
    made = bench(rate(1.0, 1, rule=2))
    now = 1000 * SECOND
    assert [made.wait([], now, rule) for rule in (-1, 0, 1, 2, 2, 3)] == [0, 0, 0, 0, 1_000_000_000, 0]


def test_buckets_go_on_when_settings_change() -> None:
    now = 1000 * SECOND
    made = bench(rate(1.0, 10), rate(1.0, 3, "each", fields=[0]))
    for _ in range(3):
        assert made.wait([b"a"], now) == 0
    made.configure(limits(rate(1.0, 10), rate(1.0, 3, "each", fields=[4])), 1, now)
    values = [None, None, None, None, b"a"]
    assert made.wait(values, now) > 0
    made.configure(limits(rate(1.0, 2)), 1, now)  # six would be left of ten, but two is all that a bucket holds
    assert [made.wait([], now) > 0 for _ in range(3)] == [False, False, True]
    made.configure(limits(rate(100.0, 20)), 1, now)
    assert made.wait([], now) == 10_000_000
    assert made.wait([], now + 10_000) == 0


@given(st.integers(1, 16), st.floats(0.01, 1e6), st.integers(1, 1_000_000))
def test_workers_share_a_rate(workers: int, number: float, burst: int) -> None:
    """What all of them let through in a long time is the rate, however small its shares are."""
    made = bench(rate(number, burst), workers=workers)
    now = 10**9
    first = made.wait([], now)
    assert first == 0
    whole = Bucket(round(1e9 * workers / number), math.ceil(burst / workers))
    whole.at = now * 1000
    whole.take(now * 1000)
    assert made.wait([], now) == whole.take(now * 1000)


# ---- adaptive concurrency --------------------------------------------------------------------------------------------


class Server:
    """So many requests at once, each of about `time` microseconds; the others wait in line. Events in order of time."""

    def __init__(self, made: _limits.Bench, slots: int, time: int, seed: int) -> None:
        self.made, self.slots, self.time = made, slots, time
        self.random = random.Random(seed)
        self.now = 0
        self.busy: list[tuple[int, int]] = []  # (end, begin)
        self.line: list[int] = []
        self.done = self.refused = 0
        self.limits: list[int] = []

    def serve(self, begin: int, at: int) -> None:
        heapq.heappush(self.busy, (at + int(self.time * self.random.uniform(0.8, 1.2)), begin))

    def until(self, time: int) -> None:
        while self.busy and self.busy[0][0] <= time:
            end, begin = heapq.heappop(self.busy)
            self.done += 1
            self.made.end(end - begin, end)
            if self.line:
                self.serve(self.line.pop(0), end)

    def load(self, every: int, seconds: float) -> None:
        end = self.now + int(seconds * SECOND)
        while self.now < end:
            self.now += every
            self.until(self.now)
            if self.made.refuses():
                self.refused += 1
                continue
            self.made.begin()
            self.limits.append(self.made.figures()["adaptive"]["limit"])
            if len(self.busy) < self.slots:
                self.serve(self.now, self.now)
            else:
                self.line.append(self.now)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("slots", "time"), [(4, 20_000), (40, 50_000)])
def test_an_adaptive_limit_finds_the_capacity(slots: int, time: int, seed: int) -> None:
    """Three times what a server can do: it is kept busy, with little more at once, and the rest is refused."""
    made = _limits.Bench()
    made.bound({**BOUNDS, "adaptive": {**ADAPTIVE, "min": 2, "probe": 2.0}})
    server = Server(made, slots, time, seed)
    every = time // slots // 3
    server.load(every, 3)
    done, server.limits = server.done, []
    server.load(every, 5)
    most = 5 * SECOND * slots / time
    assert server.done - done >= 0.9 * most
    assert sum(server.limits) / len(server.limits) < 2.2 * slots + 6, server.limits[::500]


def test_an_adaptive_limit_follows_a_server_that_gets_slower() -> None:
    made = _limits.Bench()
    made.bound({**BOUNDS, "adaptive": {**ADAPTIVE, "min": 2, "probe": 1.0}})
    server = Server(made, 20, 10_000, 1)
    server.load(200, 3)
    server.slots = 5
    server.load(200, 3)
    done, server.limits = server.done, []
    server.load(200, 3)
    assert sum(server.limits) / len(server.limits) < 25
    assert server.done - done >= 0.85 * 3 * SECOND * 5 / 10_000


def test_an_adaptive_limit_stays_within_its_bounds_and_does_not_grow_unused() -> None:
    made = _limits.Bench()
    made.bound({**BOUNDS, "adaptive": {**ADAPTIVE, "min": 15, "max": 30}})
    now = 0
    for _ in range(1000):  # one at a time
        now += 10_000
        made.begin()
        made.end(5_000, now)
    assert made.figures()["adaptive"]["limit"] == 20
    for number in range(3000):
        now += 10_000
        for _ in range(25):
            made.begin()
        for _ in range(25):
            made.end(5_000 if number < 1000 else 500_000, now)
        assert 15 <= made.figures()["adaptive"]["limit"] <= 30
    assert made.figures()["adaptive"]["shortest_us"] in (5_000, 500_000)
    made.bound(BOUNDS)
    assert "adaptive" not in made.figures()


# ---- watermarks ------------------------------------------------------------------------------------------------------


def test_marks() -> None:
    """Up at a mark, down a sixteenth below it."""
    made = _limits.Bench()
    seen = [made.weigh(used, 1600, 3200) for used in (0, 1599, 1600, 1501, 1500, 1499, 3200, 3001, 2999, 1500, 1400)]
    assert seen == [0, 0, 1, 1, 1, 0, 2, 2, 1, 1, 0]
    assert [made.weigh(1 << 40, soft, hard) for soft, hard in ((0, 0), (1, 0), (0, 1))] == [0, 1, 2]
