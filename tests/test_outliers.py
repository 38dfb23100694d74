"""Outlier ejection and slow start against an obvious oracle, with time as an argument (ms)."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from graylb._outliers import Trial
from graylb.errors import BY_REASON
from graylb.model.snapshot_health import Latency, Outliers, SlowStart, SuccessRate

ILL, EJECTED, WARMING = 1, 2, 4
RESET = -1 - BY_REASON["upstream-reset"].code
GATEWAY = (RESET, 502, 503, 504)


def service(outliers: Outliers, slow: SlowStart | None = None) -> dict[str, Any]:
    return {
        "name": "users",
        "outliers": asdict(outliers),
        "slow_start": asdict(slow) if slow is not None else None,
    }


# ---- the oracle ------------------------------------------------------------------------------------------------------


@dataclass
class Known:
    version: str
    since: int | None  # slow start
    weight: int = 100
    ill: bool = False
    answers: list[int] = field(default_factory=list)  # since it is in
    times: list[tuple[int, int]] = field(default_factory=list)  # of its ejections: from, to
    seen: list[tuple[int, int]] = field(default_factory=list)  # of the interval: status, us

    def out(self, now: int) -> bool:
        return bool(self.times) and self.times[-1][1] > now


class Oracle:
    """Keeps everything that ever happened and counts it anew each time."""

    def __init__(self, outliers: Outliers, slow: SlowStart | None) -> None:
        self.o, self.slow = outliers, slow
        self.known: dict[str, Known] = {}
        self.began: dict[str, int] = {}
        self.now = 0
        self.first = True

    def table(self, instances: list[tuple[str, str, int]], now: int) -> None:
        former, self.known = self.known, {}
        for address, version, weight in instances:
            known = former.get(address)
            if known is None or known.version != version:
                known = Known(version, now if weight and self.slow and not self.first else None)
            elif not weight:  # judged no more
                known = Known(version, None, ill=known.ill)
            known.weight = weight
            self.known[address] = known
        versions = {known.version for known in self.known.values() if known.weight}
        self.began = {version: self.began.get(version, now) for version in versions}
        self.first = False

    def answered(self, address: str, status: int, now: int, us: int) -> None:
        known = self.known[address]
        if not known.weight or known.out(now) or not self.watched:
            return
        known.answers.append(status)
        known.seen.append((status, us))
        for limit, counts in (
            (self.o.consecutive_gateway_failures, lambda each: each in GATEWAY),
            (self.o.consecutive_5xx, lambda each: not 0 <= each < 500),
        ):
            run = 0
            for each in reversed(known.answers):
                if not counts(each):
                    break
                run += 1
            if limit and counts(status) and run >= limit and self.eject(address, now):
                return

    @property
    def watched(self) -> bool:
        o = self.o
        return o.max_ejection_percent > 0 and bool(
            o.consecutive_gateway_failures or o.consecutive_5xx or o.success_rate or o.latency
        )

    def eject(self, address: str, now: int) -> bool:
        known = self.known[address]
        siblings = {a: k for a, k in self.known.items() if k.version == known.version and k.weight}
        others = sum(k.ill or k.out(now) for a, k in siblings.items() if a != address)
        share = Fraction(others + 1, len(siblings)) <= Fraction(self.o.max_ejection_percent, 100)
        if not share and not (others == 0 and len(siblings) > 1):
            return False
        row, last = 0, 0
        for begin, end in [*known.times, (now, 0)]:
            row = max(0, row - (begin - last) // round(self.o.interval * 1000)) + 1
            last = end
        seconds = min(self.o.base_ejection_time * row, self.o.max_ejection_time)
        known.times.append((now, now + round(seconds * 1000)))
        return True

    def tick(self, now: int) -> None:
        for known in self.known.values():
            if known.times and self.now < known.times[-1][1] <= now:
                known.answers, known.seen = [], []
                known.times[-1] = known.times[-1][0], now  # it ends when it is looked at
                known.since = now if self.slow else None
        for version, began in self.began.items():
            if (self.o.success_rate or self.o.latency) and now >= began + round(self.o.interval * 1000):
                self.judge(version, now)
                self.began[version] = now
        self.now = now

    def judge(self, version: str, now: int) -> None:
        inside = {a: k for a, k in self.known.items() if k.version == version and k.weight}
        candidates = {a: k for a, k in inside.items() if not k.out(now)}
        if (rate := self.o.success_rate) is not None:
            rates = {
                a: Fraction(sum(0 <= s < 500 for s, _ in k.seen) * 100, len(k.seen))
                for a, k in candidates.items()
                if len(k.seen) >= rate.requests
            }
            if len(rates) >= rate.instances:
                bound = float(statistics.mean(rates.values()))
                bound -= rate.stdev_factor * float(statistics.pvariance(rates.values())) ** 0.5
                for a in sorted(rates, key=lambda a: rates[a]):
                    if float(rates[a]) < bound - 1e-9:
                        self.eject(a, now)
        if (slow := self.o.latency) is not None:
            took = {a: [us for _, us in k.seen if us] for a, k in candidates.items()}
            means = {a: sum(all_) / len(all_) for a, all_ in took.items() if len(all_) >= slow.requests}
            if len(means) >= slow.instances:
                for a in sorted(means, key=lambda a: -means[a]):
                    others = statistics.median([mean for b, mean in means.items() if b != a])
                    if means[a] > slow.factor * others and not self.known[a].out(now):
                        self.eject(a, now)
        for k in inside.values():
            k.seen = []

    def ill(self, address: str, ill: bool, now: int) -> None:
        known = self.known[address]
        if known.ill and not ill and self.slow and known.weight:
            known.since = now
        known.ill = ill

    def marks(self, now: int) -> dict[str, int]:
        return {a: ILL * k.ill + EJECTED * k.out(now) + WARMING * self.warming(k, now) for a, k in self.known.items()}

    def warming(self, known: Known, now: int) -> bool:
        return self.slow is not None and known.since is not None and now - known.since < self.slow.window * 1000

    def parts(self, now: int) -> dict[str, float]:
        found = {}
        for a, k in self.known.items():
            found[a] = 1.0
            if self.warming(k, now):
                assert self.slow is not None
                assert k.since is not None
                grown = ((now - k.since) / (self.slow.window * 1000)) ** (1 / self.slow.aggression)
                found[a] = max(grown, self.slow.min_percent / 100)
        return found


# ---- what happens ----------------------------------------------------------------------------------------------------

RUNS = {"consecutive_gateway_failures": st.integers(0, 3), "consecutive_5xx": st.integers(0, 4)}
NO_RUNS = {"consecutive_gateway_failures": st.just(0), "consecutive_5xx": st.just(0)}
OUTLIERS = st.sampled_from([RUNS, NO_RUNS]).flatmap(lambda runs: st.builds(Outliers, **runs, **OTHERS))
OTHERS: dict[str, Any] = {
    "success_rate": st.none()
    | st.builds(SuccessRate, st.integers(2, 4), st.integers(1, 2), st.sampled_from([0.5, 0.9, 1.3, 1.9])),
    "latency": st.none() | st.builds(Latency, st.integers(2, 4), st.integers(1, 2), st.sampled_from([1.1, 2.0, 3.0])),
    "interval": st.sampled_from([1.0, 10.0]),
    "base_ejection_time": st.sampled_from([1.0, 3.0, 30.0]),
    "max_ejection_time": st.sampled_from([30.0, 45.0, 300.0]),
    "max_ejection_percent": st.sampled_from([0, 10, 50, 50, 67, 100]),
}
SLOW = st.none() | st.builds(
    SlowStart, st.sampled_from([0.5, 5.0, 30.0]), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([1, 10, 100])
)
ADDRESSES = "abcdef"
INSTANCES = st.lists(
    st.tuples(st.sampled_from(["v1", "v1", "v2"]), st.sampled_from([100, 100, 7, 0])), min_size=3, max_size=6
).map(lambda found: [(address, *each) for address, each in zip(ADDRESSES, found, strict=False)])
STATUSES = st.sampled_from([200, 200, 404, 500, 502, 503, 504, 599, RESET])
TIMES = st.sampled_from([0, 900, 1000, 1000, 5000])
ANSWERS = st.tuples(st.just("answers"), st.sampled_from(ADDRESSES), STATUSES, st.integers(1, 5), TIMES)
ROUND = st.tuples(st.just("round"), st.lists(st.tuples(STATUSES, TIMES), min_size=6, max_size=6), st.integers(1, 5))
WAIT = st.tuples(st.just("wait"), st.sampled_from([1, 200, 999, 1000, 5000, 40_000]))
ILLNESS = st.tuples(st.just("ill"), st.sampled_from(ADDRESSES), st.booleans())
TABLE = st.tuples(st.just("table"), INSTANCES)
EVENTS = st.lists(
    st.sampled_from([ANSWERS, ANSWERS, ROUND, ROUND, ROUND, WAIT, WAIT, ILLNESS, TABLE]).flatmap(lambda each: each),
    min_size=5,
    max_size=30,
)


@settings(max_examples=250, deadline=None)
@given(OUTLIERS, SLOW, INSTANCES, EVENTS)
def test_everything_is_as_the_oracle_has_it(
    outliers: Outliers, slow: SlowStart | None, instances: list[tuple[str, str, int]], events: list[Any]
) -> None:
    trial, oracle, now = Trial(service(outliers, slow)), Oracle(outliers, slow), 1_000_000
    oracle.now = now
    trial.table(instances, now)
    oracle.table(instances, now)
    for kind, *what in events:
        if kind == "table":
            trial.table(what[0], now)
            oracle.table(what[0], now)
        elif kind == "wait":
            now += what[0]
            trial.tick(now)
            oracle.tick(now)
        elif kind == "ill":
            if what[0] in oracle.known:
                trial.ill(what[0], what[1], now)
                oracle.ill(what[0], what[1], now)
        else:
            asked = (
                [what]
                if kind == "answers"
                else [(address, status, what[1], us) for address, (status, us) in zip(ADDRESSES, what[0], strict=True)]
            )
            for address, status, times, us in asked:
                for _ in range(times if address in oracle.known else 0):
                    trial.answered(address, status, now, us)
                    oracle.answered(address, status, now, us)
        wanted = oracle.marks(now)
        assert trial.marks() == wanted, (kind, what)
        assert [round(each / 65536, 3) for each in trial.parts().values()] == pytest.approx(
            list(oracle.parts(now).values()), abs=0.002
        )
        told = {each["address"]: (each["times"], each["seconds"]) for each in trial.told(now)}
        assert set(told) == {address for address, marks in wanted.items() if marks & EJECTED}
        for address, (_, seconds) in told.items():
            assert seconds == (oracle.known[address].times[-1][1] - now) / 1000
        for each in trial.counted():
            for reason in each["ejections"]:
                event(reason)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.sampled_from([10, 34, 50, 90, 100]), st.data())
def test_ejection_never_takes_more_than_its_share_and_never_the_last(n: int, percent: int, data: st.DataObject) -> None:
    trial = Trial(service(Outliers(consecutive_5xx=1, max_ejection_percent=percent)))
    names = [str(each) for each in range(n)]
    trial.table([(name, "v1", 100) for name in names], 0)
    sick = data.draw(st.sets(st.sampled_from(names), max_size=n))
    for name in sick:
        trial.ill(name, True, 0)
    for name in data.draw(st.permutations(names)):
        trial.answered(name, 500, 1)
    marks = trial.marks().values()
    ejected = sum(bool(each & EJECTED) for each in marks)
    out = sum(bool(each & 3) for each in marks)
    if ejected > 1 or (ejected and n == 1):
        assert out * 100 <= percent * n
    if not sick and percent < 100:
        assert ejected == (max(1, n * percent // 100) if n > 1 else 0)
    if percent < 100:
        assert n - ejected > 0


# ---- the table of _outliers.pyx, row by row --------------------------------------------------------------------------

THREE = [("a", "v1", 100), ("b", "v1", 100), ("c", "v1", 100)]


def trial_of(outliers: Outliers, instances: list[tuple[str, str, int]] = THREE, **more: Any) -> Trial:
    made = Trial(service(outliers, **more))
    made.table(instances, 0)
    return made


def test_by_default_five_gateway_failures_eject_and_other_errors_do_not() -> None:
    trial = trial_of(Outliers())
    for _ in range(50):
        trial.answered("b", 500, 0)
    for status in (502, 503, 504, RESET):
        trial.answered("a", status, 0)
    assert not any(trial.marks().values())
    trial.answered("a", 503, 0)
    assert trial.marks() == {"a": EJECTED, "b": 0, "c": 0}
    (told,) = trial.told(0)
    assert (told["reason"], told["why"]) == ("gateway-failures", "5 gateway failures in a row, 503 the last")
    assert (told["times"], told["seconds"]) == (1, 30)


@pytest.mark.parametrize("between", [200, 404, 500])
def test_what_is_no_gateway_failure_ends_the_run(between: int) -> None:
    trial = trial_of(Outliers())
    for status in (503, 503, 503, 503, between, 503, 503, 503, 503):
        trial.answered("a", status, 0)
    assert not any(trial.marks().values())


def test_the_time_grows_with_each_ejection_up_to_its_bound_and_is_forgiven_by_intervals() -> None:
    trial = trial_of(Outliers(consecutive_5xx=1, max_ejection_time=100.0))
    now, spans = 0, []
    for _ in range(5):
        trial.answered("a", 500, now)
        seconds = trial.told(now)[0]["seconds"]
        spans.append(seconds)
        trial.tick(now + round(seconds * 1000) - 1)
        assert trial.marks()["a"] == EJECTED
        now += round(seconds * 1000)
        trial.tick(now)
        assert trial.marks()["a"] == 0
    assert spans == [30, 60, 90, 100, 100]
    trial.answered("a", 500, now + 30_000)  # three intervals without
    assert trial.told(now + 30_000)[0]["times"] == 3


def test_one_that_is_back_begins_with_nothing_against_it() -> None:
    trial = trial_of(Outliers())
    for _ in range(9):
        trial.answered("a", 503, 0)
    trial.tick(30_000)
    for _ in range(4):
        trial.answered("a", 503, 30_000)
    assert trial.marks()["a"] == 0


def test_what_arrives_while_it_is_ejected_does_not_make_it_worse() -> None:
    trial = trial_of(Outliers())
    for now in range(0, 25_000, 100):
        trial.answered("a", 503, now)
    (told,) = trial.told(25_000)
    assert (told["times"], told["seconds"]) == (1, 5 + 0.4)


def test_the_worst_rate_goes_first_where_the_share_has_room_for_one() -> None:
    rate = SuccessRate(instances=3, requests=10, stdev_factor=0.5)
    instances = [(name, "v1", 100) for name in "abcd"]
    trial = trial_of(Outliers(success_rate=rate, max_ejection_percent=25), instances)
    for name, bad in (("a", 0), ("b", 8), ("c", 9), ("d", 0)):
        for each in range(10):
            trial.answered(name, 500 if each < bad else 200, 0)
    trial.tick(10_000)
    assert trial.marks() == {"a": 0, "b": 0, "c": EJECTED, "d": 0}
    assert trial.told(10_000)[0]["why"].startswith("a success rate of 10.0 %, below ")
    assert trial.counted() == [{"service": "users", "version": "v1", "spared": 1, "ejections": {"success-rate": 1}}]


def test_equal_rates_are_no_outliers_however_they_are_rounded() -> None:
    rate = SuccessRate(instances=2, requests=1, stdev_factor=0.1)
    instances = [(str(each), "v1", 100) for each in range(7)]
    trial = trial_of(Outliers(success_rate=rate), instances)
    for name, _, _ in instances:
        for status in (200, 200, 500):
            trial.answered(name, status, 0)
    trial.tick(10_000)
    assert not any(trial.marks().values())


def test_one_that_takes_three_times_as_long_as_its_siblings_is_ejected() -> None:
    trial = trial_of(Outliers(latency=Latency(requests=10)))
    for name, us in (("a", 1000), ("b", 3500), ("c", 1100)):
        for _ in range(10):
            trial.answered(name, 200, 0, us)
    trial.tick(10_000)
    assert trial.marks() == {"a": 0, "b": EJECTED, "c": 0}
    assert trial.told(10_000)[0]["why"] == "3.5 ms to answer, its siblings 1.1 ms"


def test_another_version_is_no_sibling() -> None:
    trial = trial_of(Outliers(), [("a", "v1", 100), ("b", "v2", 100)])
    for _ in range(9):
        trial.answered("a", RESET, 0)
    assert not any(trial.marks().values())


def test_switched_off_everybody_is_back() -> None:
    trial = trial_of(Outliers())
    for _ in range(5):
        trial.answered("a", 503, 0)
    trial.table(THREE, 1)
    assert trial.marks()["a"] == EJECTED
    trial.service = service(Outliers(consecutive_gateway_failures=0))
    trial.table(THREE, 2)
    assert not any(trial.marks().values())


def test_what_changes_in_the_service_ends_no_interval() -> None:
    outliers = Outliers(latency=Latency(requests=2))
    trial = trial_of(outliers)
    for now in range(0, 10_000, 500):
        trial.service = service(replace(outliers, base_ejection_time=1.0 + now))
        trial.table(THREE, now)
        for name in "abc":
            trial.answered(name, 200, now, 9000 if name == "c" else 1000)
        trial.tick(now)
    trial.tick(10_000)
    assert trial.marks()["c"] == EJECTED


def test_instances_of_the_first_table_are_not_new_and_later_ones_are() -> None:
    trial = trial_of(Outliers(), slow=SlowStart(10.0))
    assert not any(trial.marks().values())
    trial.table([*THREE, ("d", "v1", 100)], 0)
    assert trial.marks() == {"a": 0, "b": 0, "c": 0, "d": WARMING}
    grown = []
    for now in range(0, 10_001, 2500):
        trial.tick(now)
        grown.append(round(trial.parts()["d"] / 65536, 2))
    assert grown == [0.1, 0.25, 0.5, 0.75, 1.0]
    assert trial.marks()["d"] == 0
