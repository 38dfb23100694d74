"""Two answers to one request compared: status, chosen headers, bodies; and what many comparisons come to, path by path.

Pure. Bodies that are JSON are compared value by value, all others byte by byte. Fields that differ by nature, times and
random numbers, are masked by patterns, a small part of JSONPath (RFC 9535): `$.a.b`, `$.items[*].id`, `$.items[0]`,
`$.*`, and `$..id` for an `id` at any depth. What is under a masked place is masked too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

import orjson

MAX_BODY: Final = 1 << 20
"""Bytes of a body that was compressed; what is longer is compared as it is."""
MAX_FOUND: Final = 20
"""Differences of one pair that are told."""
MAX_PATHS: Final = 200
MAX_KINDS: Final = 100
"""Of one path: differences that are told apart."""
MAX_SHOWN: Final = 120
"""Characters of a value."""
OTHERS: Final = "(other paths)"

Place = tuple[str | int, ...]
"""A value's keys and indices from the root of its document."""

_STEP = re.compile(r"(?P<deep>\.\.)(?P<deep_name>\*|[^.\[\]]+)|\.(?P<name>\*|[^.\[\]]+)|\[(?P<index>\*|\d+|'[^']*')\]")
_ID = re.compile(r"\d+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{20,}|[0-9a-fA-F]{16,}")


