"""What one set of conditions says of another: whether it must hold where the first does, or cannot.

Sound, not complete: `implies`, `disjoint` and `impossible` say yes only when it is so for every request, and no when it
is not so or not seen. A condition is read as a set of values of one field; a request has a value of the field or none.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import re2

from graylb.model.snapshot import Condition, FieldKind, Match
from graylb.release import numbers, patterns, semver

Field = tuple[FieldKind, str]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ALWAYS: Final = frozenset({"path", "method"})
"""Fields that every request has. A client of a Unix socket has no address."""
MAY_BREAK: Final = frozenset({"query", "mark"})
"""Percent-decoded fields: their values may hold line breaks, which `.` of a regular expression does not match."""


# ---- sets of values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Anything:
    """Every value."""

    def holds(self, value: str) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Texts:
    texts: frozenset[str]

    def holds(self, value: str) -> bool:
        return value in self.texts


@dataclass(frozen=True, slots=True)
class NamedList:
    """A list of which only the name is known, because its ids change."""

    name: str

    def holds(self, value: str) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Prefix:
    text: str

    def holds(self, value: str) -> bool:
        return value.startswith(self.text)


@dataclass(frozen=True, slots=True)
class PathPrefix:
    """By whole elements; `stem` has no slash at its end, "" is the root."""

    stem: str

    def holds(self, value: str) -> bool:
        return value.startswith(self.stem + "/") or bool(self.stem and value == self.stem)


@dataclass(frozen=True, slots=True)
class Suffix:
    text: str

    def holds(self, value: str) -> bool:
        return value.endswith(self.text)


@dataclass(frozen=True, slots=True)
class Pattern:
    text: str

    def holds(self, value: str) -> bool:
        return _compiled(self.text).fullmatch(value.encode("utf-8", "surrogateescape")) is not None


@dataclass(frozen=True, slots=True)
class Networks:
    """Merged, so that two halves are a whole."""

    networks: tuple[Network, ...]

    def holds(self, value: str) -> bool:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            return False
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from low to high without the holes; `low_open`: low itself is not in it."""

    text: str
    low: float
    low_open: bool
    high: float
    high_open: bool
    holes: frozenset[float]

    def holds(self, value: str) -> bool:
        return numbers.satisfies(value, numbers.parse_range(self.text))

    def has(self, value: float) -> bool:
        above = value > self.low or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return above and below and value not in self.holes

    @property
    def empty(self) -> bool:
        if self.low == self.high:
            return not self.has(self.low)
        return self.low > self.high

    def meet(self, other: Interval) -> Interval:
        low = max((self.low, self.low_open), (other.low, other.low_open))
        high = min((self.high, not self.high_open), (other.high, not other.high_open))
        return Interval("", *low, high[0], not high[1], self.holes | other.holes)

    def within(self, other: Interval) -> bool:
        low = (self.low, self.low_open) >= (other.low, other.low_open)
        high = (self.high, not self.high_open) <= (other.high, not other.high_open)
        return low and high and not any(self.has(hole) for hole in other.holes)


@dataclass(frozen=True, slots=True)
class Span:
    """Keys of `semver.Version` between two bounds; None: unbounded. The flags: the bound itself is not in it."""

    low: semver.Key | None
    low_open: bool
    high: semver.Key | None
    high_open: bool

    def within(self, other: Span) -> bool:
        low = other.low is None or (self.low is not None and (self.low, self.low_open) >= (other.low, other.low_open))
        high = other.high is None or (
            self.high is not None and (self.high, not self.high_open) <= (other.high, not other.high_open)
        )
        return low and high

    def apart(self, other: Span) -> bool:
        """No key is in both."""
        for below, above in ((self, other), (other, self)):
            if below.high is not None and above.low is not None:
                touching = below.high == above.low and (below.high_open or above.low_open)
                if below.high < above.low or touching:
                    return True
        return False


