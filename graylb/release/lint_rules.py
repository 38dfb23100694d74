"""Findings about the rules of one service: which can never win or hold, and which overlap."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from graylb.model.snapshot import Condition, Match, Rule, Service
from graylb.release.explain import describe, describe_match
from graylb.release.findings import Finding, Place, finding
from graylb.release.implication import Anything, Conjunction, Field, Networks, PathPrefix, Test, Texts, possible
from graylb.release.witness import Request, requests

MOST_OVERLAPS = 20
MOST_PAIRS = 5_000
"""Pairs of rules that are tried for an overlap, of one service."""
MOST_COMPARED = 300_000
"""Pairs of rules that are compared because no index tells them apart, of one service."""
TRIED_REQUESTS = 8

Verdict = tuple[str | None, Sequence[bool]]
Matcher = Callable[[Request], Verdict | None]
"""The real matcher: (service, which of its rules hold), or None for a request that the proxy would refuse."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to the service: its host pattern, what its path and conditions ask for, and a listener that it is on."""

    host: str
    wanted: Conjunction
    listener: str | None = None


class Rules:
    """The rules of a service, read once. entries: the routes that lead to it and can be taken."""

    def __init__(self, service: Service, entries: Sequence[Entry]) -> None:
        self.service, self.rules, self.entries = service, service.rules, entries
        lists = {name: Texts(frozenset(ids)) for name, ids in service.lists}
        self.now = [Conjunction.of(rule.match, lists) for rule in self.rules]
        self.ever = [Conjunction.of(rule.match, None) for rule in self.rules]
        self.dead: set[int] = set()
        self.skipped = False

    def place(self, number: int, *more: str | int) -> Place:
        return ("services", self.service.name, "rules", self.rules[number].name, *more)

    def findings(self, matcher: Matcher) -> Iterator[Finding]:
        yield from self._impossible()
        yield from self._shadowed()
        yield from self._overlaps(matcher)
        for number, rule in enumerate(self.rules):
            yield from self._always_true(number, rule)

    @property
    def catch_all(self) -> int | None:
        """The first rule that holds for every request."""
        return next((number for number, wanted in enumerate(self.ever) if Conjunction().implies(wanted)), None)

    # ---- never ----

    def _impossible(self) -> Iterator[Finding]:
        for number, (rule, wanted) in enumerate(zip(self.rules, self.ever, strict=True)):
            what = f"rule {rule.name} never holds"
            if wanted.impossible:
                self.dead.add(number)
                why = f"its conditions contradict one another: {describe_match(rule.match)}"
                yield finding("GL002", self.place(number), what, why, "mend a condition, or remove the rule")
            elif self.entries and all(entry.wanted.both(wanted).impossible for entry in self.entries):
                self.dead.add(number)
                why = f"no route brings such requests to {self.service.name}: {describe_match(rule.match)}"
                yield finding("GL002", self.place(number), what, why, "mend the rule or the routes")
            elif self.now[number].impossible:
                self.dead.add(number)  # because of a list that is empty at present, which is told of the list

    def _shadowed(self) -> Iterator[Finding]:
        index = _Index()
        for number, wanted in enumerate(self.now):
            if number not in self.dead:
                by = next((n for n in index.candidates(wanted) if wanted.implies(self.now[n])), None)
                if by is not None:
                    yield self._shadow(number, by)
                    self.dead.add(number)
            if not wanted.impossible:
                index.add(number, wanted)
        if index.compared > MOST_COMPARED:
            why = f"{len(self.rules)} rules, and more than {MOST_COMPARED} pairs without an exact condition in common"
            place = ("services", self.service.name, "rules")
            yield finding("GL018", place, f"rules of {self.service.name} were not all compared", why)

    def _shadow(self, number: int, by: int) -> Finding:
        rule, other = self.rules[number], self.rules[by]
        always = self.ever[number].implies(self.ever[by])
        why = f"rule {other.name} is asked first and holds whenever it does: {describe_match(other.match)}"
        hint = f"put it before {other.name} or give it a higher priority, or remove it"
        if not always:
            why += " (as the lists stand now)"
        return finding(
            "GL001",
            self.place(number),
            f"rule {rule.name} never wins",
            why,
            hint,
            severity="error" if always else "warning",
        )

    # ---- overlap ----

    def _overlaps(self, matcher: Matcher) -> Iterator[Finding]:
        found = tried = 0
        # rules of one priority that lead elsewhere, by numbers: there are many pairs
        targets: dict[Hashable, int] = {}
        to = [targets.setdefault(_target(rule), len(targets)) for rule in self.rules]
        alive = [number for number in range(len(self.rules)) if number not in self.dead]
        for place, later in enumerate(alive):
            for earlier in alive[:place]:
                if to[earlier] == to[later] or self.rules[earlier].priority != self.rules[later].priority:
                    continue
                if found == MOST_OVERLAPS or tried == MOST_PAIRS:
                    return
                tried += 1
                if self.now[earlier].implies(self.now[later]):
                    continue  # the exception before the general case
                witness = self._witness(earlier, later, matcher)
                if witness is not None:
                    found += 1
                    yield self._overlap(earlier, later, witness)

    def _witness(self, earlier: int, later: int, matcher: Matcher) -> Request | None:
        both = self.now[earlier].both(self.now[later])
        if both.impossible:
            return None
        for entry in self.entries[:TRIED_REQUESTS]:
            for tried, request in enumerate(requests(entry.wanted.both(both), entry.host)):
                request = replace(request, listener=entry.listener)
                verdict = matcher(request)
                if verdict and verdict[0] == self.service.name and verdict[1][earlier] and verdict[1][later]:
                    return request
                if tried == TRIED_REQUESTS:
                    break
        return None

    def _overlap(self, earlier: int, later: int, witness: Request) -> Finding:
        first, second = self.rules[earlier].name, self.rules[later].name
        why = f"the order decides: {first} wins; for example graylb explain {witness.command()}"
        hint = "say what is meant by their priorities, or by a condition under `not`"
        return finding("GL008", self.place(later), f"rules {first} and {second} overlap", why, hint, witness=witness)

    # ---- always ----

    def _always_true(self, number: int, rule: Rule) -> Iterator[Finding]:
        """Conditions that only ask for a value. What asks so in plain words, `present`, is not told."""
        for condition in _all_conditions(rule.match):
            single = Conjunction.of(Match((condition,)), None)
            ((test,),) = single.tests.values()
            if condition.op != "present" and _everything(condition, test):
                hint = "leave it out, or say `present: true` if the value must be there"
                what = f"rule {rule.name}: {describe(condition)} holds for every value"
                why = "it tests nothing but whether there is a value"
                yield finding("GL009", self.place(number), what, why, hint)


