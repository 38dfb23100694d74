"""A look into regular expressions (RE2 syntax): what simple ones mean, and texts that a pattern may match.

A reader of the part of the syntax that people write in match conditions. What it does not know it says nothing about;
nothing here decides whether a text matches, that is RE2's own business.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

Shape = tuple[Literal["texts", "prefix", "suffix", "anything"], tuple[str, ...]]
"""What a simple pattern accepts: one of some texts, texts by beginning or end, or every text without a line break."""

MAX_TEXTS = 64
SAMPLES = 12


class _Unknown(Exception):
    """A construct that this reader leaves alone."""


@dataclass(frozen=True, slots=True)
class _Char:
    options: str  # characters that may stand here, the likeliest first
    all: bool = True  # there are no others

    @property
    def literal(self) -> bool:
        return self.all and len(self.options) == 1


@dataclass(frozen=True, slots=True)
class _AnyChar:
    pass


@dataclass(frozen=True, slots=True)
class _Repeat:
    what: _Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    options: tuple[_Node, ...]


_Node = _Char | _AnyChar | _Repeat | _Sequence | _Either

_VISIBLE = "xa0A-_.1b/:@ " + string.printable.strip()
_CLASSES = {"d": string.digits, "w": string.ascii_letters + string.digits + "_", "s": " \t\n\f\r"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


def simple(pattern: str) -> Shape | None:
    """What a pattern that must match the whole text comes to when it is simple; None when it is not, or not read."""
    try:
        node = _Reader(pattern, flags=False).read()
    except _Unknown:
        return None
    if node == _ANYTHING:
        return "anything", ()
    parts = node.parts if isinstance(node, _Sequence) else (node,)
    try:
        if parts[-1:] == (_ANYTHING,) and (text := _literal(parts[:-1])):
            return "prefix", (text,)
        if parts[:1] == (_ANYTHING,) and (text := _literal(parts[1:])):
            return "suffix", (text,)
        return "texts", tuple(islice(dict.fromkeys(_texts(node)), MAX_TEXTS))
    except _Unknown:
        return None


def samples(pattern: str) -> list[str]:
    """Some texts that the pattern probably matches, at most a dozen; none when it cannot be read."""
    try:
        node = _Reader(pattern, flags=True).read()
        return list(dict.fromkeys(islice(_some(node), SAMPLES)))
    except _Unknown:
        return []


_ANYTHING = _Repeat(_AnyChar(), 0, None)


def _literal(parts: tuple[_Node, ...]) -> str:
    if not all(isinstance(part, _Char) and part.literal for part in parts):
        raise _Unknown
    return "".join(part.options for part in parts if isinstance(part, _Char))


def _texts(node: _Node) -> list[str]:
    """All texts of a pattern without repetition."""
    if isinstance(node, _Char) and node.all:
        return list(node.options)
    if isinstance(node, _Either):
        found = [text for option in node.options for text in _texts(option)]
    elif isinstance(node, _Sequence):
        found = [""]
        for part in node.parts:
            found = [before + after for before in found for after in _texts(part)]
            if len(found) > MAX_TEXTS:
                raise _Unknown
    elif isinstance(node, _Repeat) and (node.low, node.high) == (0, 1):
        found = ["", *_texts(node.what)]
    else:
        raise _Unknown
    if len(found) > MAX_TEXTS:
        raise _Unknown
    return found


def _some(node: _Node) -> Iterator[str]:
    """A few texts, short ones first."""
    if isinstance(node, _Char):
        yield from node.options[:4]
    elif isinstance(node, _AnyChar):
        yield from "xa0"
    elif isinstance(node, _Either):
        for option in node.options:
            yield from islice(_some(option), 3)
    elif isinstance(node, _Sequence):
        choices = [list(islice(_some(part), 3)) for part in node.parts]
        if all(len(each) > 0 for each in choices):
            yield "".join(each[0] for each in choices)
            yield from map("".join, islice(product(*choices), 1, 40))
    else:
        counts = [max(node.low, 1), node.low, node.low + 1]
        for count in dict.fromkeys(counts if node.high is None else [min(each, node.high) for each in counts]):
            if count > 64:
                raise _Unknown
            yield from (text * count for text in islice(_some(node.what), 2))


class _Reader:
    """Recursive descent. flags: whether `(?i)` and the like may stand, which change what is meant."""

    def __init__(self, pattern: str, *, flags: bool) -> None:
        self.text, self.at, self.flags = pattern, 0, flags

    def read(self) -> _Node:
        if self.flags and self.text.startswith("(?i)"):
            self.at = 4
        # anchors at the ends say again that the whole text must match
        if self.peek() == "^":
            self.at += 1
        if self.text.endswith("$") and not self.text.endswith("\\$"):
            self.text = self.text[:-1]
        node = self.either(0)
        if self.at < len(self.text):
            raise _Unknown
        return node

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        found = self.peek()
        if not found:
            raise _Unknown
        self.at += 1
        return found

    def either(self, depth: int) -> _Node:
        if depth > 20:
            raise _Unknown
        options = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self.peek() not in ("", "|", ")"):
            part = self.repeated(self.one(depth))
            parts += part.parts if isinstance(part, _Sequence) else (part,)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def repeated(self, what: _Node) -> _Node:
        bounds: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        char = self.peek()
        if char in bounds and char:
            self.at += 1
            low, high = bounds[char]
        elif char == "{":
            low, high = self.braces()
        else:
            return what
        if self.peek() == "?":
            self.at += 1  # lazy: matches the same texts
        if self.peek() in ("*", "+", "?", "{") and self.peek():
            raise _Unknown
        if isinstance(what, _Char) and not what.options.isascii():
            raise _Unknown  # RE2 repeats the last byte only
        return _Repeat(what, low, high)

    def braces(self) -> tuple[int, int | None]:
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high):
            raise _Unknown
        self.at = end + 1
        return int(low), int(high) if high else None if comma else int(low)

    def one(self, depth: int) -> _Node:
        char = self.take()
        if char == "(":
            return self.group(depth)
        if char == "[":
            return self.bracket()
        if char == ".":
            return _AnyChar()
        if char == "\\":
            kind = self.peek()
            return _Char(self.escape(), kind not in ("D", "W", "S"))
        if char in "^$*+?{":
            raise _Unknown
        return _Char(char)

    def group(self, depth: int) -> _Node:
        if self.peek() == "?":
            rest = self.text[self.at :]
            if rest.startswith("?:"):
                self.at += 2
            elif rest.startswith(("?P<", "?<")) and ">" in rest:
                self.at += rest.index(">") + 1
            else:
                raise _Unknown
        node = self.either(depth + 1)
        if self.take() != ")":
            raise _Unknown
        return node

    def escape(self) -> str:
        """The characters that may stand for it."""
        char = self.take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.lower() in _CLASSES:
            return "".join(each for each in _VISIBLE if each not in _CLASSES[char.lower()])
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.isalnum():
            raise _Unknown
        return char

    def bracket(self) -> _Node:
        negated = self.peek() == "^"
        self.at += negated
        members, first, whole = "", True, True
        while first or self.peek() != "]":
            first = False
            low = self.take()
            if low == "[" and self.peek() == ":":
                raise _Unknown
            whole = whole and not (low == "\\" and self.peek() in ("D", "W", "S"))
            chars = self.escape() if low == "\\" else low
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.take()
                high = self.escape() if high == "\\" else high
                if len(chars) != 1 or len(high) != 1 or chars > high:
                    raise _Unknown
                chars = "".join(map(chr, range(ord(chars), min(ord(high), ord(chars) + 300) + 1)))
            members += chars
        self.at += 1
        if not members.isascii():
            raise _Unknown
        if negated:
            return _Char("".join(each for each in _VISIBLE if each not in members), False)
        return _Char(members, whole)