@dataclass(frozen=True, slots=True)
class Versions:
    text: str
    spans: tuple[Span, ...]

    def holds(self, value: str) -> bool:
        return semver.satisfies(value, semver.parse_range(self.text))


@dataclass(frozen=True, slots=True)
class Opaque:
    """Nothing is known of it but what it is."""

    condition: Condition

    def holds(self, value: str) -> bool:
        return False


Values = Anything | Texts | NamedList | Prefix | PathPrefix | Suffix | Pattern | Networks | Interval | Versions | Opaque
"""`holds` of NamedList and Opaque says no for everything; it is asked of the others only."""


@lru_cache(4096)
def _compiled(pattern: str) -> re2._Regexp:
    return re2.compile(pattern.encode())


def values_of(condition: Condition, lists: Mapping[str, Texts] | None) -> Values:
    """The values that satisfy a condition's operator. lists: by name; None: nothing is known of lists but the name."""
    if condition.list_name is not None:
        return NamedList(condition.list_name) if lists is None else lists[condition.list_name]
    return _values(condition.kind, condition.op, condition.values) or Opaque(condition)


@lru_cache(65536)
def _values(kind: FieldKind, op: str, given: tuple[str, ...]) -> Values | None:
    if op == "present":
        return Anything()
    if op in ("exact", "in"):
        return Texts(frozenset(given))
    if op == "cidr":
        parsed = [ipaddress.ip_network(each) for each in given]
        v4 = ipaddress.collapse_addresses(each for each in parsed if isinstance(each, ipaddress.IPv4Network))
        v6 = ipaddress.collapse_addresses(each for each in parsed if isinstance(each, ipaddress.IPv6Network))
        return Networks((*v4, *v6))
    if len(given) != 1:
        return None
    text = given[0]
    if op == "regex":
        return _pattern(kind, text)
    if op == "number":
        return _interval(text)
    if op == "semver":
        return Versions(text, tuple(map(_span, semver.parse_range(text))))
    shapes: dict[str, Callable[[str], Values]] = {
        "prefix": Prefix,
        "suffix": Suffix,
        "path_prefix": lambda path: PathPrefix(path.rstrip("/")),
    }
    return shapes[op](text)


def _pattern(kind: FieldKind, text: str) -> Values:
    """A simple pattern as what it means."""
    shape, texts = patterns.simple(text) or (None, ())
    if shape == "texts":
        return Texts(frozenset(texts))
    if shape is None or kind in MAY_BREAK:
        return Pattern(text)
    return Anything() if shape == "anything" else (Prefix if shape == "prefix" else Suffix)(texts[0])


def _interval(text: str) -> Interval:
    low, low_open, high, high_open = -math.inf, False, math.inf, False
    holes = set()
    for op, value in numbers.parse_range(text):
        if op == "!=":
            holes.add(value)
        if op in (">", ">=", "=="):
            low, low_open = max((low, low_open), (value, op == ">"))
        if op in ("<", "<=", "=="):
            high, closed = min((high, not high_open), (value, op != "<"))
            high_open = not closed
    return Interval(text, low, low_open, high, high_open, frozenset(holes))


def _span(bounds: Sequence[semver.Comparator]) -> Span:
    low = next((bound for bound in bounds if bound.op in (">", ">=", "==")), None)
    high = next((bound for bound in bounds if bound.op in ("<", "<=", "==")), None)
    return Span(
        low.key if low else None,
        low is not None and low.op == ">",
        high.key if high else None,
        high is not None and high.op == "<",
    )


# ---- two sets of values ----------------------------------------------------------------------------------------------


