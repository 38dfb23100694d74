"""The access log's writer: whole lines from pipes to a real file, rotation, a full disk, streams that nobody reads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graylb.control.access_log import Writer, open_pipe
from graylb.model.snapshot_observe import AccessLog

PATIENCE = 10.0


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


def pipe(writer: Writer) -> int:
    ours, theirs = open_pipe()
    writer.add(ours)
    return theirs


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_lines_of_several_workers_stay_whole(writer: Writer, tmp_path: Path) -> None:
    writer.start(AccessLog("access.log"))
    ends = [pipe(writer) for _ in range(3)]
    for number in range(200):
        for worker, fd in enumerate(ends):
            line = f"{worker} {number} {'x' * 300}\n".encode()
            os.write(fd, line[:100])  # a pipe may end in the middle of one
            os.write(fd, line[100:])
    os.write(ends[0], b"begun and never ended")
    for fd in ends:
        os.close(fd)
    writer.close()
    lines = text(tmp_path / "access.log").splitlines()
    assert len(lines) == 600
    assert all(line.endswith("x" * 300) for line in lines)
    for worker in range(3):
        assert [int(line.split()[1]) for line in lines if line.startswith(f"{worker} ")] == list(range(200))


def test_a_moved_file_is_opened_anew_and_so_it_is_on_demand(writer: Writer, tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    writer.start(AccessLog("access.log"))
    fd = pipe(writer)
    os.write(fd, b"one\n")
    until(lambda: text(file) == "one\n", "the first line")
    file.rename(tmp_path / "access.log.1")
    writer.reopen()
    os.write(fd, b"two\n")
    until(lambda: text(file) == "two\n", "a new file on demand")
    file.rename(tmp_path / "access.log.2")

    def another() -> bool:
        os.write(fd, b"three\n")
        return file.exists()

    until(another, "a new file within a second")
    os.close(fd)
    writer.close()
    assert text(tmp_path / "access.log.1") == "one\n"
    both = text(tmp_path / "access.log.2") + text(file)
    assert both.startswith("two\nthree\n")
    assert set(both.splitlines()) == {"two", "three"}


def test_the_path_changes_with_the_document(writer: Writer, tmp_path: Path) -> None:
    writer.start(AccessLog("a.log"))
    fd = pipe(writer)
    os.write(fd, b"one\n")
    until(lambda: text(tmp_path / "a.log") == "one\n", "the first line")
    writer.follow(AccessLog("b.log"))
    until((tmp_path / "b.log").exists, "the other file")
    os.write(fd, b"two\n")
    until(lambda: text(tmp_path / "b.log") == "two\n", "the second line")
    os.close(fd)
    writer.close()
    assert (text(tmp_path / "a.log"), text(tmp_path / "b.log")) == ("one\n", "two\n")
    assert writer.figures.lines_dropped == 0


def test_a_full_disk_drops_lines_and_says_so_until_there_is_room(
    writer: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    writer.start(AccessLog("full"))
    fd = pipe(writer)
    os.write(fd, b"one\ntwo\n")
    until(lambda: writer.figures.lines_dropped == 2, "two dropped lines")
    assert writer.figures.problem == "full: No space left on device"
    (tmp_path / "full").unlink()
    (tmp_path / "full").touch()

    def again() -> bool:
        os.write(fd, b"three\n")
        return not writer.figures.problem

    until(again, "lines to be written again")
    os.close(fd)
    writer.close()
    assert set(text(tmp_path / "full").splitlines()) == {"three"}


def test_a_line_that_a_full_disk_took_in_part_is_finished(writer: Writer, tmp_path: Path) -> None:
    import resource
    import signal

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = tmp_path / "access.log"
    writer.start(AccessLog("access.log"))
    fd = pipe(writer)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25, former[1]))
        os.write(fd, b"0123456789\n" * 4)  # two and a half fit
        until(lambda: writer.figures.lines_dropped == 1, "the last line to be dropped")
        assert writer.figures.problem == "access.log: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    os.write(fd, b"again\n")
    until(lambda: text(file).endswith("again\n"), "the next line")
    os.close(fd)
    assert text(file) == "0123456789\n" * 3 + "again\n"


def test_a_start_with_a_path_that_cannot_be_opened_is_refused(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        writer.start(AccessLog("nowhere/access.log"))
    # in force already, it is tried again
    fd = pipe(writer)
    writer.follow(AccessLog("later/access.log"))

    def dropped() -> int:
        os.write(fd, b"one\n")
        return writer.figures.lines_dropped

    until(dropped, "a dropped line")
    (tmp_path / "later").mkdir()

    def written() -> bool:
        os.write(fd, b"two\n")
        return bool(text(tmp_path / "later" / "access.log"))

    until(written, "lines in the new folder")
    os.close(fd)


def test_a_stream_that_nobody_reads_drops_lines(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    from graylb.control import access_log

    ours, theirs = open_pipe()
    os.set_blocking(theirs, False)
    monkeypatch.setitem(access_log._STREAMS, "stdout", theirs)
    monkeypatch.setattr(access_log, "STUCK", 0.01)
    writer.start(AccessLog("stdout"))
    fd = pipe(writer)
    line = b"x" * 999 + b"\n"
    for _ in range(3000):
        os.write(fd, line)
    until(lambda: writer.figures.lines_dropped > 0, "dropped lines")
    os.close(fd)
    found = b""

    def read() -> int:
        nonlocal found
        with contextlib.suppress(BlockingIOError):
            found += os.read(ours, 1 << 20)
        return found.count(b"\n") + writer.figures.lines_dropped

    until(lambda: read() >= 3000, "every line to be written or counted")
    assert found.replace(line, b"") in (b"", b"x" * len(found.replace(line, b"")))
    os.close(ours)
    os.close(theirs)
