"""Instances by key, kept from change to change: what is kept says the same as what is made anew."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb.control import members
from graylb.control.fragments import Fragments, Good
from graylb.control.members import Members, Pair
from graylb.control.sources import Fragment, Update

NUMBERS = st.integers(0, 9)
CHANGES = st.lists(
    st.tuples(NUMBERS, st.none() | st.tuples(NUMBERS, st.integers(0, 3))), max_size=4
)  # key -> (address, weight), None: gone


def value(address: int, weight: int) -> bytes:
    return orjson.dumps({"address": f"10.0.0.{address}:80", "version": "v1", "weight": weight})


def take(of: Fragments, changes: Any, revision: int) -> dict[str, Good]:
    """The service's instances after the changes, in whatever order."""
    update = {}
    for number, found in changes:
        key = f"services/x/instances/{number}"
        update[key] = None if found is None else Fragment(key, value(*found), revision)
    of.take(Update(revision, update), "")
    return of.members.get("x", {})


def plain(goods: dict[str, Good], own: dict[str, Pair]) -> list[Pair]:
    """By the words of the assembly: keys by name, of one address the newer key, the document's place for its own."""
    found = dict(own)
    for _, good in sorted(goods.items()):
        address = good.built.address
        rivals = [each for each in goods.values() if each.built.address == address]
        newest = max(each.fragment.revision for each in rivals)
        last = [each for _, each in sorted(goods.items()) if each in rivals and each.fragment.revision == newest][-1]
        found[address] = last.pair
    return list(found.values())


@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("few", [members.FEW, 1])
@given(steps=st.lists(CHANGES, max_size=8), first=CHANGES)
def test_kept_members_are_what_the_keys_say(few: int, steps: list[Any], first: Any) -> None:
    fragments, document = Fragments("/x/"), Fragments("/x/")
    goods = take(document, [each for each in first if each[1] is not None], 1)
    own = {good.built.address: good.pair for good in goods.values()}
    now, former = Members(), members.FEW
    members.FEW = few  # type: ignore[misc]
    try:
        for revision, changes in enumerate(steps, 2):
            before, seen = now, (now.names[:], now.united({}, {}))
            now = now.now(take(fragments, changes, revision))
            goods = fragments.members.get("x", {})
            for beside in ({}, own):
                wanted = plain(goods, beside)
                assert now.united(beside, {}) == (tuple(a for a, _ in wanted), tuple(b for _, b in wanted))
            assert (before.names, before.united({}, {})) == seen, "a former state stays what it was"
    finally:
        members.FEW = former  # type: ignore[misc]


def test_an_unchanged_instance_is_the_very_same_object() -> None:
    fragments = Fragments("/x/")
    first = Members().now(take(fragments, [(n, (n, 1)) for n in range(5)], 1))
    then = first.now(take(fragments, [(2, (2, 3)), (4, None)], 2))
    assert [a is b for a, b in zip(first.built, then.built, strict=False)] == [True, True, False, True]
    assert then.names == sorted(then.names)
    assert len(then.names) == 4
