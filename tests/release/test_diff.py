"""What differs is told, nothing else is, and the share of callers that moves is what the oracle counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb.model.snapshot import (
    SLOTS,
    Condition,
    Instance,
    Limits,
    Listener,
    Match,
    Route,
    Rule,
    Service,
    Snapshot,
    Split,
    StickyKey,
    Subset,
    Timeouts,
)
from graylb.release.diff import Diff, diff
from graylb.release.shares import NOBODY, mixed, served, shift
from graylb.release.slots import Slots, allocate
from tests import oracle, strategies

KEY = StickyKey("header", "x-user-id")
INSTANCES = tuple(Instance(f"127.0.0.1:900{n}", f"v{n}") for n in (1, 2, 3))


def split(former: Split | None = None, salt: str = "s", **weights: float) -> Split:
    slots = allocate(Slots.parse(former.slots) if former else None, weights, "v1")
    return Split(tuple(weights.items()), salt, str(slots))


def users(**more: Any) -> Service:
    return Service(**{"name": "users", "stable": "v1", "split": None, "sticky": (KEY,), "instances": INSTANCES, **more})


def snapshot(*services: Service, **more: Any) -> Snapshot:
    routes = tuple(Route(each.name, "*", "prefix", f"/{each.name}", service=each.name) for each in services)
    return Snapshot(
        **{"revision": 1, "listeners": (Listener("127.0.0.1:1"),), "routes": routes, "services": services, **more}
    )


def texts(old: Service, new: Service) -> list[str]:
    return [change.text for change in diff(snapshot(old), snapshot(new)).changes]


# -- shares ------------------------------------------------------------------------------------------------------------

SHARES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1).map(
    lambda weights: {name: weight / sum(weights.values()) for name, weight in weights.items()}
)


@given(SHARES, SHARES)
def test_a_shift_leads_from_the_one_to_the_other_and_moves_as_little_as_can_be(
    before: dict[str, float], after: dict[str, float]
) -> None:
    moves = shift(before, after)
    for side, shares in enumerate((before, after)):
        sums: dict[str, float] = {}
        for pair, share in moves.items():
            sums[pair[side]] = sums.get(pair[side], 0.0) + share
        assert sums == pytest.approx(shares)
    least = sum(max(0.0, share - after.get(name, 0.0)) for name, share in before.items())
    assert sum(share for (a, b), share in moves.items() if a != b) == pytest.approx(least)


@pytest.mark.parametrize("seed", range(3))
def test_what_answers_is_what_the_oracle_settles_on(seed: int) -> None:
    for each, _ in strategies.random_cases(seed, 60, 0):
        for service in each.services:
            for subset in strategies.SUBSETS if service.instances else ():
                wanted = oracle.settle(service, subset, service.fallback)
                got = served(service, subset)
                versions = {i.version for i in service.instances if i.address in wanted.candidates}
                assert got.keys() == (versions or {NOBODY})
                assert sum(got.values()) == pytest.approx(1)


def test_a_draw_of_several_versions_is_answered_by_all_of_them() -> None:
    assert mixed({"v1": 3, "v2": 1}, {"v1": {"v1": 1.0}, "v2": {"v1": 0.5, "v3": 0.5}}) == {"v1": 0.875, "v3": 0.125}


# -- callers -----------------------------------------------------------------------------------------------------------


WEIGHTS = st.dictionaries(
    st.sampled_from(["v1", "v2", "v3", "v9"]), st.sampled_from([1, 5, 20, 50, 95, 0.5]), min_size=1
)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, WEIGHTS, st.sampled_from(["stable", "strict"]), st.booleans())
def test_the_share_of_callers_that_move_is_exact(
    a: dict[str, float], b: dict[str, float], fallback: Any, none: bool
) -> None:
    first = split(**a)
    old = users(split=None if none else first, fallback=fallback)
    new = users(split=split(first, **b), fallback=fallback)
    found = diff(snapshot(old), snapshot(new)).callers
    moved: dict[tuple[str, str], int] = {}
    before, after = (answers_by_slot(service) for service in (old, new))
    for pair in zip(before, after, strict=True):
        if pair[0] != pair[1]:
            moved[pair] = moved.get(pair, 0) + 1
    if not moved:
        assert found == ()
        return
    (callers,) = found
    assert callers.exact
    assert {(x, y): share * SLOTS for x, y, share in callers.moves} == pytest.approx(moved)


def answers_by_slot(service: Service) -> list[str]:
    """The version that answers the callers of each slot, by the oracle."""
    owners = [service.stable] * SLOTS if service.split is None else Slots.parse(service.split.slots).owners()
    settled = {each: oracle.settle(service, Subset(each), service.fallback).version or NOBODY for each in set(owners)}
    return [settled[owner] for owner in owners]


def callers(old: Service, new: Service) -> Any:
    found = diff(snapshot(old), snapshot(new)).callers
    assert len(found) <= 1
    return found[0] if found else None


def test_callers_that_are_drawn_anew() -> None:
    before, after = users(split=split(v1=80, v2=20)), users(split=split(salt="other", v1=80, v2=20))
    found = callers(before, after)
    assert (found.exact, found.moved) == (False, pytest.approx(0.32))
    assert "the salt differs" in found.note
    found = callers(before, users(split=before.split, sticky=(StickyKey("cookie", "uid"),)))
    assert (found.exact, found.moved) == (False, pytest.approx(0.32))
    assert "the sticky key differs" in found.note
    # a salt of a split that has one version decides nothing
    assert callers(users(split=split(v1=1)), users(split=split(salt="other", v1=95, v2=5))).exact


def test_requests_without_a_sticky_key_are_told_as_such() -> None:
    found = callers(users(split=split(v1=80, v2=20), sticky=()), users(split=split(v1=50, v2=50), sticky=()))
    assert (found.exact, found.moves) == (False, (("v1", "v2", pytest.approx(0.3)),))
    assert "lack of a sticky key" in found.note


def test_callers_move_when_instances_come() -> None:
    half = split(v1=50, v2=50)
    before = users(split=half, instances=INSTANCES[:1])
    assert callers(before, users(split=half)).moves == (("v1", "v2", 0.5),)
    found = callers(users(split=half), before)
    assert found.note == "v2 has no instance: v1 instead"
    # where no instance is known at all they may be known elsewhere
    assert callers(users(split=None, instances=()), users(split=half, instances=())).moves == (("v1", "v2", 0.5),)


def test_callers_of_a_rules_own_split() -> None:
    match = Match((Condition("query", "exact", ("a",), "exp"),))
    first = split(v1=50, v2=50)
    old, new = (users(rules=(Rule("ab", match, split=each),)) for each in (first, split(first, v1=40, v2=60)))
    found = callers(old, new)
    assert (found.rule, found.moves) == ("ab", (("v1", "v2", 0.1),))
    assert texts(old, new) == [
        "rule ab: split v1 50 → 40, v2 50 → 60",
        "rule ab: moved slots 1,000 (10.00 %): v1 → v2 1,000",
    ]


# -- what is told ------------------------------------------------------------------------------------------------------


def test_words() -> None:
    first = split(v1=95, v2=5)
    match = Match((Condition("header", "exact", ("beta",), "user-group"),))
    old = users(
        split=first,
        rules=(
            Rule("testers", match, Subset("v2")),
            Rule("old", Match(), Subset("v1")),
            Rule("z", match, Subset("v3")),
        ),
        lists=(("staff", ("a", "b")), ("gone", ("x",))),
    )
    new = users(
        split=split(first, v1=90, v2=10),
        rules=(
            Rule("z", match, Subset("v3")),
            Rule("testers", Match((), ((match.all[0],),)), Subset(semver=">=2"), priority=3, fallback="strict"),
            Rule("new", match, split=split(v1=1, v3=1)),
        ),
        lists=(("staff", ("b", "c", "d")),),
        sticky=(KEY, StickyKey("client_ip")),
        instances=(
            INSTANCES[0],
            dataclasses.replace(INSTANCES[1], weight=50, metadata=(("env", "gray"),)),
            Instance("[::1]:1", "v4", 7),
        ),
        timeouts=Timeouts(connect=2.5),
    )
    assert texts(old, new) == [
        "split v1 95 → 90, v2 5 → 10",
        "moved slots 500 (5.00 %): v1 → v2 500",
        'rule testers: match header user-group exact "beta" → not (header user-group exact "beta")',
        'rule testers: to version v2 → semver ">=2"',
        "rule testers: priority 0 → 3",
        "rule testers: fallback the service's → strict",
        "rule old removed: every request → version v1",
        'rule new added: header user-group exact "beta" → split v1 1, v3 1',
        "rules are asked in another order: z, testers",
        "instance 127.0.0.1:9002: weight 100 → 50",
        "instance 127.0.0.1:9002: metadata none → env=gray",
        "instance 127.0.0.1:9003 removed (v3)",
        "instance [::1]:1 added (v4, weight 7)",
        "list staff changed: 2 ids added, 1 ids removed",
        "list gone removed (1 ids)",
        "sticky header x-user-id → header x-user-id, client_ip",
        "timeouts.connect 5 → 2.5",
    ]


def test_words_for_the_document_as_a_whole() -> None:
    old = snapshot(users())
    new = snapshot(users(), Service("shop", "v1", split(v1=1, v2=1)), workers=4, limits=Limits(headers=5))
    new = dataclasses.replace(new, routes=(dataclasses.replace(new.routes[0], rewrite_prefix="/x"), *new.routes[1:]))
    assert [(change.service, change.text) for change in diff(old, new).changes] == [
        (None, "workers 1 → 4"),
        (None, "limits.headers 100 → 5"),
        (None, 'route users (host "*", prefix /users): rewrite_prefix none → /x'),
        (None, 'route shop (host "*", prefix /shop) added, to service shop'),
        ("shop", "service shop added (split v1 1, v2 1, 0 rules, 0 instances)"),
    ]


def test_the_same_is_no_difference() -> None:
    for seed in range(20):
        ((each, _),) = strategies.random_cases(seed, 1, 0)
        assert diff(each, dataclasses.replace(each, revision=9)) == Diff((), ())


def variants(part: Any) -> Iterator[Any]:
    """The same with one leaf changed or one part left out, for each in turn."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        for each in dataclasses.fields(part):
            if each.name not in ("revision", "slots", "semver"):
                for other in variants(getattr(part, each.name)):
                    yield dataclasses.replace(part, **{each.name: other})
    elif isinstance(part, tuple):
        if part and not isinstance(part[0], str):
            yield part[:-1]
        for number, item in enumerate(part):
            yield from ((*part[:number], other, *part[number + 1 :]) for other in variants(item))
    elif isinstance(part, bool):
        yield not part
    elif isinstance(part, int | float):
        yield part + 1
    elif isinstance(part, str):
        yield part + "-x"


def test_whatever_is_changed_is_told() -> None:
    rules = (
        Rule("a", Match((Condition("header", "exact", ("x",), "h"),)), Subset("v2", None, (("env", "gray"),))),
        Rule("b", Match((), ((Condition("path", "path_prefix", ("/x",)),),)), None, split(v1=95, v2=5)),
    )
    whole = users(split=split(v1=95, v2=5), rules=rules, lists=(("staff", ("a", "b")),))
    base = snapshot(whole, Service("shop", "v1", None))
    changed = 0
    for other in variants(base):
        assert diff(base, other).changes, other
        changed += 1
    assert changed > 100