def subset(a: Values, b: Values) -> bool:
    """Every value of `a` is one of `b`."""
    if isinstance(b, Anything) or a == b:
        return True
    if isinstance(b, NamedList | Opaque) or isinstance(a, NamedList | Opaque):
        return False
    if isinstance(a, Texts):
        return a.texts <= b.texts if isinstance(b, Texts) else all(map(b.holds, a.texts))
    if isinstance(a, Networks) and isinstance(b, Networks):
        return all(any(_inside(x, y) for y in b.networks) for x in a.networks)
    if isinstance(a, Networks):
        return False
    if isinstance(a, Interval) and isinstance(b, Interval):
        return a.within(b)
    if isinstance(a, Versions) and isinstance(b, Versions):
        return all(any(x.within(y) for y in b.spans) for x in a.spans)
    if isinstance(a, Suffix) and isinstance(b, Suffix):
        return a.text.endswith(b.text)
    if isinstance(a, Prefix | PathPrefix) and isinstance(b, Prefix | PathPrefix):
        return _prefix_within(a, b)
    return False


def _inside(x: Network, y: Network) -> bool:
    return x.version == y.version and x.prefixlen >= y.prefixlen and x.network_address in y


def _prefix_within(a: Prefix | PathPrefix, b: Prefix | PathPrefix) -> bool:
    if isinstance(b, Prefix):
        # the root's values begin with a slash
        return (a.text if isinstance(a, Prefix) else a.stem or "/").startswith(b.text)
    if isinstance(a, Prefix):
        return a.text.startswith(b.stem + "/")
    return a.stem == b.stem or a.stem.startswith(b.stem + "/")


