"""The access log's writer: workers, alive and killed, real files, rotation, a full disk, streams that nobody reads."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graylb import _ring
from graylb.control.access_log import LARGE, Writer
from graylb.model.snapshot_observe import AccessLog

PATIENCE = 10.0
LARGEST = 1 << 17
"""Bytes of a line."""


def until(holds: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.005)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path)
    yield made
    made.close()


class Worker:
    """The end of one that writes lines; `end`: as when it exits, whatever it was about."""

    def __init__(self, writer: Writer, size: int = 1 << 20) -> None:
        fd = _ring.create()
        bell, self._bell = os.pipe2(os.O_NONBLOCK)
        self.ring = _ring.Ring(LARGEST)
        self.ring.open(fd, self._bell)
        self.ring.resize(size)
        writer.add(_ring.Reader(fd), bell)
        os.close(fd)

    def write(self, *lines: bytes) -> None:
        for line in lines:
            assert self.ring.write(line)
        self.ring.tell()

    def end(self) -> None:
        os.close(self._bell)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_lines_of_several_workers_stay_whole(writer: Writer, tmp_path: Path) -> None:
    writer.start(AccessLog("access.log"))
    workers = [Worker(writer) for _ in range(3)]
    for number in range(200):
        for worker, each in enumerate(workers):
            each.write(f"{worker} {number} {'x' * 300}\n".encode())
    for each in workers:
        each.end()
    writer.close()
    lines = text(tmp_path / "access.log").splitlines()
    assert len(lines) == 600
    assert all(line.endswith("x" * 300) for line in lines)
    for worker in range(3):
        assert [int(line.split()[1]) for line in lines if line.startswith(f"{worker} ")] == list(range(200))


def test_a_worker_that_is_killed_loses_no_line(writer: Writer, tmp_path: Path) -> None:
    fd = _ring.create()
    bell, ringing = os.pipe2(os.O_NONBLOCK)
    lines = _ring.Reader(fd)
    if (child := os.fork()) == 0:
        try:
            os.close(bell)
            ring = _ring.Ring(LARGEST)
            ring.open(fd, ringing)
            ring.resize(1 << 20)
            for number in range(1000):
                ring.write(b"%d\n" % number)  # and tells nobody
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(ringing)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    writer.start(AccessLog("access.log"))
    writer.add(lines, bell)
    writer.close()
    assert [int(line) for line in text(tmp_path / "access.log").splitlines()] == list(range(1000))


def test_a_moved_file_is_opened_anew_and_so_it_is_on_demand(writer: Writer, tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    writer.start(AccessLog("access.log"))
    worker = Worker(writer)
    worker.write(b"one\n")
    until(lambda: text(file) == "one\n", "the first line")
    file.rename(tmp_path / "access.log.1")
    writer.reopen()
    worker.write(b"two\n")
    until(lambda: text(file) == "two\n", "a new file on demand")
    file.rename(tmp_path / "access.log.2")

    def another() -> bool:
        worker.write(b"three\n")
        return file.exists()

    until(another, "a new file within a second")
    worker.end()
    writer.close()
    assert text(tmp_path / "access.log.1") == "one\n"
    both = text(tmp_path / "access.log.2") + text(file)
    assert both.startswith("two\nthree\n")
    assert set(both.splitlines()) == {"two", "three"}


def test_the_path_changes_with_the_document(writer: Writer, tmp_path: Path) -> None:
    writer.start(AccessLog("a.log"))
    worker = Worker(writer)
    worker.write(b"one\n")
    until(lambda: text(tmp_path / "a.log") == "one\n", "the first line")
    writer.follow(AccessLog("b.log"))
    until((tmp_path / "b.log").exists, "the other file")
    worker.write(b"two\n")
    until(lambda: text(tmp_path / "b.log") == "two\n", "the second line")
    worker.end()
    writer.close()
    assert (text(tmp_path / "a.log"), text(tmp_path / "b.log")) == ("one\n", "two\n")
    assert writer.figures.lines_dropped == 0


def test_a_full_disk_drops_lines_and_says_so_until_there_is_room(
    writer: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    writer.start(AccessLog("full"))
    worker = Worker(writer)
    worker.write(b"one\n", b"two\n")
    until(lambda: writer.figures.lines_dropped == 2, "two dropped lines")
    assert writer.figures.problem == "full: No space left on device"
    (tmp_path / "full").unlink()
    (tmp_path / "full").touch()

    def again() -> bool:
        worker.write(b"three\n")
        return not writer.figures.problem

    until(again, "lines to be written again")
    worker.end()
    writer.close()
    assert set(text(tmp_path / "full").splitlines()) == {"three"}


def test_a_line_that_a_full_disk_took_in_part_is_finished(writer: Writer, tmp_path: Path) -> None:
    import resource
    import signal

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = tmp_path / "access.log"
    writer.start(AccessLog("access.log"))
    worker = Worker(writer)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25, former[1]))
        worker.write(*[b"0123456789\n"] * 4)  # two and a half fit
        until(lambda: writer.figures.lines_dropped == 1, "the last line to be dropped")
        assert writer.figures.problem == "access.log: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    worker.write(b"again\n")
    until(lambda: text(file).endswith("again\n"), "the next line")
    worker.end()
    assert text(file) == "0123456789\n" * 3 + "again\n"


def test_a_start_with_a_path_that_cannot_be_opened_is_refused(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        writer.start(AccessLog("nowhere/access.log"))
    # in force already, it is tried again
    worker = Worker(writer)
    writer.follow(AccessLog("later/access.log"))

    def dropped() -> int:
        worker.write(b"one\n")
        return writer.figures.lines_dropped

    until(dropped, "a dropped line")
    (tmp_path / "later").mkdir()

    def written() -> bool:
        worker.write(b"two\n")
        return bool(text(tmp_path / "later" / "access.log"))

    until(written, "lines in the new folder")
    worker.end()


def test_a_stream_that_nobody_reads_drops_lines(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    from graylb.control import access_log

    ours, theirs = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setitem(access_log._STREAMS, "stdout", theirs)
    monkeypatch.setattr(access_log, "STUCK", 0.01)
    writer.start(AccessLog("stdout"))
    worker = Worker(writer, 1 << 23)
    line = b"x" * 999 + b"\n"
    worker.write(*[line] * 3000)
    until(lambda: writer.figures.lines_dropped > 2000, "dropped lines")
    found, asked = b"", 3000

    def settled() -> bool:
        nonlocal found, asked
        with contextlib.suppress(BlockingIOError):
            found += os.read(ours, 1 << 20)
        if found.count(b"\n") + writer.figures.lines_dropped >= asked:
            return True
        worker.write(line)  # with which one that was taken in part is finished
        asked += 1
        return False

    until(settled, "every line to be written or counted")
    worker.end()
    assert found.replace(line, b"") in (b"", b"x" * len(found.replace(line, b"")))
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("folder", [None, "/dev/shm"])  # the latter knows nothing of writes past the cache
def test_what_is_large_is_appended_whole_wherever_it_is(folder: str | None) -> None:
    lines = [f"{number} {'x' * (number % 1000)}\n".encode() for number in range(3000)]
    assert len(b"".join(lines)) > LARGE
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "access.log"
        path.write_bytes(wanted := b"before\n")
        writer = Writer(Path(name))
        writer.start(AccessLog("access.log"))
        worker = Worker(writer, 8 << 20)
        for piece in (lines, [b"a small one\n"], lines, lines):
            worker.write(*piece)
            wanted += b"".join(piece)
            until(lambda: path.stat().st_size >= len(wanted), "written")  # noqa: B023 - called in this turn
        worker.end()
        writer.close()
        assert path.read_bytes() == wanted
        assert writer.figures.lines_dropped == 0
