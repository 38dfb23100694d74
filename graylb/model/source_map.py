"""YAML 1.2 (and so JSON) text -> plain data, and the line and column of everything in it.

The events of PyYAML (its C parser where there is one) are built into data without recursion, so neither depth nor
aliases can exhaust anything. Scalars follow the core schema of YAML 1.2: `on`, `yes` and dates are strings; keys
are always strings; numbers remember how they were written, so a version `1.10` stays "1.10" where text is wanted.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
    StreamEndEvent,
)

from graylb.model.problems import ConfigError, ConfigErrors, Path, json_path, shown

MAX_DEPTH = 64
"""Nested mappings and lists."""
MAX_ALIASED = 1_000_000
"""Values that aliases may add to those written."""

_Parser: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # PyYAML may be built without libyaml

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NOT_FINITE = {
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_NUMBER_START = frozenset("0123456789+-.")
_LONGEST_NUMBER = 40
_TAG = "tag:yaml.org,2002:"
# JSON writes characters beyond U+FFFF as two escapes, which YAML does not know. Escaped backslashes are skipped over.
_LONE = re.compile("[\ud800-\udfff]")
_INDENT = re.compile(r"^[ \t]*\t[ \t]*", re.MULTILINE)
_SURROGATES = re.compile(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class WrittenInt(int):
    """An integer whose own text differs from `str` of it: `007`, `0x1F`."""

    text: str


class WrittenFloat(float):
    """A number with a point or exponent, and how it was written: `1.10`. May be NaN or infinite."""

    text: str


Position = tuple[int, int]
"""Line and column, from 1."""


@dataclass(slots=True)
class _Places:
    """Where a container and its children begin; children are positions or containers again."""

    at: Position
    keys: dict[str, Position] = field(default_factory=dict)
    values: dict[str | int, Position | _Places] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed document. `data` holds dict, list, str, int, float, bool and None only (or subclasses of these)."""

    name: str
    data: Any
    places: Position | _Places

    def position(self, path: Path, *, key: bool = False) -> Position:
        """Of the value at the path, or of its key; of the nearest enclosing value when there is none."""
        place, at = self.places, _at(self.places)
        for depth, part in enumerate(path, 1):
            if not isinstance(place, _Places) or part not in place.values:
                break
            if key and depth == len(path) and isinstance(part, str):
                return place.keys[part]
            place = place.values[part]
            at = _at(place)
        return at


def parse(text: str | bytes, name: str) -> Source:
    """Raises ConfigErrors for anything but one well-formed document that is not empty."""
    return _Builder(_decoded(text, name), name).build()


def _at(place: Position | _Places) -> Position:
    return place.at if isinstance(place, _Places) else place


def _fail(name: str, at: Position, message: str, expected: str, path: str = "", value: str = "") -> NoReturn:
    raise ConfigErrors([ConfigError(name, *at, path=path, value=value, expected=expected, message=message)])


def _position(text: str, index: int) -> Position:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _decoded(text: str | bytes, name: str) -> str:
    if isinstance(text, bytes):
        raw = text.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            before = raw[: error.start].decode()
            at = _position(before, len(before))
            _fail(name, at, f"byte 0x{raw[error.start]:02x} is not UTF-8", "a text in UTF-8")
    text = text.removeprefix("\ufeff")
    if found := _UNPRINTABLE.search(text):
        message = f"character U+{ord(found[0]):04X} may not stand in a document"
        _fail(name, _position(text, found.start()), message, "printable text")
    return _from_json(text) if text.lstrip()[:1] == "{" else text


def _from_json(text: str) -> str:
    """What JSON has and YAML has not, in YAML's way; positions stay."""
    text = _INDENT.sub(lambda tabs: " " * len(tabs[0]), text)
    return _SURROGATES.sub(_joined, text) if "\\u" in text else text