def disjoint(a: Values, b: Values) -> bool:
    """No value is in both."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Texts) and not isinstance(y, NamedList | Opaque | Anything):
            small, large = (y, x) if isinstance(y, Texts) and len(y.texts) < len(x.texts) else (x, y)
            return not any(map(large.holds, small.texts)) if isinstance(small, Texts) else False
    if isinstance(a, Networks) and isinstance(b, Networks):
        return not any(_inside(x, y) or _inside(y, x) for x in a.networks for y in b.networks)
    if isinstance(a, Interval) and isinstance(b, Interval):
        return a.meet(b).empty
    if isinstance(a, Versions) and isinstance(b, Versions):
        return all(x.apart(y) for x in a.spans for y in b.spans)
    if isinstance(a, Suffix) and isinstance(b, Suffix):
        return not (a.text.endswith(b.text) or b.text.endswith(a.text))
    if isinstance(a, Prefix | PathPrefix) and isinstance(b, Prefix | PathPrefix):
        return not _prefixes_meet(a, b)
    return False


def _prefixes_meet(a: Prefix | PathPrefix, b: Prefix | PathPrefix) -> bool:
    if isinstance(a, Prefix) and isinstance(b, Prefix):
        return a.text.startswith(b.text) or b.text.startswith(a.text)
    if isinstance(a, PathPrefix) and isinstance(b, PathPrefix):
        return _prefix_within(a, b) or _prefix_within(b, a)
    prefix, path = (a, b) if isinstance(a, Prefix) else (b, a)
    assert isinstance(prefix, Prefix)
    assert isinstance(path, PathPrefix)
    # values of the path are the stem itself and all that begin with stem/
    return (path.stem + "/").startswith(prefix.text) or prefix.text.startswith(path.stem + "/")


def empty(values: Values) -> bool:
    if isinstance(values, Interval):
        return values.empty
    return isinstance(values, Texts | Networks) and not (values.texts if isinstance(values, Texts) else values.networks)


# ---- conditions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Test:
    """One condition. Negated: the value is none of `values`, or there is none."""

    field: Field
    values: Values
    negate: bool

    def holds(self, value: str | None) -> bool:
        return (value is not None and self.values.holds(value)) != self.negate


def follows(test: Test, known: Test) -> bool:
    """Of one field: whoever satisfies `known` satisfies `test`."""
    if known.negate:
        return test.negate and subset(test.values, known.values)
    return disjoint(known.values, test.values) if test.negate else subset(known.values, test.values)


def excluded(test: Test, known: Test) -> bool:
    """Of one field: nobody satisfies both."""
    return follows(Test(test.field, test.values, not test.negate), known)


class Conjunction:
    """What a match asks for. tests: by field, all of them hold. groups: of each, not all tests hold."""

    def __init__(self, tests: Iterable[Test] = (), groups: Iterable[Sequence[Test]] = ()) -> None:
        self.tests: dict[Field, list[Test]] = {}
        self.groups: list[tuple[Test, ...]] = []
        for test in tests:
            self._add(test)
        for group in groups:
            if len(group) == 1:
                self._add(Test(group[0].field, group[0].values, not group[0].negate))
            else:
                self.groups.append(tuple(group))

    @classmethod
    def of(cls, match: Match, lists: Mapping[str, Texts] | None) -> Conjunction:
        def test(condition: Condition) -> Test:
            return Test((condition.kind, condition.name), values_of(condition, lists), condition.negate)

        return cls(map(test, match.all), [list(map(test, group)) for group in match.none])

    def _add(self, test: Test) -> None:
        self.tests.setdefault(test.field, []).append(test)

    def both(self, other: Conjunction) -> Conjunction:
        """What asks for all that the two ask for."""
        return Conjunction(
            [test for each in (self, other) for found in each.tests.values() for test in found],
            [*self.groups, *other.groups],
        )

    def known(self, field: Field) -> list[Test]:
        """Tests of a field, also those that another field's value passes on."""
        found = list(self.tests.get(field, ()))
        kind, name = field
        if kind == "header":
            found += _positive(self.tests.get(("metadata", name), ()))
        elif kind == "mark":
            found += _positive(self.tests.get(("header", "x-service-version"), ()))
            found += _positive(self.tests.get(("metadata", "x-service-version"), ()))
        return found

    def forces(self, test: Test) -> bool:
        """Every request that satisfies this satisfies the test."""
        kind = test.field[0]
        if not test.negate and kind in ALWAYS and isinstance(test.values, Anything):
            return True
        if test.negate and empty(test.values):
            return True
        known = self.known(test.field)
        if any(follows(test, each) for each in known):
            return True
        texts = possible(known)
        return texts is not None and all(map(test.holds, texts)) and not _dark(test)

    def forbids(self, test: Test) -> bool:
        return self.forces(Test(test.field, test.values, not test.negate))

    @property
    def impossible(self) -> bool:
        """No request satisfies this."""
        for field, tests in self.tests.items():
            known = self.known(field)
            if any(not test.negate and empty(test.values) for test in tests):
                return True
            if any(test.negate and isinstance(test.values, Anything) and field[0] in ALWAYS for test in tests):
                return True
            if any(excluded(a, b) for a in tests for b in known if a is not b) or possible(known) == []:
                return True
        return any(all(map(self.forces, group)) for group in self.groups)

    def implies(self, other: Conjunction) -> bool:
        """Every request that satisfies this satisfies the other."""
        if not all(self.forces(test) for tests in other.tests.values() for test in tests):
            return False
        return all(self._breaks(group) for group in other.groups)

    def _breaks(self, group: Sequence[Test]) -> bool:
        """Not all tests of the group can hold here: one cannot, or they would make a group of ours hold."""
        if any(map(self.forbids, group)):
            return True
        assumed = Conjunction(group)
        return any(all(map(assumed.forces, own)) for own in self.groups)


def _positive(tests: Iterable[Test]) -> list[Test]:
    return [test for test in tests if not test.negate]


def _dark(test: Test) -> bool:
    return isinstance(test.values, NamedList | Opaque)


def possible(known: Sequence[Test]) -> list[str] | None:
    """The values that are left when some test allows only some texts; None when there are too many to tell."""
    finite = [test.values.texts for test in known if not test.negate and isinstance(test.values, Texts)]
    if not finite:
        return None
    seen = [test for test in known if not _dark(test)]
    return [text for text in min(finite, key=len) if all(test.holds(text) for test in seen)]
