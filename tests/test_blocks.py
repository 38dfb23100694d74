"""Blocks: an image that is made with a cache is, byte for byte, the one made without."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import table
from graylb.model.snapshot import Service, Snapshot
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