@dataclass(frozen=True, slots=True)
class Mask:
    """A parsed pattern. steps: (at any depth?, key, index or None for every one)."""

    text: str
    steps: tuple[tuple[bool, str | int | None], ...]

    @classmethod
    def parse(cls, text: str) -> Mask:
        """Raises ValueError."""
        steps: list[tuple[bool, str | int | None]] = []
        at = 1
        while at < len(text) and text[0] == "$":
            found = _STEP.match(text, at)
            if found is None:
                break
            step = found["deep_name"] or found["name"] or found["index"]
            quoted = found["index"] is not None and step.startswith("'")
            key: str | int | None = step.strip("'") if quoted else step
            if step == "*":
                key = None
            elif found["index"] is not None and not quoted:
                key = int(step)
            steps.append((found["deep"] is not None, key))
            at = found.end()
        if not steps or at != len(text):
            raise ValueError(f"{text!r}: expected a pattern such as $.time, $.items[*].id or $..id")
        return cls(text, tuple(steps))

    def covers(self, place: Place) -> bool:
        """Whether the place, or one that it is under, is what the pattern names."""
        reached: Collection[int] = (0,)  # how much of the place the steps so far may have used
        for deep, key in self.steps:
            tried = range(min(reached), len(place)) if deep else reached
            reached = {n + 1 for n in tried if n < len(place) and (key is None or place[n] == key)}
            if not reached:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Answer:
    """status: 0 where there was none, or not all of it. headers: names in lower case, trailers among them.

    size: of the whole body, of which `body` may be the first part only.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    size: int = 0

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]

    @property
    def whole(self) -> bool:
        return self.size == len(self.body)


@dataclass(frozen=True, slots=True)
class Settings:
    """headers: those that are compared, in lower case."""

    headers: tuple[str, ...] = ("content-type",)
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """kind: answer, status, header, json, body. where: the header, or the place in the JSON, `[*]` for indices."""

    kind: str
    where: str = ""


Found = dict[Difference, tuple[str, str]]
"""With an example of each: the value of the first answer, and of the second."""


def answer(status: int, head: bytes, body: bytes, size: int, trailers: bytes, complete: bool) -> Answer:
    """Of texts in the form of HTTP/1.1."""
    lines = head.decode("latin-1").split("\r\n")[1:] + trailers.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
    return Answer(status if complete else 0, headers, body, size)


def compare(one: Answer, two: Answer, settings: Settings) -> Found:
    """What differs; nothing where the answers are equal, as far as settings and the kept bytes tell."""
    found: Found = {}
    if not (one.status and two.status):
        if one.status or two.status:
            found[Difference("answer")] = _status(one), _status(two)
        return found
    if one.status != two.status:
        found[Difference("status")] = _status(one), _status(two)
    for name in dict.fromkeys((*settings.headers, "grpc-status")):
        values = one.values(name), two.values(name)
        if values[0] != values[1]:
            found[Difference("header", name)] = _joined(values[0]), _joined(values[1])
    if one.whole and two.whole:
        _bodies(_decoded(one), _decoded(two), settings, found)
    return found


def _status(x: Answer) -> str:
    return str(x.status) if x.status else "no answer"


def _joined(values: Sequence[str]) -> str:
    return shown(", ".join(values)) if values else "absent"


def _decoded(x: Answer) -> bytes:
    """Without gzip, if that is its coding and it is not too long then."""
    if [each.lower() for each in x.values("content-encoding")] != ["gzip"]:
        return x.body
    decoder = zlib.decompressobj(wbits=31)
    try:
        text = decoder.decompress(x.body, MAX_BODY)
    except zlib.error:
        return x.body
    return text if decoder.eof else x.body


def _bodies(one: bytes, two: bytes, settings: Settings, found: Found) -> None:
    if one == two:
        return
    try:
        documents = orjson.loads(one), orjson.loads(two)
    except orjson.JSONDecodeError:
        found[Difference("body")] = _bytes(one), _bytes(two)
        return
    for place, values in differing(*documents):
        if len(found) >= MAX_FOUND:
            return
        difference = Difference("json", shown(written(place)))
        if difference not in found and not any(mask.covers(place) for mask in settings.masks):
            found[difference] = _value(values[0]), _value(values[1])


class _Absent:
    pass


ABSENT: Final = _Absent()


def differing(one: Any, two: Any) -> Iterator[tuple[Place, tuple[Any, Any]]]:
    """Places of JSON values that differ, with both values: the smallest parts. 1 equals 1.0 and does not equal true."""
    # no recursion: instances nest as deep as they like
    ahead: list[tuple[Place, Any, Any]] = [((), one, two)]
    while ahead:
        place, one, two = ahead.pop()
        if isinstance(one, dict) and isinstance(two, dict):
            keys = list(dict.fromkeys((*one, *two)))
            ahead += [((*place, key), one.get(key, ABSENT), two.get(key, ABSENT)) for key in reversed(keys)]
        elif isinstance(one, list) and isinstance(two, list):
            pairs = list(zip_longest(one, two, fillvalue=ABSENT))
            ahead += [((*place, n), *pairs[n]) for n in reversed(range(len(pairs)))]
        elif one is not two and (isinstance(one, bool) or isinstance(two, bool) or one != two):
            yield place, (one, two)


def written(place: Place) -> str:
    """`$.items[*].id`"""
    return "$" + "".join("[*]" if isinstance(step, int) else f".{step}" for step in place)


def _value(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    try:
        return shown(orjson.dumps(value).decode())
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        return "[… nested too deep]" if isinstance(value, list) else "{… nested too deep}"


def _bytes(body: bytes) -> str:
    return shown(body[: 2 * MAX_SHOWN].decode("utf-8", "backslashreplace")) if body else "empty"


def shown(text: str) -> str:
    """Cut, and fit for a terminal."""
    text = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def path_of(line: str) -> str:
    """`GET /users/*` of a request line: no query, and what looks like an identifier left out."""
    method, _, rest = line.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    return f"{method} " + "/".join("*" if _ID.fullmatch(part) else shown(part) for part in path.split("/"))


@dataclass
class _Seen:
    count: int
    request: str
    values: tuple[str, str]


@dataclass
class _OfPath:
    compared: int = 0
    different: int = 0
    found: dict[Difference, _Seen] = field(default_factory=dict)


class Report:
    """What comparisons of one service come to. Its size is bounded, whatever it is given."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.compared = self.different = self.partly = 0
        self.paths: dict[str, _OfPath] = {}

    def add(self, line: str, one: Answer, two: Answer) -> None:
        """line: the request line."""
        path = path_of(line)
        if path not in self.paths and len(self.paths) >= MAX_PATHS:
            path = OTHERS
        of = self.paths.setdefault(path, _OfPath())
        found = compare(one, two, self.settings)
        self.compared += 1
        self.partly += not (one.whole and two.whole)
        self.different += bool(found)
        of.compared += 1
        of.different += bool(found)
        for difference, values in found.items():
            seen = of.found.get(difference)
            if seen is not None:
                seen.count += 1
            elif len(of.found) < MAX_KINDS:
                of.found[difference] = _Seen(1, shown(line), values)

    def told(self) -> Mapping[str, Any]:
        """JSON-ready; paths with the most differences first."""
        ordered = sorted(self.paths.items(), key=lambda pair: (-pair[1].different, pair[0]))
        return {
            "compared": self.compared,
            "different": self.different,
            "bodies_not_compared": self.partly,
            "paths": [{"path": path, **_told(of)} for path, of in ordered],
        }


def _told(of: _OfPath) -> dict[str, Any]:
    ordered = sorted(of.found.items(), key=lambda pair: (-pair[1].count, pair[0]))
    return {
        "compared": of.compared,
        "different": of.different,
        "differences": [
            {
                "kind": difference.kind,
                "where": difference.where,
                "count": seen.count,
                "request": seen.request,
                "primary": seen.values[0],
                "mirror": seen.values[1],
            }
            for difference, seen in ordered
        ],
    }
