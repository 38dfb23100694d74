"""A worker's live state over a swap: an instance that stayed keeps what is its own, whatever came and went."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _engine, _fast, _live, table
from graylb.model.snapshot import Connections, Instance, Service, Snapshot

VERSIONS = ("v1", "v2", "v3")
Members = dict[str, tuple[str, int]]
"""Address -> version, weight."""

members = st.dictionaries(
    st.integers(1, 40).map(lambda n: f"10.0.0.{n}:80"),
    st.tuples(st.sampled_from(VERSIONS), st.integers(0, 2)),
    max_size=40,
)
edits = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(VERSIONS), st.integers(0, 2), st.booleans()), max_size=3)


def image(*services: Service) -> _fast.Table:
    return _fast.Table(table.compile(Snapshot(1, (), (), services)))


def service(name: str, of: Members, **more: Any) -> Service:
    instances = (Instance(address, version, weight) for address, (version, weight) in of.items())
    return Service(name, "v1", None, instances=tuple(instances), **more)


def edited(of: Members, changes: list[tuple[int, str, int, bool]]) -> Members:
    found = dict(of)
    for number, version, weight, gone in changes:
        if gone:
            found.pop(f"10.0.0.{number}:80", None)
        else:
            found[f"10.0.0.{number}:80"] = version, weight
    return found


def faces(of: _fast.Table) -> list[tuple[Any, ...]]:
    """What makes an instance the same one, in the table's order."""
    return [(name, address, version, weight == 0) for name, address, version, weight in of.instance_list()]


@settings(max_examples=200, deadline=None)
@given(members, edits, members)
def test_instances_that_stayed_are_carried_over(before: Members, changes: list[Any], beside: Members) -> None:
    after = edited(before, changes)
    old, new = image(service("a", before)), image(service("0", beside), service("a", after))
    first = len(beside)  # another service stands before it now
    labels: list[Any] = faces(old)
    left: list[Any] = []
    found = _live.carried(new, first, len(after), old, 0, labels, left)
    wanted = faces(new)[first:]
    assert len(found) == len(wanted)
    assert all(each in (None, want) for each, want in zip(found, wanted, strict=True))
    assert Counter(left) + Counter(each for each in found if each) == Counter(labels), "each is carried over or left"
    if len(changes) == 1:
        assert found.count(None) <= 1, "only the one that changed is looked up"


@settings(max_examples=40, deadline=None)
@given(members, st.lists(st.tuples(edits, st.booleans(), st.booleans()), max_size=6))
def test_after_any_swaps_there_is_what_the_table_has(first: Members, steps: list[tuple[Any, bool, bool]]) -> None:
    async def play() -> None:
        engine = _engine.Engine(asyncio.get_running_loop(), 0)
        now = first
        try:
            engine.swap(image(service("a", now), service("b", first)))
            for changes, others, settings_ in steps:
                now = edited(now, changes)
                a = service("a", now)
                if settings_:
                    a = replace(a, connections=Connections(max=7))
                current = image(a, service("b", now)) if others else image(a)
                engine.swap(current)
                there = [(x["service"], x["address"], x["version"]) for x in engine.stats()["instances"]]
                assert sorted(there) == sorted(face[:3] for face in faces(current))
        finally:
            engine.close()

    uvloop.run(play())


def test_only_hosts_that_are_names_are_resolved() -> None:
    """All addresses were looked at after each swap: 5 ms of a worker with 10,000 instances."""

    async def play() -> None:
        engine = _engine.Engine(asyncio.get_running_loop(), 0)
        try:
            engine.swap(image(service("a", {"10.0.0.1:80": ("v1", 1), "one.test:80": ("v1", 1), "unix:/x": ("v1", 1)})))
            assert engine.upstream_names() == [(("a", "one.test:80"), False)]
            engine.resolved("a", "one.test:80", "127.0.0.1")
            engine.swap(image(service("a", {"two.test:80": ("v1", 1), "one.test:80": ("v1", 2)})))
            assert sorted(engine.upstream_names()) == [(("a", "one.test:80"), True), (("a", "two.test:80"), False)]
            engine.swap(image(service("a", {"10.0.0.1:80": ("v1", 1)})))
            assert engine.upstream_names() == []
        finally:
            engine.close()

    uvloop.run(play())
