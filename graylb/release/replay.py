"""The version-shift matrix: what becomes of the requests of a log when one configuration takes the place of another.

Pure: decisions come in as the matcher's numbers, counted in pairs. A draw is not made: a request without a sticky key
may fall to any version of its split, before and after, and what is told of such requests is what is to be expected when
as few of them as possible change (`shares.shift`), for nothing ties one draw to another. The same goes for targets
whose instances have several versions. Sticky keys and rules are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from graylb.model.snapshot import Fallback, Rule, Service, Snapshot, Subset
from graylb.release.shares import NOBODY, Shares, mixed, served, shift

Key = tuple[int, int, int, int, int, int]
"""Outcome, route, service, rule, wanted version, how: as `_fast.Table.decide_many` gives them."""
Pairs = Mapping[tuple[Key, Key], int]

DECIDED, NO_ROUTE, REDIRECT = 0, 1, 3
SLOT, DRAW = 1, 2
NO_SERVICE: Final = "-"
UNROUTED: Final = "404 (no route)"
TOO_LARGE: Final = "431 (head too large)"
LOST: Final = (UNROUTED, TOO_LARGE, NOBODY)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two configurations, with the names behind the matcher's numbers."""

    snapshot: Snapshot
    routes: Sequence[str]
    versions: Sequence[Sequence[str]]  # by service number
    known: dict[tuple[str, Subset, Fallback | None], Shares] = field(default_factory=dict, compare=False)

    def service(self, key: Key) -> Service | None:
        return self.snapshot.services[key[2]] if key[0] == DECIDED else None

    def route(self, key: Key) -> str:
        return self.routes[key[1]] if key[1] >= 0 else "none"

    def rule(self, key: Key) -> Rule | None:
        service = self.service(key)
        return service.rules[key[3]] if service is not None and key[3] >= 0 else None

    def by(self, key: Key) -> str:
        """What decided, in words."""
        service, rule = self.service(key), self.rule(key)
        if service is None:
            return "no rule"
        if rule is not None:
            return f"rule {rule.name}"
        return "the split" if service.split is not None else "the stable version"

    def answers(self, key: Key) -> Shares:
        """Version, or what stands in its place -> share."""
        service, rule = self.service(key), self.rule(key)
        if service is None:
            redirect = f"redirect by {self.route(key)}"
            return {{NO_ROUTE: UNROUTED, REDIRECT: redirect}.get(key[0], TOO_LARGE): 1.0}
        fallback = rule.fallback if rule is not None else None
        if key[5] == DRAW:
            split = rule.split if rule is not None else service.split
            assert split is not None
            weights = dict(split.weights)
            return mixed(weights, {name: self._served(service, Subset(name), fallback) for name in weights})
        if rule is not None and rule.to is not None:
            return self._served(service, rule.to, fallback)
        return self._served(service, Subset(self.versions[key[2]][key[4]]), fallback)

    def _served(self, service: Service, subset: Subset, fallback: Fallback | None) -> Shares:
        """Thousands of rules lead to a few subsets of thousands of instances."""
        key = service.name, subset, fallback
        if key not in self.known:
            self.known[key] = served(service, subset, fallback)
        return self.known[key]


@dataclass(slots=True)
class Matrix:
    """Requests that reached one service before; NO_SERVICE: none. Counts are fractional where they are expected ones.

    moves: (from, to) -> requests, unchanged ones too; `to` is `SERVICE: VERSION` where another service answers. by,
    routes: likewise, what decided and the route. drawn: requests that a draw decides before or after; sticky: whether
    they might have had a sticky key.
    """

    service: str
    requests: int = 0
    moves: dict[tuple[str, str], float] = field(default_factory=dict)
    by: Counter[tuple[str, str]] = field(default_factory=Counter)
    routes: Counter[tuple[str, str]] = field(default_factory=Counter)
    drawn: int = 0
    sticky: bool = False

    @property
    def changed(self) -> float:
        return sum(count for (a, b), count in self.moves.items() if a != b)

    @property
    def failing(self) -> float:
        """Requests that nobody answers after, and that somebody answered before."""
        return sum(count for (a, b), count in self.moves.items() if b.endswith(LOST) and a not in LOST)

    def to_data(self) -> dict[str, Any]:
        def pairs(counts: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
            ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            return [{"from": a, "to": b, "requests": count} for (a, b), count in ordered]

        return {
            "service": None if self.service == NO_SERVICE else self.service,
            "requests": self.requests,
            "changed": self.changed,
            "share": self.changed / self.requests if self.requests else 0.0,
            "failing": self.failing,
            "matrix": pairs(self.moves),
            "decided_by": pairs(self.by),
            "routes": pairs(self.routes),
            "drawn": self.drawn,
        }


def matrices(old: Side, new: Side, pairs: Pairs) -> list[Matrix]:
    """One for each service that requests reached before, by name, and one for those that reached none."""
    found: dict[str, Matrix] = {}
    shares_before = {key: old.answers(key) for key in {before for before, _ in pairs}}
    shares_after = {key: new.answers(key) for key in {after for _, after in pairs}}
    for (before, after), count in pairs.items():
        service, then = old.service(before), new.service(after)
        name = service.name if service is not None else NO_SERVICE
        matrix = found.setdefault(name, Matrix(name, sticky=service is not None and bool(service.sticky)))
        matrix.requests += count
        elsewhere = f"{then.name}: " if then is not None and then.name != name else ""
        for (a, b), share in _moves(shares_before[before], shares_after[after], elsewhere).items():
            matrix.moves[a, b] = matrix.moves.get((a, b), 0.0) + share * count
        matrix.by[old.by(before), new.by(after)] += count
        matrix.routes[old.route(before), new.route(after)] += count
        matrix.drawn += count if DRAW in (before[5], after[5]) else 0
    return [found[name] for name in sorted(found)]


def _moves(before: Shares, after: Shares, elsewhere: str) -> dict[tuple[str, str], float]:
    """Two services may have versions of one name, which are not the same."""
    return shift(before, {elsewhere + version: share for version, share in after.items()})