def _joined(pair: re.Match[str]) -> str:
    if len(pair[0]) == 2:
        return pair[0]
    high, low = int(pair[0][2:6], 16), int(pair[0][8:12], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


@dataclass(slots=True)
class _Frame:
    """A container that is not complete yet. size: values in it, aliases counted in full."""

    value: Any
    places: _Places
    anchor: str | None
    size: int = 1
    key: str | None = None
    merges: list[tuple[Any, _Places]] = field(default_factory=list)


_OPEN = object()


class _Builder:
    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, Position | _Places, int]] = {}
        self.aliased = 0
        self.root: tuple[Any, Position | _Places] | None = None

    def build(self) -> Source:
        documents = 0
        try:
            parser = _Parser(self.text)
            while not isinstance(event := parser.get_event(), StreamEndEvent):
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self.fail(event, "a second document begins here", "one document in a file")
                else:
                    self.take(event)
        except yaml.MarkedYAMLError as error:
            self.fail_syntax(error)
        if self.root is None or self.root[0] is None:
            _fail(self.name, (1, 1), "the document is empty", "a mapping with listeners and services")
        return Source(self.name, *self.root)

    def take(self, event: Event) -> None:
        if isinstance(event, ScalarEvent):
            self.take_scalar(event)
        elif isinstance(event, CollectionStartEvent):
            self.open(event)
        elif isinstance(event, CollectionEndEvent):
            self.close()
        elif isinstance(event, AliasEvent):
            self.take_alias(event)

    def take_scalar(self, event: ScalarEvent) -> None:
        if event.style == '"' and (lone := _LONE.search(event.value)):
            self.fail(event, f"character U+{ord(lone[0]):04X} may not stand in a document", "printable text")
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is None and isinstance(frame.value, dict):
            plain = event.implicit[0] or event.tag == _TAG + "merge"
            self.take_key(frame, event.value, event, merge=plain and event.value == "<<")
            return
        place = _mark(event)
        value = self.scalar(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, place, 1)
        self.put(value, place, 1, event)

    def take_key(self, frame: _Frame, key: str, event: Event, *, merge: bool) -> None:
        at = _mark(event)
        if merge:
            frame.key = ""
            frame.places.keys.setdefault("<<", at)
            frame.merges.append((_OPEN, frame.places))
            return
        if key in frame.value:
            first = frame.places.keys[key][0]
            path = json_path((*self.path(), key))
            _fail(self.name, at, f"key {shown(key)} stands twice, first in line {first}", "each key once", path)
        frame.key = key
        frame.places.keys[key] = at

    def take_alias(self, event: AliasEvent) -> None:
        anchored = self.anchors.get(event.anchor or "")
        if anchored is None:
            self.fail(event, f"alias *{event.anchor} has no anchor", f"&{event.anchor} before it")
        value, place, size = anchored
        if value is _OPEN:
            self.fail(event, f"alias *{event.anchor} stands within what it names", "data without a cycle")
        self.aliased += size
        if self.aliased > MAX_ALIASED:
            self.fail(event, "the aliases stand for too much data", f"at most {MAX_ALIASED} values through aliases")
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is None and isinstance(frame.value, dict):
            if not isinstance(value, str):
                self.fail(event, f"alias *{event.anchor} is used as a key", "a text as key")
            self.take_key(frame, value, event, merge=False)
            return
        self.put(value, place, size, event)

    def open(self, event: CollectionStartEvent) -> None:
        mapping = isinstance(event, MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            self.fail(event, f"unknown tag {shown(event.tag)}", "no tag")
        if self.stack and self.stack[-1].key is None and isinstance(self.stack[-1].value, dict):
            self.fail(event, "got a mapping as key" if mapping else "got a list as key", "a text as key")
        if len(self.stack) == MAX_DEPTH:
            self.fail(event, "the document is nested too deeply", f"at most {MAX_DEPTH} levels")
        frame = _Frame({} if mapping else [], _Places(_mark(event)), event.anchor)
        if event.anchor is not None:
            self.anchors[event.anchor] = (_OPEN, frame.places, 0)
        self.stack.append(frame)

    def close(self) -> None:
        frame = self.stack.pop()
        for value, places in frame.merges:
            for key in value:
                if key not in frame.value:
                    frame.value[key] = value[key]
                    frame.places.keys[key] = places.keys[key]
                    frame.places.values[key] = places.values[key]
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (frame.value, frame.places, frame.size)
        self.put(frame.value, frame.places, frame.size, None)

    def put(self, value: Any, place: Position | _Places, size: int, event: Event | None) -> None:
        """Into the container that is being built, or as the document's root."""
        if not self.stack:
            self.root = (value, place)
            return
        frame = self.stack[-1]
        frame.size += size
        if isinstance(frame.value, list):
            frame.places.values[len(frame.value)] = place
            frame.value.append(value)
            return
        assert frame.key is not None
        if frame.merges and frame.merges[-1][0] is _OPEN:
            frame.merges.pop()
            frame.merges += self.merged(value, place)
        else:
            frame.value[frame.key] = value
            frame.places.values[frame.key] = place
        frame.key = None

    def merged(self, value: Any, place: Position | _Places) -> list[tuple[Any, _Places]]:
        """What `<<` names: a mapping, or a list of mappings of which the earlier wins."""
        if isinstance(value, dict) and isinstance(place, _Places):
            return [(value, place)]
        if isinstance(value, list) and isinstance(place, _Places):
            inner = [(each, place.values[index]) for index, each in enumerate(value)]
            pairs = [(each, at) for each, at in inner if isinstance(each, dict) and isinstance(at, _Places)]
            if len(pairs) == len(value):
                return pairs
        path = json_path((*self.path(), "<<"))
        _fail(self.name, _at(place), "", "a mapping to merge, or a list of them", path, shown(value))

    def path(self) -> Path:
        """Of the container that is being built."""
        parents = self.stack[:-1]
        return tuple(len(frame.value) if frame.key is None else frame.key for frame in parents)

    def scalar(self, event: ScalarEvent) -> Any:
        if event.implicit[0] and event.tag != "!":
            return plain_scalar(event.value)
        if event.tag in (None, "!", _TAG + "str"):
            return event.value
        kind = event.tag.removeprefix(_TAG)
        value = plain_scalar(event.value)
        kinds: dict[str, type | tuple[type, ...]] = {
            "int": int,
            "float": (int, float),
            "bool": bool,
            "null": type(None),
        }
        if kind not in kinds:
            self.fail(event, f"unknown tag {shown(event.tag)}", "no tag")
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "bool"):
            self.fail(event, f"{shown(event.value)} does not fit its tag !!{kind}", "a value of that type, or no tag")
        return value

    def fail(self, event: Event, message: str, expected: str) -> NoReturn:
        _fail(self.name, _mark(event), message, expected)

    def fail_syntax(self, error: yaml.MarkedYAMLError) -> NoReturn:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        lines = self.text.split("\n")
        line = lines[at[0] - 1] if at[0] <= len(lines) else ""
        if line[at[1] - 1 : at[1]] == "\t":
            _fail(self.name, at, "a tab cannot indent", "spaces")
        problem = error.problem or error.context or "cannot be read"
        if error.problem and error.context and error.context_mark is not None:
            problem += f" ({error.context} of line {error.context_mark.line + 1})"
        _fail(self.name, at, f"not valid YAML: {problem}", "a YAML or JSON document")


def _mark(event: Event) -> Position:
    mark = event.start_mark
    assert mark is not None  # parsers set it
    return mark.line + 1, mark.column + 1


def plain_scalar(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2.2, section 10.3.2."""
    if text[:1] not in _NUMBER_START:
        return _WORDS.get(text, text)
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text, base)
        if str(number) == text:
            return number
        written = WrittenInt(number)
        written.text = text
        return written
    if text in _NOT_FINITE or _FLOAT.fullmatch(text):
        real = WrittenFloat(_NOT_FINITE[text] if text in _NOT_FINITE else float(text))
        real.text = text
        return real
    return text
