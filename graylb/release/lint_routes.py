"""Findings about routes: which are never taken, and which services nothing reaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from graylb.model.snapshot import Match, Route, Snapshot
from graylb.release.findings import Finding, Place, finding
from graylb.release.implication import Conjunction
from graylb.release.lint_rules import Entry
from graylb.release.witness import path_test

Order = tuple[object, ...]


def order(route: Route) -> Order:
    """Smaller goes first, among routes of one host: exact path, regular expression, longest prefix; then the method,
    most headers, most query parameters, name."""
    kinds = Counter(condition.kind for condition in route.match.all)
    path = route.path.rstrip("/") if route.path_kind == "prefix" else route.path
    return (
        ("exact", "regex", "prefix").index(route.path_kind),
        -len(path),
        kinds["method"] == 0,
        -kinds["header"],
        -kinds["query"],
        route.name,
    )


def wanted(route: Route) -> Conjunction:
    """What a route asks for, but its host."""
    return Conjunction((path_test(route),)).both(Conjunction.of(Match(route.match.all, route.match.none), {}))


class Routes:
    """The routes of a snapshot, read once. `live`: those that can be taken."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.names = {listener.name for listener in snapshot.listeners}
        self.short_forms = {service.name for service in snapshot.services}
        self.reasons: dict[int, tuple[str, str]] = {}
        self._judge()

    @property
    def live(self) -> list[Route]:
        return [route for number, route in enumerate(self.snapshot.routes) if number not in self.reasons]

    def entries(self, service: str) -> list[Entry]:
        """The ways to a service."""
        return [
            Entry(route.host, wanted(route), self._listener(route)) for route in self.live if route.service == service
        ]

    def _listener(self, route: Route) -> str | None:
        """One that the route is on; None where it makes no difference to any route."""
        if not any(each.listeners for each in self.snapshot.routes):
            return None
        return (*route.listeners, self.snapshot.listeners[0].name)[0]

    def _judge(self) -> None:
        by_host: dict[str, list[tuple[Order, int]]] = {}
        for number, route in enumerate(self.snapshot.routes):
            by_host.setdefault(route.host.lower(), []).append((order(route), number))
        for members in by_host.values():
            self._judge_host([number for _, number in sorted(members, key=lambda each: each[0])])

    def _judge_host(self, members: Sequence[int]) -> None:
        """members: routes of one host, the first asked first.

        Only those of the same path can take all of another's requests, and regular expressions, which go before every
        prefix: a shorter prefix is asked later.
        """
        asked: dict[tuple[str, str], list[int]] = {}
        patterns: list[int] = []
        read: dict[int, Conjunction] = {}
        for number in members:
            route = self.snapshot.routes[number]
            read[number] = wanted(route)
            path = route.path.rstrip("/") if route.path_kind == "prefix" else route.path
            same = asked.setdefault((route.path_kind, path), [])
            before = [*same, *(patterns if route.path_kind != "exact" else ())]
            by = next((other for other in before if self._takes(other, number, read)), None)
            if by is not None:
                other = self.snapshot.routes[by]
                why = f"route {other.name} ({shown(other)}) goes before it and takes every such request"
                self.reasons[number] = why, "make its conditions differ, or remove it"
            elif read[number].impossible:
                self.reasons[number] = "its conditions contradict one another", "mend a condition, or remove the route"
            same.append(number)
            if route.path_kind == "regex":
                patterns.append(number)

    def _takes(self, other: int, number: int, read: dict[int, Conjunction]) -> bool:
        a, b = self.snapshot.routes[other], self.snapshot.routes[number]
        heard = (set(b.listeners) or self.names) <= (set(a.listeners) or self.names)
        return heard and other not in self.reasons and read[number].implies(read[other])

    def findings(self) -> Iterator[Finding]:
        for number, (why, hint) in self.reasons.items():
            route = self.snapshot.routes[number]
            what = f"route {route.name} ({shown(route)}) is never taken"
            yield finding("GL006", self.place(route), what, why, hint)
        reached = {route.service for route in self.live}
        for service in self.snapshot.services:
            if service.name not in reached:
                why = "all of its routes are never taken" if self._has_route(service.name) else "no route names it"
                what = f"no request reaches service {service.name}"
                yield finding("GL007", ("services", service.name), what, why, "give it hosts or paths, or remove it")

    def _has_route(self, service: str) -> bool:
        return any(route.service == service for route in self.snapshot.routes)

    def place(self, route: Route) -> Place:
        """Of a `routes` entry by its name (`route-N` counts from 1), else of the service whose short form made it."""
        number = route.name.removeprefix("route-")
        if route.service == route.name and route.name in self.short_forms and not route.match.all:
            return ("services", route.name)
        return ("routes", int(number) - 1) if number.isdecimal() else ("routes", route.name)


def shown(route: Route) -> str:
    """`host "*", prefix /abc`"""
    conditions = f" and {len(route.match.all)} conditions" if route.match.all else ""
    return f'host "{route.host}", {route.path_kind} {route.path}{conditions}'
