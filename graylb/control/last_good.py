"""What was good last, on disk: a start without the source serves it. Written in one step and checksummed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import orjson

from graylb.control import alarms
from graylb.control.pace import Breath, none
from graylb.control.sources import Fragment

FORMAT: Final = "graylb-last-good-1"
ROWS: Final = 64
"""Of the file, made without a breath."""


@dataclass(frozen=True, slots=True)
class Kept:
    """revision: of the source. at: ISO 8601, when it was in force. registries: identity -> (revision, fragments)."""

    prefix: str
    revision: int
    at: str
    fragments: tuple[Fragment, ...]
    registries: Mapping[str, tuple[int, tuple[Fragment, ...]]] = field(default_factory=dict)


class LastGood:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        """Why the file cannot be used or written; empty when it can."""

    def read(self, prefix: str) -> Kept | None:
        """None when there is none for that prefix, or none that can be trusted (`problem` tells which)."""
        self.problem = ""
        try:
            head, _, body = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problem = f"{self.path} cannot be read: {error.strerror}"
            return None
        if head != _head(body):
            self.problem = f"{self.path} is damaged, or of another graylb; it is not used, and will be written anew"
            return None
        data: dict[str, Any] = orjson.loads(body)
        if data["prefix"] != prefix:
            self.problem = f"{self.path} is of prefix {data['prefix']}, not {prefix}; it is not used"
            return None
        registries = {
            identity: (revision, _fragments(rows)) for identity, (revision, rows) in data.get("registries", {}).items()
        }
        return Kept(prefix, data["revision"], data["at"], _fragments(data["fragments"]), registries)

    def write(self, kept: Kept, breath: Breath = none) -> None:
        """A failure is noted in `problem` and hurts nothing else."""
        body = orjson.dumps(
            {
                "prefix": kept.prefix,
                "revision": kept.revision,
                "at": kept.at,
                "fragments": _rows(kept.fragments, breath),
                "registries": {
                    identity: [revision, _rows(fragments, breath)]
                    for identity, (revision, fragments) in kept.registries.items()
                },
            }
        )
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_head(body) + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
            self.problem = ""
        except OSError as error:
            alarms.note(error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.problem = f"{self.path} cannot be written: {error.strerror}"


def _rows(fragments: Iterable[Fragment], breath: Breath) -> list[list[Any]]:
    found = []
    for number, each in enumerate(fragments):
        if number % ROWS == 0:
            breath()
        found.append([each.key, each.value.decode(), each.revision, each.lease])
    return found


def _fragments(rows: Iterable[list[Any]]) -> tuple[Fragment, ...]:
    return tuple(Fragment(key, value.encode(), *rest) for key, value, *rest in rows)


def in_order(fragments: Iterable[Fragment]) -> tuple[Fragment, ...]:
    return tuple(sorted(fragments, key=attrgetter("key")))


def _head(body: bytes) -> bytes:
    return f"{FORMAT} {hashlib.sha256(body).hexdigest()}".encode()
