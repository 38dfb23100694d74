"""The instances of a service, in the order of their keys: kept from one change to the next. Pure.

Written for ten thousand instances of which one changes: what is copied are pointers, and only keys that differ are
looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress, islice
from operator import is_, is_not
from typing import Final

from graylb.control.fragments import Good
from graylb.control.registered import united
from graylb.model.services import InstancePart
from graylb.model.snapshot import Instance

Pair = tuple[InstancePart, Instance]
FEW: Final = 200
"""Keys that are put into their place one by one; with more it is quicker to sort all."""


@dataclass(frozen=True)
class Members:
    """What keys say of one service. names: in order; parts and built: of each; addresses: how many keys have each.

    A later state is another object.
    """

    goods: Mapping[str, Good] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    parts: list[InstancePart] = field(default_factory=list)
    built: list[Instance] = field(default_factory=list)
    addresses: dict[str, int] = field(default_factory=dict)

    def now(self, goods: Mapping[str, Good]) -> Members:
        """As the keys are now."""
        changed, gone = _differing(self.goods, goods)
        if len(changed) + len(gone) > FEW:
            return _sorted(goods)
        made = Members(dict(goods), self.names[:], self.parts[:], self.built[:], self.addresses.copy())
        for key in gone:
            made._drop(bisect_left(made.names, key))
        for key in changed:
            place = bisect_left(made.names, key)
            if key in self.goods:
                made._drop(place)
            made._insert(place, key, goods[key])
        return made

    def _drop(self, place: int) -> None:
        address = self.built[place].address
        del self.names[place], self.parts[place], self.built[place]
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]

    def _insert(self, place: int, key: str, good: Good) -> None:
        part, built = good.pair
        self.names.insert(place, key)
        self.parts.insert(place, part)
        self.built.insert(place, built)
        self.addresses[built.address] = self.addresses.get(built.address, 0) + 1

    def united(
        self, own: Mapping[str, Pair], registered: Mapping[str, Pair]
    ) -> tuple[tuple[InstancePart, ...], tuple[Instance, ...]]:
        """One for each address: first the document's in their order, then the keys' by name, then those of registries.

        Of the document and a key the key counts, of two keys the newer one; registries say what nobody else does.
        """
        if not registered and len(self.addresses) == len(self.names) and self.addresses.keys().isdisjoint(own):
            parts, built = [part for part, _ in own.values()], [made for _, made in own.values()]
            return (*parts, *self.parts), (*built, *self.built)
        pairs = united({**own, **self._by_address()}, registered).values()
        return tuple(part for part, _ in pairs), tuple(made for _, made in pairs)

    def _by_address(self) -> dict[str, Pair]:
        found: dict[str, Pair] = {}
        newest: dict[str, int] = {}
        for key in self.names:
            each = self.goods[key]
            address, revision = each.built.address, each.fragment.revision
            if revision >= newest.get(address, 0):
                newest[address] = revision
                found[address] = each.pair
        return found


def _differing(known: Mapping[str, Good], goods: Mapping[str, Good]) -> tuple[list[str], list[str]]:
    """(keys that are new or have another value, keys that are gone)."""
    count = len(known)
    if len(goods) >= count and all(map(is_, goods, known)):  # none has gone: the order of a dict is that of insertion
        return [*compress(goods, map(is_not, goods.values(), known.values())), *islice(goods, count, None)], []
    changed = [key for key, each in goods.items() if known.get(key) is not each]
    return changed, list(known.keys() - goods.keys())


def _sorted(goods: Mapping[str, Good]) -> Members:
    names = sorted(goods)
    pairs = [goods[name].pair for name in names]
    built = [made for _, made in pairs]
    return Members(
        dict(goods), names, [part for part, _ in pairs], built, dict(Counter([each.address for each in built]))
    )
