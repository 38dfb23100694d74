"""Slot allocation: the law "a ramp is monotone" and its neighbours, over long random sequences of ramps."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graylb.model.snapshot import SLOTS
from graylb.release.slots import Slots, allocate, default_salt

NAMES = ["v1", "v2", "v3", "v4", "commit-ä b:,%"]
Weights = dict[str, float]


def shares(weights: Weights) -> dict[str, Fraction]:
    total = sum(Fraction(str(weight)) for weight in weights.values())
    return {name: SLOTS * Fraction(str(weight)) / total for name, weight in weights.items() if weight}


def positive(weights: Weights) -> bool:
    return any(weights.values())


WEIGHT = st.one_of(st.just(0), st.integers(1, 5), st.floats(0, 100), st.sampled_from([0.01, 1e-9, 1e9]))
ANY_WEIGHTS = st.dictionaries(st.sampled_from(NAMES), WEIGHT, min_size=1).filter(positive)


@st.composite
def whole_weights(draw: st.DrawFn) -> Weights:
    """Percentages in steps of 0.01 that add up to 100: every quota is a whole number of slots."""
    cuts = sorted(draw(st.lists(st.integers(0, SLOTS), max_size=len(NAMES) - 1)))
    sizes = [high - low for low, high in zip([0, *cuts], [*cuts, SLOTS], strict=True)]
    names = draw(st.permutations(NAMES))
    return {name: size / 100 for name, size in zip(names, sizes, strict=False)}


WHOLE_WEIGHTS = whole_weights()
STABLE = st.sampled_from([None, *NAMES])


def moves(before: Slots, after: Slots) -> set[tuple[str, str]]:
    pairs = zip(before.owners(), after.owners(), strict=True)
    return {(old, new) for old, new in pairs if old != new}


@given(st.lists(ANY_WEIGHTS, min_size=1, max_size=12), STABLE)
def test_every_state_of_any_history_is_lawful(history: list[Weights], stable: str | None) -> None:
    slots = None
    for weights in history:
        slots = allocate(slots, weights, stable)
        quotas, counts = shares(weights), slots.counts()
        assert counts.keys() == quotas.keys()  # weight 0: none; any other: at least one
        assert sum(counts.values()) == SLOTS
        off = [counts[name] - quota for name, quota in quotas.items()]
        assert all(abs(each) < max(len(off), 1) for each in off)
        assert not (max(off) > 1 and min(off) < -1)
        assert Slots.parse(str(slots)) == slots
        assert sorted(set(slots.owners())) == sorted(counts)
        assert allocate(slots, weights, stable) == slots
        assert allocate(slots, dict(reversed(weights.items())), stable) == slots


@given(st.lists(WHOLE_WEIGHTS, min_size=2, max_size=8), STABLE)
def test_only_falling_shares_give_and_only_rising_ones_take(history: list[Weights], stable: str | None) -> None:
    before = allocate(None, history[0], stable)
    for old, new in itertools.pairwise(history):
        after = allocate(before, new, stable)
        fell = {name for name in NAMES if shares(old).get(name, 0) > shares(new).get(name, 0)}
        rose = {name for name in NAMES if shares(old).get(name, 0) < shares(new).get(name, 0)}
        assert {giver for giver, _ in moves(before, after)} == fell
        assert {taker for _, taker in moves(before, after)} == rose
        assert after.counts() == {name: quota for name, quota in shares(new).items() if quota}
        before = after


@given(st.lists(ANY_WEIGHTS, min_size=2, max_size=8), STABLE)
def test_with_uneven_quotas_strays_are_fewer_than_versions(history: list[Weights], stable: str | None) -> None:
    before = allocate(None, history[0], stable)
    for old, new in itertools.pairwise(history):
        after = allocate(before, new, stable)
        change = {name: shares(new).get(name, 0) - shares(old).get(name, 0) for name in NAMES}
        gained = {name: after.counts().get(name, 0) - before.counts().get(name, 0) for name in NAMES}
        # What a version takes against the direction of its share is what rounding left over, never more.
        assert sum(n for name, n in gained.items() if change[name] <= 0 and n > 0) < len(NAMES)
        assert sum(-n for name, n in gained.items() if change[name] >= 0 and n < 0) < len(NAMES)
        resting = {name for name in NAMES if change[name] == 0}
        assert not [pair for pair in moves(before, after) if set(pair) <= resting]
        before = after


@given(ANY_WEIGHTS, STABLE, st.data())
def test_nobody_gives_and_takes_in_one_step(weights: Weights, stable: str | None, data: st.DataObject) -> None:
    before = allocate(None, weights, stable)
    pairs = moves(before, allocate(before, data.draw(ANY_WEIGHTS), stable))
    assert not {giver for giver, _ in pairs} & {taker for _, taker in pairs}


@given(WHOLE_WEIGHTS, st.lists(st.integers(1, SLOTS), min_size=1, max_size=10), STABLE)
@example({"v3": 0.01, "v1": 0.09, "v4": 1.75}, [1, 2], "v3")
def test_raising_one_version_moves_callers_only_into_it(base: Weights, steps: list[int], stable: str | None) -> None:
    base = {**base, "v2": 0} if len([w for w in base.values() if w]) > 1 else {"v1": 60, "v3": 40}
    whole = sum(base.values())
    slots = allocate(None, base, stable)
    for percent in sorted(steps):
        share = percent / SLOTS
        weights = {name: weight * (1 - share) for name, weight in base.items()} | {"v2": whole * share}
        after = allocate(slots, weights, stable)
        # nobody else takes, but who gave a slot to a tiny version and has been a whole one below its due since then
        for other in {taker for _, taker in moves(slots, after)} - {"v2"}:
            due = SLOTS * weights[other] / sum(weights.values())
            assert slots.counts()[other] <= due - 1 + 1e-6
            assert after.counts()[other] <= due
        slots = after
    assert "v2" in slots.counts()


@pytest.mark.parametrize("ramp", [[1, 5, 20, 50, 100], [0.01, 0.02, 0.05, 0.06, 0.1, 0.3, 1, 99.99, 100]])
def test_a_ramp_never_flips_anyone_back(ramp: list[float]) -> None:
    slots = allocate(None, {"v1": 100}, "v1")
    on_v2: set[int] = set()
    for percent in ramp:
        slots = allocate(slots, {"v1": 100 - percent, "v2": percent}, "v1")
        now = {slot for slot, owner in enumerate(slots.owners()) if owner == "v2"}
        assert now >= on_v2
        assert len(now) == round(percent * 100)
        on_v2 = now


@given(WHOLE_WEIGHTS.filter(lambda w: w.get("v1", 0) > 0.01 and not w.get("v3")), st.integers(1, SLOTS))
def test_adding_a_version_takes_from_the_stable_only(weights: Weights, size: int) -> None:
    before = allocate(None, weights, "v1")
    size = min(size, round(weights["v1"] * 100))
    grown = {**weights, "v1": (round(weights["v1"] * 100) - size) / 100, "v3": size / 100}
    assert moves(before, allocate(before, grown, "v1")) == {("v1", "v3")}


@given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-9, 0.001))
def test_a_new_tiny_version_takes_its_slot_from_the_stable(one: int, two: int, tiny: float) -> None:
    weights = {"v1": one, "v2": two, "v3": 3}
    for stable in weights:
        before = allocate(None, weights, stable)
        lowered = {**weights, stable: weights[stable] - tiny, "v4": tiny}
        taken = moves(before, allocate(before, lowered, stable))
        assert taken == {(stable, "v4")}


@given(st.lists(WHOLE_WEIGHTS, min_size=1, max_size=10), STABLE)
def test_the_opposite_steps_give_everyone_back(history: list[Weights], stable: str | None) -> None:
    states = [allocate(None, history[0], stable)]
    for weights in history[1:]:
        states.append(allocate(states[-1], weights, stable))
    slots = states[-1]
    for state, weights in zip(reversed(states[:-1]), reversed(history[:-1]), strict=True):
        slots = allocate(slots, weights, stable)
        assert slots == state


@settings(max_examples=40)
@given(st.lists(WHOLE_WEIGHTS, min_size=1, max_size=4), st.sampled_from(NAMES))
def test_lifo_against_stacks_moved_one_slot_at_a_time(history: list[Weights], stable: str) -> None:
    order = sorted(NAMES, key=lambda name: (name != stable, name))
    stacks: dict[str, list[int]] = {name: [] for name in NAMES}
    heaviest = min(NAMES, key=lambda name: (-history[0].get(name, 0), name))
    stacks[stable if history[0].get(stable) else heaviest] = list(range(SLOTS))
    slots = None
    for weights in history:
        target = {name: round(weights.get(name, 0) * 100) for name in NAMES}
        moving = []
        for name in order:
            while len(stacks[name]) > target[name]:
                moving.append(stacks[name].pop())
        moving.reverse()
        for name in reversed(order):
            while len(stacks[name]) < target[name]:
                stacks[name].append(moving.pop())
        slots = allocate(slots, weights, stable)
        assert slots == Slots.of({name: [(slot, slot) for slot in stack] for name, stack in stacks.items()})


def test_lowering_gives_back_the_most_recently_taken_first() -> None:
    first = allocate(None, {"v1": 95, "v2": 5}, "v1")
    more = allocate(first, {"v1": 90, "v2": 10}, "v1")
    third = allocate(more, {"v1": 85, "v2": 10, "v3": 5}, "v1")
    assert str(third) == "v1:0-8499 v2:9999-9000 v3:8999-8500"
    lowered = allocate(third, {"v1": 90, "v2": 5, "v3": 5}, "v1")
    owners = lowered.owners()
    assert {slot for slot, owner in enumerate(owners) if owner == "v2"} == set(range(9500, 10000))
    assert str(lowered) == "v1:0-8499,9000-9499 v2:9999-9500 v3:8999-8500"


def test_the_first_allocation_is_a_ramp_from_the_stable_version() -> None:
    assert str(allocate(None, {"v2": 5, "v1": 95}, "v1")) == "v1:0-9499 v2:9999-9500"
    assert str(allocate(None, {"v2": 5, "v1": 95})) == "v1:0-9499 v2:9999-9500"
    assert str(allocate(None, {"v2": 1}, "v1")) == "v2:0-9999"
    assert allocate(None, {"a": 1, "b": 1, "c": 1}, "b").counts() == {"a": 3333, "b": 3334, "c": 3333}


def test_thirds_return_to_the_same_callers() -> None:
    slots = allocate(None, {"v1": 2, "v2": 1}, "v1")
    assert allocate(allocate(slots, {"v1": 1, "v2": 1}, "v1"), {"v1": 2, "v2": 1}, "v1") == slots


def test_float_noise_moves_no_slot() -> None:
    slots = allocate(None, {"v1": 99.7, "v2": 0.3}, "v1")
    assert allocate(slots, {"v1": 99.7, "v2": 0.1 + 0.2}, "v1") == slots


@given(st.permutations(range(60)), st.integers(0, 5))
def test_text_form_keeps_the_order_of_acquisition(order: list[int], joins: int) -> None:
    runs = [(slot, slot) for slot in order]
    rest = [(9999, 60)] if joins % 2 else [(60, 9999)]
    slots = Slots.of({"a b": runs[: joins * 10], "v1": runs[joins * 10 :] + rest})
    parsed = Slots.parse(str(slots))
    assert parsed == slots
    text_order = [slot for first, last in parsed.stacks[-1][1] for slot in walk(first, last)]
    assert text_order == [*order[joins * 10 :], *walk(*rest[0])]


def walk(first: int, last: int) -> range:
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


def test_parse_makes_runs_as_long_as_possible() -> None:
    assert str(Slots.parse(" v2:9999-9000,8999,8998-8000\nv1:0,1,2-7999 ")) == "v1:0-7999 v2:9999-8000"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "slot 0 has no owner"),
        ("v1:0-9998", "slot 9999 has no owner"),
        ("v1:0-9999 v2:5", "slot 5 of version 'v2' already has an owner"),
        ("v1:0-9999,7", "slot 7 of version 'v1' already has an owner"),
        ("v1:0-10000", "slot 10000 of version 'v1' does not exist"),
        ("v1:0-5000 v1:5001-9999", "'v1' is named twice"),
        ("v1", "cannot read 'v1'"),
        (":0-9999", "cannot read ':0-9999'"),
        ("v1:", "cannot read 'v1:'"),
        ("v1:0--1", "cannot read the run '0--1'"),
        ("v1:a-b", "cannot read the run 'a-b'"),
        ("v1:0-9999,", "cannot read the run ''"),
        ("%ff:0-9999", "not percent-escaped UTF-8"),
    ],
)
def test_parse_errors_say_what_and_what_was_expected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*; expected"):
        Slots.parse(text)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({}, "no version has a weight"),
        ({"v1": 0, "v2": 0.0}, "no version has a weight"),
        ({"v1": -1, "v2": 2}, "'v1': -1"),
        ({"v1": float("nan")}, "'v1': nan"),
        ({"v1": float("inf")}, "'v1': inf"),
        ({"": 1}, "'': 1"),
        ({str(n): 1.0 for n in range(SLOTS + 1)}, "10001 versions"),
    ],
)
def test_bad_weights_say_what_was_expected(weights: Weights, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*expected"):
        allocate(None, weights)


def test_as_many_versions_as_slots() -> None:
    rng = random.Random(1)
    weights = {f"v{n}": rng.random() for n in range(200)}
    counts = allocate(allocate(None, weights), {**weights, "v7": 1e9}).counts()
    assert counts.pop("v7") == SLOTS - 199
    assert set(counts.values()) == {1}


def test_a_release_has_its_own_salt_and_keeps_it_in_flight() -> None:
    first = default_salt("users", None, {"v1": 95, "v2": 5}, None)
    assert default_salt("users", {"v1": 95, "v2": 5}, {"v1": 50, "v2": 45, "v3": 5}, first) == first
    assert default_salt("users", {"v1": 95, "v2": 5}, {"v1": 0, "v2": 100}, first) == first
    assert default_salt("users", {"v2": 100}, {"v2": 7}, first) == first
    second = default_salt("users", {"v1": 0, "v2": 100}, {"v2": 95, "v3": 5}, first)
    again = default_salt("users", {"v1": 1}, {"v2": 5, "v1": 95}, second)
    others = {default_salt(name, None, {"v1": 95, "v2": 5}, None) for name in ("orders", "users/ab")}
    assert len({first, second, *others}) == 4
    assert again == first  # the same release tried again draws the same cohort
