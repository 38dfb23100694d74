"""Lint: what a valid configuration says that nobody can have meant, or that is worth a second look.

Pure. Sound where it says `never`: the rule or route then never wins, whatever request comes. That it finds all of them
is not promised. What it says of instances is of those in the snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from graylb.model.snapshot import Fallback, Service, Snapshot, Split, Subset
from graylb.release.explain import describe_subset
from graylb.release.findings import SEVERITIES, Finding, Place, Severity, finding
from graylb.release.lint_routes import Routes
from graylb.release.lint_rules import Matcher, Rules
from graylb.release.selectors import select

Ids = Mapping[tuple[str, str], Sequence[str]]
"""(service, list) -> ids as written, repeated ones included."""


def lint(snapshot: Snapshot, matcher: Matcher, ids: Ids | None = None) -> list[Finding]:
    """Everything found, errors first. matcher: confirms examples of overlaps. ids: for GL012."""
    routes = Routes(snapshot)
    # whose clients have no address
    unix = any(listener.address.startswith("unix:") for listener in snapshot.listeners)
    found = list(routes.findings())
    for whole in snapshot.services:
        service = replace(whole, rules=whole.written_rules)
        rules = Rules(service, routes.entries(service.name))
        found += rules.findings(matcher)
        found += _Service(service, rules, unix=unix).findings()
    for (name, list_name), written in (ids or {}).items():
        found += _repeated(name, list_name, written)
    return sorted(found, key=lambda each: SEVERITIES.index(each.severity))


class _Service:
    """Findings about splits, versions, lists and sticky keys of one service."""

    def __init__(self, service: Service, rules: Rules, *, unix: bool) -> None:
        self.service, self.rules, self.unix = service, rules, unix
        self.usable = {instance.version for instance in service.instances if instance.weight > 0}
        self.known = {instance.version for instance in service.instances}
        self.catch_all = rules.catch_all
        self.picked: dict[Subset, set[str]] = {}

    def place(self, *more: str | int) -> Place:
        return ("services", self.service.name, *more)

    def findings(self) -> Iterator[Finding]:
        yield from self._catch_all()
        if self.service.instances:  # else `graylb check` says so
            yield from self._targets()
            yield from self._out_of_reach()
            yield from self._stable_instances()
        yield from self._stable_share()
        yield from self._lists()
        yield from self._sticky()

    def _catch_all(self) -> Iterator[Finding]:
        number = self.catch_all
        if number is None:
            return
        name = self.service.rules[number].name
        split = self.service.split
        behind = [rule.name for rule in self.service.rules[number + 1 :]]
        unasked = [f"rule {each}" for each in behind[:3]] + (["the split"] if split is not None else [])
        why = f"{', '.join(unasked)}: never asked" if unasked else "it is the service's only decision"
        hint = "a split decides for all whom no rule names; keep such a rule only while everybody must be on its target"
        yield finding("GL016", self.rules.place(number), f"rule {name} holds for every request", why, hint)

    # ---- instances ----

    def _picked(self, subset: Subset) -> set[str]:
        """Versions of the instances that a subset picks, those of weight 0 left out."""
        if subset not in self.picked:
            instances = self.service.instances
            picked = (instances[number] for number in select(subset, instances))
            self.picked[subset] = {instance.version for instance in picked if instance.weight > 0}
        return self.picked[subset]

    def _outcome(self, fallback: Fallback) -> tuple[Severity, str]:
        """Of a target without instances."""
        if fallback != "strict" and self.service.stable in self.usable:
            return "warning", f"its requests fall back to {self.service.stable}"
        if fallback == "any" and self.usable:
            return "warning", "its requests fall back to any instance"
        return "error", "its requests are answered with 503"

    def _targets(self) -> Iterator[Finding]:
        if self.service.split is not None:
            yield from self._weights(self.service.split, self.service.fallback, "the split", self.place("split"))
        for number, rule in enumerate(self.service.rules):
            fallback = rule.fallback or self.service.fallback
            if rule.split is not None:
                place = self.rules.place(number, "split")
                yield from self._weights(rule.split, fallback, f"the split of rule {rule.name}", place)
            elif rule.to is not None and not self._picked(rule.to):
                fitting = select(rule.to, self.service.instances)
                severity, then = self._outcome(fallback)
                what = f"rule {rule.name} asks for {describe_subset(rule.to)}, which no instance is"
                if fitting:
                    what = f"rule {rule.name} asks for {describe_subset(rule.to)}, whose instances all have weight 0"
                there = ", ".join(sorted(self.known))
                yield finding(
                    "GL003", self.rules.place(number, "to"), what, then, f"versions here: {there}", severity=severity
                )

    def _weights(self, split: Split, fallback: Fallback, noun: str, place: Place) -> Iterator[Finding]:
        for version, weight in split.weights:
            if version not in self.usable:
                severity, then = self._outcome(fallback)
                state = "whose instances all have weight 0" if version in self.known else "which has no instance"
                what = f"{noun} gives {weight:g} to {version}, {state}"
                hint = "start instances first, or give it weight 0"
                yield finding("GL004", (*place, version), what, then, hint, severity=severity)

    def _out_of_reach(self) -> Iterator[Finding]:
        reached: set[str] = set()
        for number, rule in enumerate(self.service.rules):
            if number in self.rules.dead:
                continue
            if rule.to is not None:
                reached |= self._picked(rule.to)
            elif rule.split is not None:
                reached |= {version for version, _ in rule.split.weights}
        if self.catch_all is None:
            split = self.service.split
            reached |= {version for version, _ in split.weights} if split is not None else {self.service.stable}
        for version in sorted(self.usable - reached):
            if version == self.service.stable and self.service.fallback != "strict":
                continue  # it is there to fall back to
            count = sum(instance.version == version for instance in self.service.instances)
            what = f"no request reaches version {version} of {self.service.name}"
            why = f"it has {count} instance{'s' if count > 1 else ''}, but neither the split nor a rule leads there"
            hint = f"give {version} a weight or a rule, or stop its instances"
            first = next(each.address for each in self.service.instances if each.version == version)
            yield finding("GL005", self.place("instances", first), what, why, hint)

    def _stable_instances(self) -> Iterator[Finding]:
        stable, fallback = self.service.stable, self.service.fallback
        named = any(version == stable for version, _ in self.service.split.weights) if self.service.split else True
        if stable not in self.usable and not named and fallback != "strict":
            what = f"the stable version {stable} of {self.service.name} has no instance"
            yield finding("GL017", self.place("stable"), what, f"fallback: {fallback} leads there", "choose another")

    # ---- shares ----

    def _stable_share(self) -> Iterator[Finding]:
        split, stable = self.service.split, self.service.stable
        if split is None or any(version == stable for version, _ in split.weights):
            return
        if len(split.weights) == 1:
            ((version, _),) = split.weights
            what = f"{version} has everything, but the stable version of {self.service.name} is {stable}"
            why = "the fallback and the next ramp begin at the stable version"
            yield finding("GL014", self.place("split"), what, why, f"stable: {version}")
            return
        names = " and ".join(version for version, _ in split.weights)
        what = f"the stable version {stable} of {self.service.name} gets nothing"
        yield finding("GL013", self.place("split"), what, f"the split shares everything among {names}")

    # ---- lists, sticky keys ----

    def _lists(self) -> Iterator[Finding]:
        users: dict[str, list[str]] = {}
        for rule in self.service.rules:
            groups = (rule.match.all, *rule.match.none)
            for condition in (each for group in groups for each in group):
                if condition.list_name is not None:
                    users.setdefault(condition.list_name, []).append(rule.name)
        for name, ids in self.service.lists:
            place = self.place("lists", name)
            if name not in users:
                what, why = f"list {name} of {self.service.name} is not used", "no rule refers to it"
                yield finding("GL011", place, what, why, f"a condition `{{in: {name}}}` would")
            elif not ids:
                rules = ", ".join(dict.fromkeys(users[name]))
                what, why = f"list {name} of {self.service.name} is empty", f"`in` it never holds (rules: {rules})"
                yield finding("GL010", place, what, why, "put ids into it, or remove the rule")

    def _sticky(self) -> Iterator[Finding]:
        if not self.service.sticky:
            return
        splits = [self.service.split, *(rule.split for rule in self.service.rules)]
        if not any(split is not None and len(split.weights) > 1 for split in splits):
            what = f"the sticky key of {self.service.name} has no effect now"
            why = "no split of the service has several versions"
            yield finding("GL015", self.place("sticky"), what, why, "keep it if a ramp is to come")
        for number, key in enumerate(self.service.sticky[:-1]):
            if key.kind == "client_ip" and not self.unix:
                what = f"the sticky keys of {self.service.name} behind client_ip are never used"
                why = "every request has a client address, and the first source that is present wins"
                place = self.place("sticky", number + 1)
                yield finding("GL015", place, what, why, "put client_ip last", severity="warning")


def _repeated(service: str, list_name: str, written: Sequence[str]) -> Iterable[Finding]:
    twice = [text for text, count in Counter(written).items() if count > 1]
    if twice:
        shown = ", ".join(twice[:3]) + (f" and {len(twice) - 3} more" if len(twice) > 3 else "")
        what = f"list {list_name} of {service} has ids more than once"
        yield finding("GL012", ("services", service, "lists", list_name), what, shown, "an id counts once")
