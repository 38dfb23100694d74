"""Carries the workers' lines to where the access log goes, in a thread of its own: nobody waits for a disk or a reader.

Each worker writes whole lines into memory of its own (`_ring`), and rings a bell ten times a second, or when there is
much. They are appended from there, in one piece and without a copy; those of a worker that was killed, too. What a full
disk does not take is dropped, counted in lines, and told; it goes on by itself. A line that was taken in part is
finished first, so the file has whole lines only.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from graylb import _ring
from graylb.control.logs import log
from graylb.model.snapshot_observe import AccessLog

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at whether the file was moved, or can be opened again."""
STUCK: Final = 1.0
"""Seconds that a reader of stdout has, before lines are dropped."""
LAST: Final = 2.0
"""Seconds for the rest at the end."""
ENDED: Final = 0.02
"""Seconds between two looks at whether they are over."""
PIECE: Final = 1 << 22
"""Bytes that are written at once, at most."""
DONTCACHE: Final = 0x80
"""RWF_DONTCACHE of Linux 6.14 (pwritev2(2)): pages go once they are on disk. Nobody reads a log soon, and the same few
pages serve again and again, where each would be asked of the machine, of a container's share of it, or of its host."""
BLOCK: Final = 4096
"""Bytes of a page, and of a file system's block as a rule."""
LARGE: Final = 1 << 20
"""Bytes from which on that is worth it: each such write starts one to the disk."""
UNKNOWN: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What kernels and file systems say that know nothing of it."""
RINGS: Final = 4096
"""Bytes of a bell, read at once."""
_STREAMS: Final = {"stdout": 1, "stderr": 2}


@dataclass
class Figures:
    """lines: dropped here; workers count theirs. problem: why nothing is written now, empty while all is."""

    bytes_written: int = 0
    lines_dropped: int = 0
    reopened: int = 0
    problem: str = ""


@dataclass
class _Source:
    """A worker. bell: closed when it is gone."""

    lines: _ring.Reader
    bell: int

    def close(self) -> None:
        self.lines.close()
        os.close(self.bell)


@dataclass
class _Sink:
    """Where lines go now. rest: of a line that was taken in part. uncached: whether it may know of `DONTCACHE`."""

    path: Path | None  # None: a stream
    fd: int = -1
    looked: float = field(default=0.0)
    rest: bytes = b""
    uncached: bool = False

    @classmethod
    def of(cls, wanted: AccessLog, folder: Path) -> _Sink:
        """Opened. Raises OSError."""
        if wanted.path in _STREAMS:
            return cls(None, os.dup(_STREAMS[wanted.path]))
        path = folder / wanted.path
        fd = _appending(path)
        return cls(path, fd, time.monotonic(), uncached=stat.S_ISREG(os.fstat(fd).st_mode))

    def moved(self) -> bool:
        """Whether another file, or none, has its name now; looked at once a second."""
        now = time.monotonic()
        if self.path is None or now - self.looked < LOOK_EVERY:
            return False
        self.looked = now
        try:
            there, ours = os.stat(self.path), os.fstat(self.fd)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def write(self, data: memoryview) -> tuple[int, OSError | None]:
        """Whole lines -> (bytes taken, what went wrong). A line begun is finished by the next call."""
        taken = 0
        try:
            while self.rest:
                self.rest = self.rest[self._some(self.rest) :]
            while taken < len(data):
                taken += self._some(data[taken:])
        except OSError as error:
            if taken and bytes(data[taken - 1 : taken]) != b"\n":
                end = bytes(data[taken:]).find(b"\n") + 1
                self.rest = bytes(data[taken : taken + end])
                taken += end
            return taken, error
        return taken, None

    def _some(self, data: memoryview | bytes) -> int:
        try:
            if self.uncached and len(data) >= LARGE:
                return self._some_uncached(data)
            return os.write(self.fd, data)
        except BlockingIOError:  # somebody made our stdout non-blocking
            if not select.select([], [self.fd], [], STUCK)[1]:
                raise OSError(11, f"its reader takes nothing for {STUCK:g} s") from None
            return 0

    def _some_uncached(self, data: memoryview | bytes) -> int:
        # up to a block's end: what is in the last one stays cached, or the next piece would have to read it first
        whole = len(data) - (os.lseek(self.fd, 0, os.SEEK_END) + len(data)) % BLOCK
        try:
            return os.pwritev(self.fd, [data[:whole]], -1, DONTCACHE)  # -1: where it ends
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
        self.uncached = False
        return 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _appending(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


class Writer:
    """The thread. folder: of the document, which paths are relative to. Call `close` from where it may wait."""

    def __init__(self, folder: Path) -> None:
        self.figures = Figures()
        self._folder = folder
        self._wanted: AccessLog | None = None
        self._sink: _Sink | None = None
        self._sources: dict[int, _Source] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._wake, select.EPOLLIN)
        self._ending: float | None = None  # when it ends at the latest
        self._tried = 0.0
        self._thread: threading.Thread | None = None

    def add(self, lines: _ring.Reader, bell: int) -> None:
        """Takes the reading ends of a worker's ring and of its bell, and closes them when it is gone."""
        self._order(lambda: self._begin(_Source(lines, bell)))

    def follow(self, wanted: AccessLog | None) -> None:
        """Lines go there from now on; None: nowhere. What cannot be opened is tried again and again."""
        self._order(lambda: self._turn(wanted))

    def start(self, wanted: AccessLog | None) -> None:
        """The same, for a start. Raises OSError where the file cannot be opened."""
        if wanted is not None:
            _Sink.of(wanted, self._folder).close()
        self.follow(wanted)

    def reopen(self) -> None:
        """The file anew, by its name."""
        self._order(self._reopen)

    def close(self) -> None:
        """Writes what workers that have ended have left, and ends."""
        if self._thread is not None and self._thread.is_alive():
            self._order(self._end)
            self._thread.join(LAST + 1)
        if self._thread is None or not self._thread.is_alive():  # else it is in a write that does not return
            self._drop_all()

    def _drop_all(self) -> None:
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        if self._wake >= 0:
            self._poll.close()
            os.close(self._wake)
            self._wake = -1
        if self._sink is not None:
            self._sink.close()

    def _order(self, order: Callable[[], None]) -> None:
        """For the thread, which is started by the first."""
        self._orders.append(order)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._ending is None or (self._sources and time.monotonic() < self._ending):
            ready = self._poll.poll(None if self._ending is None else ENDED)
            if any(fd == self._wake for fd, _ in ready):
                os.eventfd_read(self._wake)
            while self._orders:
                self._orders.popleft()()
            for fd, _ in ready:
                if fd in self._sources:
                    self._answer(self._sources[fd])

    def _begin(self, source: _Source) -> None:
        self._sources[source.bell] = source
        self._poll.register(source.bell, select.EPOLLIN)

    def _answer(self, source: _Source) -> None:
        """Its bell rang."""
        gone = not os.read(source.bell, RINGS)
        self._carry(source)
        if gone:
            self._poll.unregister(source.bell)
            del self._sources[source.bell]
            source.close()

    def _end(self) -> None:
        self._ending = time.monotonic() + LAST

    def _turn(self, wanted: AccessLog | None) -> None:
        if self._wanted is not None and wanted is not None and self._wanted.path == wanted.path:
            self._wanted = wanted
            return
        self._drain()  # what was written before belongs to the former place
        self._wanted = wanted
        self._reopen()

    def _drain(self) -> None:
        for source in list(self._sources.values()):
            self._carry(source)

    def _reopen(self) -> None:
        former, self._sink = self._sink, None
        if former is not None:
            former.close()
            self.figures.reopened += 1
        self._tried = 0.0
        self._opened()

    def _opened(self) -> _Sink | None:
        """The sink, opened if it can be."""
        sink, wanted = self._sink, self._wanted
        if sink is not None and sink.moved():
            self._reopen()
            return self._sink
        if sink is None and wanted is not None and time.monotonic() - self._tried >= LOOK_EVERY:
            self._tried = time.monotonic()
            try:
                self._sink = _Sink.of(wanted, self._folder)
            except OSError as error:
                self._failed(error)
        return self._sink

    def _carry(self, source: _Source) -> None:
        """All lines that are there now; each piece makes room for others."""
        size = PIECE
        while size > PIECE // 2:
            try:
                lines = source.lines.unread(PIECE)
            except OSError as error:
                log.error("lines of a worker for the access log are lost: %s", error.strerror)
                return
            with lines:
                self._write(lines)
                size = len(lines)
            source.lines.taken(size)

    def _write(self, lines: memoryview) -> None:
        if not lines:
            return
        sink = self._opened()
        if sink is None:
            if self._wanted is not None:
                self.figures.lines_dropped += bytes(lines).count(b"\n")
            return
        taken, error = sink.write(lines)
        self.figures.bytes_written += taken
        if error is not None:
            self.figures.lines_dropped += bytes(lines[taken:]).count(b"\n")
            self._failed(error)
        elif self.figures.problem:
            log.info("the access log is written again; %d lines were dropped", self.figures.lines_dropped)
            self.figures.problem = ""

    def _failed(self, error: OSError) -> None:
        assert self._wanted is not None
        why = f"{self._wanted.path}: {error.strerror or error}"
        if self.figures.problem != why:
            log.error("the access log cannot be written, its lines are dropped: %s", why)
            self.figures.problem = why
