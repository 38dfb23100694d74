"""Who looks on: live views of requests, as JSON lines that workers make while somebody watches.

Workers are told what is wanted, and send no more than some lines in a tenth of a second; a viewer that does not keep up
misses lines. So nobody's watching is felt by anybody's traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

MAX_VIEWS: Final = 16
QUEUE: Final = 1000
"""Lines that wait for a viewer."""
PIECE: Final = 1 << 16
_SPAN: Final = ord("S")
_SIZE: Final = struct.Struct("<I").unpack_from
PIPE_BYTES: Final = 1 << 20


def open_pipe() -> tuple[int, int]:
    """Both ends, the first non-blocking; as large as the system allows. Raises OSError."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a user may have used up what all their pipes may hold
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(ours, False)
    return ours, theirs


class TooManyViews(Exception):
    """There are as many as workers look for."""


ANY: Final = (0, 999)
"""Statuses."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests; None: any. status: lowest and highest; 499 for clients that went away."""

    service: str | None = None
    version: str | None = None
    rule: str | None = None
    status: tuple[int, int] = ANY

    def holds(self, line: dict[str, Any]) -> bool:
        named = (self.service, line.get("service")), (self.version, line.get("version")), (self.rule, line.get("rule"))
        return (
            all(wanted is None or wanted == found for wanted, found in named)
            and self.status[0] <= line.get("status", 0) <= self.status[1]
        )


def statuses(text: str) -> tuple[int, int]:
    """`404`, `5xx` or `400-499`. Raises ValueError."""
    if len(text) == 3 and text[0] in "12345" and text[1:].lower() == "xx":
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"status {text[:20]!r}: expected a status such as 404, a class such as 5xx or a range 400-499")
    return int(first), int(last) if dash else int(first)


@dataclass
class View:
    """One viewer. missed: lines that found no room."""

    wanted: Wanted
    lines: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(QUEUE))
    missed: int = 0


class Views:
    """tell: gives workers what is wanted, as `Engine.watch` takes it. spans: takes what is no line for viewers."""

    def __init__(
        self, tell: Callable[[list[dict[str, Any]]], None], spans: Callable[[list[bytes]], None] | None = None
    ) -> None:
        self._tell = tell
        self._spans = spans
        self._views: list[View] = []
        self._rests: dict[int, bytes] = {}

    def add(self, fd: int) -> None:
        """Takes the reading end of a worker's pipe, and closes it at its end."""
        self._rests[fd] = b""
        asyncio.get_running_loop().add_reader(fd, self._read, fd)

    @property
    def full(self) -> bool:
        """Whether `watch` would raise TooManyViews."""
        return len(self._views) >= MAX_VIEWS

    @contextlib.contextmanager
    def watch(self, wanted: Wanted) -> Iterator[View]:
        """Lines come in as long as it is open. Raises TooManyViews."""
        if self.full:
            raise TooManyViews(f"{MAX_VIEWS} others look on already")
        view = View(wanted)
        self._views.append(view)
        self._tell(self.wanted())
        try:
            yield view
        finally:
            self._views.remove(view)
            self._tell(self.wanted())

    def wanted(self) -> list[dict[str, Any]]:
        return [asdict(view.wanted) for view in self._views]

    def close(self) -> None:
        """What workers that have ended told last is taken."""
        for fd in list(self._rests):
            while fd in self._rests and self._read(fd):
                pass
            if fd in self._rests:
                self._end(fd)

    def _end(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        del self._rests[fd]

    def _read(self, fd: int) -> bool:
        """False: there is no more now."""
        try:
            data = os.read(fd, PIECE)
        except BlockingIOError:
            return False
        if not data:
            self._end(fd)
            return False
        if self._rests[fd]:
            data = self._rests[fd] + data
        self._rests[fd] = data[self._take(data) :]
        return True

    def _take(self, data: bytes) -> int:
        """What is whole: lines for viewers, and spans, which are an S, their length and themselves. -> bytes."""
        at = 0
        spans = []
        while at < len(data):
            if data[at] == _SPAN:
                begin = at + 5
                if len(data) < begin:
                    break
                end = begin + _SIZE(data, at + 1)[0]
                if len(data) < end:
                    break
                spans.append(data[begin:end])
                at = end
            else:
                end = data.find(b"\n", at)
                if end < 0:
                    break
                if self._views:
                    self._show(data[at:end])
                at = end + 1
        if spans and self._spans is not None:
            self._spans(spans)
        return at

    def _show(self, line: bytes) -> None:
        found = orjson.loads(line)
        for view in self._views:
            if view.wanted.holds(found):
                try:
                    view.lines.put_nowait(line)
                except asyncio.QueueFull:
                    view.missed += 1
