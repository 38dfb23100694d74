"""Blocks: an image that is made with a cache is, byte for byte, the one made without."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import blocks, table
from graylb.model.snapshot import Condition, Instance, Match, Rule, Service, Snapshot, Subset
from tests import strategies


def mixed(first: Snapshot, second: Snapshot, taken: list[bool]) -> Snapshot:
    """The second snapshot with some services as they are in the first."""
    former = {service.name: service for service in first.services}
    services: list[Service] = []
    for service, keep in zip(second.services, [*taken, *[False] * len(second.services)], strict=False):
        services.append(former.get(service.name, service) if keep else service)
    return replace(second, services=tuple(services))


@settings(max_examples=60, deadline=None)
@given(strategies.snapshots(), strategies.snapshots(), st.lists(st.booleans(), max_size=8))
def test_a_cache_changes_nothing_of_the_image(first: Snapshot, second: Snapshot, taken: list[bool]) -> None:
    cache = table.Cache()
    assert table.compile(first, cache) == table.compile(first)
    assert table.compile(first, cache) == table.compile(first), "blocks are not altered by being placed"
    snapshot = mixed(first, second, taken)
    assert table.compile(snapshot, cache) == table.compile(snapshot)
    fewer = replace(snapshot, services=snapshot.services, routes=tuple(reversed(snapshot.routes)))
    assert table.compile(fewer, cache) == table.compile(fewer)


def stirred(choose: strategies.Chooser, snapshot: Snapshot) -> Snapshot:
    """Instances of a service go, come, and change weight, version or tags, its split may be another, or a rule's name;
    the rest are the very same objects."""
    services = list(snapshot.services)
    number = choose.number(0, len(services) - 1)
    service = services[number]
    instances = [each for each in service.instances if choose.number(0, 3)]
    versions = sorted({each.version for each in service.instances} | {"v1", "v2", "1.4.0"})
    for place, each in enumerate(instances):
        if not choose.number(0, 3):
            changes: dict[str, Any] = choose.one([
                {"weight": choose.number(0, 3)}, {"version": choose.one(versions)}, {"metadata": (("env", "gray"),)}
            ])  # fmt: skip
            instances[place] = replace(each, **changes)
    if choose.number(0, 1):
        fresh = Instance(f"10.9.0.{choose.number(1, 9)}:80", choose.one(versions), 1)
        if fresh.address not in {each.address for each in instances}:
            instances.insert(choose.number(0, len(instances)), fresh)
    rules = list(service.rules)
    if rules and choose.number(0, 2) == 0:
        place = choose.number(0, len(rules) - 1)
        rules[place] = replace(rules[place], name=rules[place].name + choose.one(["", "x"]))
    split = service.split
    if split is not None and choose.number(0, 1):
        split = replace(split, salt=split.salt + "x", weights=tuple((name, 1.0) for name, _ in split.weights))
    services[number] = replace(service, instances=tuple(instances), split=split, rules=tuple(rules))
    return replace(snapshot, services=tuple(services))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_is_kept_of_a_changed_service_changes_nothing_of_the_image(data: st.DataObject) -> None:
    snapshot = data.draw(strategies.snapshots())
    choose = strategies.Chooser(lambda low, high: data.draw(st.integers(low, high)))
    cache = table.Cache()
    table.compile(snapshot, cache)
    for _ in range(4):
        snapshot = stirred(choose, snapshot)
        fresh = deepcopy(snapshot)  # nothing in it is an object that was seen before
        assert table.compile(snapshot, cache) == table.compile(fresh)


INSTANCES = st.lists(
    st.builds(
        Instance, st.sampled_from(["10.0.0.1:1", "10.0.0.22:1", "[::1]:1"]), st.sampled_from("abc"), st.integers(0, 3)
    ),
    min_size=1,
    max_size=6,
)


@given(INSTANCES, st.data())
def test_one_other_instance_makes_the_row_that_all_make(instances: list[Instance], data: st.DataObject) -> None:
    """Whether the row before can be used or not."""
    before = blocks.Row.of(tuple(instances), 8)
    for _ in range(3):
        place = data.draw(st.integers(0, len(instances) - 1))
        other = replace(instances[place], weight=data.draw(st.integers(0, 3)))
        if data.draw(st.integers(0, 3)) == 0:
            other = data.draw(INSTANCES)[0]
        usable = (other.address, other.version, other.weight > 0) == (
            instances[place].address, instances[place].version, instances[place].weight > 0
        )  # fmt: skip
        instances[place] = other
        after = before.after(tuple(instances), 8)
        made = blocks.Row.of(tuple(instances), 8)
        assert (after == made) if usable else (after is None)
        assert before.after(tuple(instances), 16) is None
        before = after or made
    assert before.after((*instances, instances[0]), 8) is None


def test_the_rules_of_a_service_are_compiled_once() -> None:
    """It took 250 ms and more to change one of 10,000 instances of one service with 5,000 rules."""
    rules = (Rule("one", Match((Condition("path", "exact", ("/x",)),)), Subset(metadata=(("env", "gray"),))),)
    members = tuple(Instance(f"10.0.0.{n}:80", "v1", metadata=(("env", "gray"),)) for n in range(4))
    service = Service("one", "v1", None, rules=rules, instances=members)
    cache = table.Cache()
    table.compile(Snapshot(1, (), (), (service,)), cache)
    kept = cache.kept["one"]
    book, seen = kept.rulebook, dict(kept.seen)
    fewer = replace(service, instances=(*members[1:], Instance("10.0.0.9:80", "v2")), rules=(*rules,))
    table.compile(Snapshot(2, (), (), (fewer,)), cache)
    assert cache.kept["one"].rulebook is book
    assert [kept.seen[id(each)] is seen[id(each)] for each in members[1:]] == [True] * 3
    table.compile(Snapshot(3, (), (), (replace(fewer, rules=(*rules, replace(rules[0], name="two"))),)), cache)
    assert cache.kept["one"].rulebook is not book


def test_instances_that_are_no_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SPARE_SEEN", 5)
    cache = table.Cache()
    for number in range(50):
        instances = tuple(Instance(f"10.0.{number}.{n}:80", "v1") for n in range(3))
        snapshot = Snapshot(number, (), (), (Service("one", "v1", None, instances=instances),))
        assert table.compile(snapshot, cache) == table.compile(snapshot)
        assert len(cache.kept["one"].seen) <= 3 + 5


def test_kinds_that_are_no_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SPARE_KINDS", 20)
    cache = table.Cache()
    for number in range(3 * blocks.SPARE_KINDS):
        service = Service("one", "v1", None, instances=(Instance("10.0.0.1:80", "v1", 1, (("pod", str(number)),)),))
        table.compile(Snapshot(number, (), (), (service,)), cache)
    assert len(cache.kept["one"].kinds) <= blocks.SPARE_KINDS + 3
    table.compile(Snapshot(1, (), (), ()), cache)
    assert cache.kept == {}


def test_only_new_objects_are_compiled() -> None:
    def service(name: str) -> Service:
        return Service(name, "v1", None)

    one, two, three = service("one"), service("two"), service("three")
    cache = table.Cache()
    table.compile(Snapshot(1, (), (), (one, two)), cache)
    kept = cache.blocks["one"]
    table.compile(Snapshot(2, (), (), (one, three)), cache)
    assert cache.blocks["one"] is kept
    assert sorted(cache.blocks) == ["one", "three"]
    table.compile(Snapshot(3, (), (), (service("one"), three)), cache)
    assert cache.blocks["one"] is not kept