def _everything(condition: Condition, test: Test) -> bool:
    if condition.op == "regex" and condition.values in ((".*",), ("(?s).*",), ("(?s:.*)",)):
        return True
    if isinstance(test.values, Networks):
        return {network.version for network in test.values.networks if network.prefixlen == 0} == {4, 6}
    return isinstance(test.values, Anything) or test.values == PathPrefix("")


def _all_conditions(match: Match) -> Iterable[Condition]:
    yield from match.all
    for group in match.none:
        yield from group


def _target(rule: Rule) -> Hashable:
    """Equal for rules that lead to the same."""
    return rule.to if rule.split is None else tuple(sorted(rule.split.weights))


class _Index:
    """Rules by what a rule must ask for to be shadowed by them, so that thousands need not be compared in pairs."""

    LONGEST = 1000

    def __init__(self) -> None:
        self.exact: dict[tuple[Field, str], list[int]] = {}
        self.stems: dict[tuple[Field, str], list[int]] = {}
        self.rest: dict[frozenset[Field], list[int]] = {}
        self.compared = 0

    def add(self, number: int, wanted: Conjunction) -> None:
        positive = [test for tests in wanted.tests.values() for test in tests if not test.negate]
        exact = [test for test in positive if isinstance(test.values, Texts) and len(test.values.texts) < self.LONGEST]
        for test in exact[:1]:
            assert isinstance(test.values, Texts)
            for text in test.values.texts:
                self.exact.setdefault((test.field, text), []).append(number)
            return
        for test in positive:
            if isinstance(test.values, PathPrefix):
                self.stems.setdefault((test.field, test.values.stem), []).append(number)
                return
        self.rest.setdefault(frozenset(wanted.tests), []).append(number)

    def candidates(self, wanted: Conjunction) -> list[int]:
        """Numbers of the rules that may hold whenever `wanted` does, in order."""
        fields = set(wanted.tests)
        for kind, name in wanted.tests:
            if kind == "metadata":
                fields.add(("header", name))
            if name == "x-service-version":
                fields.add(("mark", ""))
        found: list[int] = []
        for field in fields:
            texts = possible(wanted.known(field))
            if texts:
                found += self.exact.get((field, texts[0]), ())
            paths = texts or [test.values.stem for test in wanted.known(field) if isinstance(test.values, PathPrefix)]
            for stem in _ancestors(paths[0]) if paths and field[0] == "path" else ():
                found += self.stems.get((field, stem), ())
        for needed, numbers in self.rest.items():
            if needed <= fields:
                room = max(0, MOST_COMPARED - self.compared)
                self.compared += len(numbers)
                found += numbers[:room]
        return sorted(set(found))


def _ancestors(path: str) -> Iterator[str]:
    """Every prefix by whole elements, the path itself and the root included."""
    stem = path.rstrip("/")
    yield path
    while stem:
        yield stem
        stem = stem.rpartition("/")[0].rstrip("/")
    yield ""
