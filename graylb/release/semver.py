"""SemVer versions and ranges: `>=1.2,<2 || ^3.1`.

Order is that of SemVer 2.0.0 section 11. The grammar and the treatment of pre-releases follow the "simple" ranges of
the semantic_version library, which is the tests' oracle. A range becomes comparators over one total order of keys
(major, minor, patch, rank, pre), so that a compiled matcher needs no knowledge of the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Op = Literal["<", "<=", ">", ">=", "==", "!="]
PreKey = tuple[tuple[int, int, str], ...]
Key = tuple[int, int, int, int, PreKey]

BELOW, PRE, RELEASE = 0, 1, 2
"""Ranks within one triple: below all of its pre-releases, a pre-release, the release."""

LIMIT = 2**63
"""Numbers of versions and of bounds are less than this."""

_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"[vV]?({_NUMBER})(?:\.({_NUMBER}))?(?:\.({_NUMBER}))?"
    rf"(?:-({_PRE}(?:\.{_PRE})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_WILDCARD = re.compile(rf"[vV]?(?=[^.]+(?:\.[^.]+){{0,2}}$)(?:{_NUMBER}\.)*[xX*](?:\.[xX*])*")
_TERM = re.compile(r"(>=|<=|==|!=|>|<|=|\^|~)?\s*([^\s,<>=!^~|]+)(\s*,\s*|\s+|$)")
_EXPECTED = "expected comparators like '>=1.2,<2', '^1.2', '~1.2.3' or '1.x', alternatives separated by '||'"


class Version(NamedTuple):
    """`pre` is the dotted pre-release text, "" for a release. Build metadata is dropped."""

    major: int
    minor: int
    patch: int
    pre: str = ""

    @property
    def key(self) -> Key:
        return (self.major, self.minor, self.patch, PRE if self.pre else RELEASE, pre_key(self.pre))


class Comparator(NamedTuple):
    """Holds for a version whose key stands in relation `op` to this bound's key.

    `pre` is dotted text, given only with rank 1. `parse_range` writes every `!=` as two alternatives, so it never
    yields that operator.
    """

    op: Op
    major: int
    minor: int
    patch: int
    rank: int
    pre: str = ""

    @property
    def key(self) -> Key:
        return (self.major, self.minor, self.patch, self.rank, pre_key(self.pre))


Range = tuple[tuple[Comparator, ...], ...]
"""Alternatives, each the comparators that must all hold."""


class _Interval(NamedTuple):
    low: Comparator | None = None  # > or >=
    high: Comparator | None = None  # < or <=


def pre_key(pre: str) -> PreKey:
    """Section 11.4: numeric identifiers by value and below the others, those by ASCII; a longer list above its prefix.

    Without leading zeros (length, text) orders numbers by value, however long they are.
    """
    parts = pre.split(".") if pre else []
    return tuple((0, len(part), part) if part.isdigit() else (1, 0, part) for part in parts)


def parse_version(text: str) -> Version | None:
    """`v1.2.3-rc.1+build`: the `v` (or `V`), minor and patch may be missing (0). None when it is anything else."""
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    major, minor, patch = (_number(part or "0") for part in found.group(1, 2, 3))
    if max(major, minor, patch) >= LIMIT:
        return None
    return Version(major, minor, patch, found[4] or "")


def parse_range(text: str) -> Range:
    """Comparators joined by spaces or commas all hold; `||` separates alternatives.

    `1.2`, `1.2.*`, `1.x`, `*`, `=1.2.3`, `!=1.2`, `<`, `<=`, `>`, `>=`, `^1.2` (same leftmost non-zero number), `~1.2`
    (same minor, or same major when no minor is given); a leading `v` is allowed. Raises ValueError.
    """
    alternatives: list[tuple[Comparator, ...]] = []
    for part in text.split("||"):
        intervals = [_Interval()]
        for op, version in _terms(part, text):
            found = _intervals(op, version, text)
            intervals = [both for a in intervals for b in found if (both := _intersect(a, b)) is not None]
        if not intervals:
            raise ValueError(f"SemVer range {text!r}: no version can satisfy {part.strip()!r}")
        alternatives += [_comparators(interval) for interval in intervals]
    return tuple(alternatives)


_OPS: dict[str, Callable[[Key, Key], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def satisfies(version_text: str, range: Range) -> bool:
    """False for a text that is no version."""
    version = parse_version(version_text)
    if version is None:
        return False
    return any(all(_OPS[bound.op](version.key, bound.key) for bound in bounds) for bounds in range)


def _terms(part: str, text: str) -> list[tuple[str, str]]:
    """The (operator, version) pairs of one alternative; no operator reads as `==`."""
    part = part.strip()
    terms: list[tuple[str, str]] = []
    at, comma = 0, True  # a comma wants a comparator after it, and so does the beginning
    while at < len(part):
        found = _TERM.match(part, at)
        if found is None:
            raise ValueError(f"SemVer range {text!r}: cannot read {part[at:]!r}; {_EXPECTED}")
        op = found[1] or "=="
        terms.append(("==" if op == "=" else op, found[2]))
        at, comma = found.end(), "," in found[3]
    if comma:
        raise ValueError(f"SemVer range {text!r}: a comparator is missing; {_EXPECTED}")
    return terms


def _intervals(op: str, version: str, text: str) -> list[_Interval]:
    """What one comparator allows: one interval, or the two around what `!=` leaves out."""
    where = f"SemVer range {text!r}"
    given = _numbers(version, where)
    if not given:
        if op not in ("==", ">="):
            raise ValueError(f"{where}: {op!r} cannot be used with {version!r}; expected a version with a number")
        return [_Interval(_release(">=", (0, 0, 0)))]
    pre = _VERSION.fullmatch(version)
    if pre is not None and pre[4]:
        if len(given) < 3:
            raise ValueError(f"{where}: pre-release of the partial version {version!r}; expected all three numbers")
        return _full(op, given, pre[4])
    if len(given) == 3 or op in ("^", "~"):
        return _full(op, given, "")
    return _partial(op, given)


def _numbers(version: str, where: str) -> tuple[int, ...]:
    """The numbers before the first missing or wildcard part."""
    if _WILDCARD.fullmatch(version):
        texts = [part for part in version.lstrip("vV").split(".") if part not in ("x", "X", "*")]
    else:
        found = _VERSION.fullmatch(version)
        if found is None:
            raise ValueError(f"{where}: {version!r} is not a version; expected one like '1.2.3', '1.2.3-rc.1' or '1.x'")
        texts = [part for part in found.group(1, 2, 3) if part is not None]
    numbers = tuple(map(_number, texts))
    # One less than LIMIT, so that the bound after the last still is below it.
    if any(number >= LIMIT - 1 for number in numbers):
        raise ValueError(f"{where}: a number of {version!r} is too large; expected less than {LIMIT - 1}")
    return numbers


def _number(digits: str) -> int:
    """Anything over 19 digits reads as LIMIT: Python refuses to convert very long texts."""
    return int(digits) if len(digits) < 20 else LIMIT


def _full(op: str, given: tuple[int, ...], pre: str) -> list[_Interval]:
    triple = _pad(given)
    rank = PRE if pre else RELEASE

    def bound(op: Op) -> Comparator:
        return Comparator(op, *triple, rank, pre)

    if op in ("^", "~"):
        depth = 2 if op == "~" else 1 + next((i for i, n in enumerate(given) if n), len(given) - 1)
        return [_Interval(bound(">="), _below(_next(given[:depth])))]
    # Nobody who excludes a release wants its candidates either.
    below = bound("<") if pre else _below(triple)
    intervals: dict[str, list[_Interval]] = {
        "<": [_Interval(None, below)],
        "<=": [_Interval(None, bound("<="))],
        ">": [_Interval(bound(">"))],
        ">=": [_Interval(bound(">="))],
        "==": [_Interval(bound(">="), bound("<="))],
        "!=": [_Interval(None, below), _Interval(bound(">"))],
    }
    return intervals[op]


def _partial(op: str, given: tuple[int, ...]) -> list[_Interval]:
    """A partial version stands for all versions that begin with it."""
    first, after = _pad(given), _next(given)
    intervals: dict[str, list[_Interval]] = {
        "<": [_Interval(None, _below(first))],
        "<=": [_Interval(None, _below(after))],
        ">": [_Interval(_release(">=", after))],
        ">=": [_Interval(_release(">=", first))],
        "==": [_Interval(_release(">=", first), _below(after))],
        "!=": [_Interval(None, _below(first)), _Interval(_release(">=", after))],
    }
    return intervals[op]


def _pad(given: tuple[int, ...]) -> tuple[int, int, int]:
    major, minor, patch = (*given, 0, 0)[:3]
    return major, minor, patch


def _next(given: tuple[int, ...]) -> tuple[int, int, int]:
    return _pad((*given[:-1], given[-1] + 1))


def _below(triple: tuple[int, int, int]) -> Comparator:
    return Comparator("<", *triple, BELOW)


def _release(op: Op, triple: tuple[int, int, int]) -> Comparator:
    return Comparator(op, *triple, RELEASE)


def _intersect(a: _Interval, b: _Interval) -> _Interval | None:
    """The stricter of both ends; None when nothing is left. At equal keys the strict operator is the stricter."""
    lows = [low for low in (a.low, b.low) if low is not None]
    highs = [high for high in (a.high, b.high) if high is not None]
    low = max(lows, key=lambda bound: (bound.key, bound.op == ">"), default=None)
    high = min(highs, key=lambda bound: (bound.key, bound.op == "<="), default=None)
    if low is not None and high is not None:
        closed = low.op == ">=" and high.op == "<="
        if low.key > high.key or (low.key == high.key and not closed):
            return None
    return _Interval(low, high)


def _comparators(interval: _Interval) -> tuple[Comparator, ...]:
    low, high = interval
    if low is not None and high is not None and low.key == high.key:
        return (low._replace(op="=="),)
    return tuple(bound for bound in (low, high) if bound is not None)
