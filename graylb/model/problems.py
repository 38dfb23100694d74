"""What is wrong with a document, and where: one `ConfigError` for each fault, `ConfigErrors` for all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

Path = tuple[str | int, ...]
"""Keys and indices from the document's root."""

SHOWN = 60
"""Characters of a value that an error shows."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One fault (or, in `Document.warnings`, one doubt).

    line, column: from 1. path: JSON path, "" when the text could not be read at all. value: as `shown`, "" where there
    is none. message: takes the place of `got VALUE`. suggestion: what a misspelt key or name was probably meant to be.
    """

    file: str
    line: int
    column: int
    path: str
    value: str = ""
    expected: str = ""
    message: str = ""
    suggestion: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " + (f"{self.path}: " if self.path else "")
        expected = f"; expected {self.expected}" if self.expected else ""
        meant = f' (did you mean "{self.suggestion}"?)' if self.suggestion else ""
        return f"{where}{self.message or f'got {self.value}'}{expected}{meant}"

    def to_dict(self) -> dict[str, str | int | None]:
        """The fields and the whole `text`, for JSON output."""
        return {**asdict(self), "text": str(self)}


class ConfigErrors(Exception):
    """Everything that is wrong with one document, by position."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors: tuple[ConfigError, ...] = tuple(sorted(errors, key=lambda error: (error.line, error.column)))
        super().__init__("\n".join(map(str, self.errors)))


def shown(value: object) -> str:
    """A value in at most about `SHOWN` characters: scalars as JSON, numbers as they were written."""
    if isinstance(value, dict):
        return "a mapping" if value else "{}"
    if isinstance(value, list | tuple):
        return "a list" if value else "[]"
    if isinstance(value, str):
        text = value if len(value) <= SHOWN else value[:SHOWN] + "…"
        return json.dumps(text, ensure_ascii=False)
    written = getattr(value, "text", None)
    return written if isinstance(written, str) else json.dumps(value, default=repr)


def json_path(path: Path) -> str:
    """`$.services.users.rules[0]`; keys that are no plain words are quoted: `$.split["1.10"]`."""
    parts = ["$"]
    for key in path:
        if isinstance(key, int):
            parts.append(f"[{key}]")
        elif _PLAIN_KEY.fullmatch(key):
            parts.append(f".{key}")
        else:
            parts.append(f"[{shown(key)}]")
    return "".join(parts)
