"""Ranges of plain decimal numbers: `>=10,<100`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Literal

Op = Literal["<", "<=", ">", ">=", "==", "!="]
Range = tuple[tuple[Op, float], ...]
"""Comparisons that must all hold."""

MAX_LENGTH = 40
"""Characters of a number; longer texts are no numbers."""

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_TERM = re.compile(r"(>=|<=|==|!=|>|<|=)?\s*([^\s,<>=!]+)(\s*,\s*|\s+|$)")
_EXPECTED = "expected comparisons like '>=10,<100' or '==5.5' with plain decimal numbers"
_OPS: dict[Op, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_NAMES: dict[str | None, Op] = {**{op: op for op in _OPS}, "=": "==", None: "=="}


def parse_number(text: str) -> float | None:
    """None unless the text is `-?digits(.digits)?` of at most 40 characters."""
    if len(text) > MAX_LENGTH or not _NUMBER.fullmatch(text):
        return None
    return float(text)


def parse_range(text: str) -> Range:
    """Comparisons joined by commas or spaces; `=` or no operator reads as `==`. Raises ValueError."""
    body = text.strip()
    terms: list[tuple[Op, float]] = []
    at, comma = 0, True  # a comma wants a comparison after it, and so does the beginning
    while at < len(body):
        found = _TERM.match(body, at)
        if found is None:
            raise ValueError(f"number range {text!r}: cannot read {body[at:]!r}; {_EXPECTED}")
        bound = parse_number(found[2])
        if bound is None:
            raise ValueError(f"number range {text!r}: {found[2]!r} is not a plain decimal number; {_EXPECTED}")
        terms.append((_NAMES[found[1]], bound))
        at, comma = found.end(), "," in found[3]
    if comma:
        raise ValueError(f"number range {text!r}: a comparison is missing; {_EXPECTED}")
    return tuple(terms)


def satisfies(text: str, range: Range) -> bool:
    """False for a text that is no plain decimal number."""
    value = parse_number(text)
    return value is not None and all(_OPS[op](value, bound) for op, bound in range)
