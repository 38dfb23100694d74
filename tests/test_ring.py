"""Lines through shared memory: a law against a list, room that changes, a writer that lies, the bell."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _ring

LARGEST = 70_000
STEPS = st.lists(
    st.one_of(
        st.integers(0, LARGEST).map(lambda n: ("write", n)),
        st.integers(0, 100).map(lambda percent: ("take", percent)),
        st.sampled_from([1, 65_536, 200_000, 1 << 20]).map(lambda n: ("resize", n)),
    ),
    max_size=60,
)


@contextlib.contextmanager
def ends(size: int = 65_536) -> Iterator[tuple[_ring.Ring, _ring.Reader, int, int]]:
    """Writer, reader, the bell's reading end, the ring's descriptor."""
    fd = _ring.create()
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    ring, reader = _ring.Ring(LARGEST), _ring.Reader(fd)
    ring.open(fd, theirs)
    ring.resize(size)
    try:
        yield ring, reader, ours, fd
    finally:
        ring.open(-1, -1)
        reader.close()
        for each in (fd, ours, theirs):
            os.close(each)


@given(STEPS)
def test_what_is_read_is_what_was_written_in_order(steps: list[tuple[str, int]]) -> None:
    with ends() as (ring, reader, _, _):
        unread = b""
        dropped = written = 0
        size = in_force = 65_536
        for what, n in steps:
            if what == "resize":
                ring.resize(size := n)
            elif what == "write":
                line = bytes([written % 251]) * n
                in_force = size if not unread else in_force
                fits = len(unread) < in_force
                assert ring.write(line) is fits
                if fits:
                    unread += line
                    written += 1
                dropped += not fits
            else:
                with reader.unread() as view:
                    assert bytes(view) == unread
                    reader.taken(taken := len(unread) * n // 100)
                unread = unread[taken:]
            assert (ring.lines, ring.dropped) == (written, dropped)


def test_a_reader_beside_a_writer_sees_whole_lines_only() -> None:
    with ends() as (ring, reader, _, _):
        lines = [b"%d:" % n + b"x" * (n * 37 % 3000) + b"\n" for n in range(5000)]

        def write() -> None:
            for line in lines:
                while not ring.write(line):
                    pass

        thread = threading.Thread(target=write)
        thread.start()
        found = b""
        whole = b"".join(lines)
        while len(found) < len(whole):
            with reader.unread() as view:
                assert view[-1:] in (b"", b"\n")
                found += view
                reader.taken(len(view))
        thread.join()
        assert found == whole


def test_a_piece_is_cut_behind_a_line() -> None:
    with ends() as (ring, reader, _, _):
        for line in (b"one\n", b"two\n", b"three"):
            ring.write(line)
        found = []
        while len(piece := reader.unread(9)):
            found.append(bytes(piece))
            reader.taken(len(piece))
        assert found == [b"one\ntwo\n", b"three"]
        ring.write(b"longer\n")
        assert bytes(reader.unread(3)) == b"longer\n"


def drained(bell: int) -> int:
    """How often it rang."""
    try:
        return len(os.read(bell, 100))
    except BlockingIOError:
        return 0


def test_the_bell_rings_for_each_half_and_when_it_is_told_to() -> None:
    with ends(65_536) as (ring, reader, bell, _):
        line = b"x" * 1000
        for _ in range(32):
            ring.write(line)
        assert drained(bell) == 0
        ring.write(line)
        assert drained(bell) == 1
        ring.tell()
        assert drained(bell) == 0  # it was told of all there is
        ring.write(line)
        ring.tell()
        assert drained(bell) == 1
        ring.write(line)
        reader.taken(len(reader.unread()))
        ring.tell()
        assert drained(bell) == 0  # nothing is unread


def test_a_tick_tells_of_what_is_left_unless_the_bell_rang_since_the_last() -> None:
    with ends(65_536) as (ring, _, bell, _):

        def rings_at_a_tick() -> bool:
            before = drained(bell)
            ring.tell(tick=True)
            return drained(bell) > 0 and not before

        ring.write(b"x" * 100)
        assert rings_at_a_tick()
        for _ in range(34):
            ring.write(b"x" * 1000)
        assert drained(bell) == 1  # for half of the room
        assert not rings_at_a_tick()
        assert rings_at_a_tick()  # what came after that bell waits no longer
        assert not rings_at_a_tick()  # nothing has come since


def test_it_takes_no_memory_before_there_is_a_line_and_gives_back_what_is_too_much() -> None:
    with ends(1 << 24) as (ring, reader, _, fd):
        assert os.fstat(fd).st_blocks * 512 <= 65_536
        for _ in range(200):
            ring.write(b"x" * LARGEST)
        full = os.fstat(fd).st_blocks
        assert full * 512 > 200 * LARGEST
        ring.resize(65_536)
        reader.taken(len(reader.unread()))
        ring.write(b"x")
        assert os.fstat(fd).st_blocks * 512 < 300_000
        assert bytes(reader.unread()) == b"x"


@pytest.mark.parametrize(("offset", "value"), [(0, 1 << 40), (16, 1 << 40), (16, 0), (16, 4097)])
def test_a_writer_that_lies_does_no_harm_to_the_reader(offset: int, value: int) -> None:
    with ends() as (ring, reader, _, fd):
        ring.write(b"x")
        with mmap.mmap(fd, 4096) as shared:
            shared[offset : offset + 8] = struct.pack("=Q", value)
        with pytest.raises(OSError, match="broken"):
            reader.unread()
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)  # nor can it take the memory away


def test_nobody_who_reads_is_no_error() -> None:
    fd = _ring.create()
    bell, theirs = os.pipe2(os.O_NONBLOCK)
    ring = _ring.Ring(LARGEST)
    ring.open(fd, theirs)
    ring.resize(65_536)
    os.close(bell)
    assert ring.write(b"x")
    ring.tell()
    assert not ring.write(b"y")
    assert (ring.lines, ring.dropped) == (1, 1)
    os.close(fd)
    os.close(theirs)
