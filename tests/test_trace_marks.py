"""The marks of traces, in the memory of all workers: against a dictionary, torn entries, several writers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _memory

LIFETIME = 100
MARKS = st.sampled_from([b"v1", b"v2", b"v", b"gray-lane", b"sha-eight", b"x" * 127, b"x" * 128])
WORD, HEADER = 8, 64


def trace(number: int) -> bytes:
    """Some are of generators that fill only one half."""
    return b"%032x" % (number << 64 if number % 3 == 0 else number)


STEPS = st.lists(st.tuples(st.integers(1, 24), MARKS | st.none(), st.integers(1, 40)), max_size=80)


@given(STEPS)
def test_one_bucket_is_a_dictionary_that_forgets_the_oldest(steps: list[tuple[int, bytes | None, int]]) -> None:
    memory = _memory.Memory(buckets=1)
    oracle: dict[int, tuple[bytes | None, int]] = {}  # trace -> its mark, None for two that differ; until when
    now = 1
    for number, mark, later in steps:
        now += later
        oracle = {key: (known, end) for key, (known, end) in oracle.items() if end > now}
        if mark is not None:
            alike = number not in oracle or oracle[number][0] == mark
            assert memory.keep(trace(number), mark, now, LIFETIME) is alike
            if number not in oracle and len(oracle) == _memory.WAYS:
                del oracle[min(oracle, key=lambda key: oracle[key][1])]
            oracle[number] = (mark if alike else None, now + LIFETIME)
        for each in range(1, 25):
            assert memory.find(trace(each), now) == oracle.get(each, (None, 0))[0]


@given(st.lists(st.tuples(st.integers(1, 500), MARKS), max_size=200), st.integers(0, 2 * LIFETIME))
def test_many_buckets_never_tell_a_wrong_mark(kept: list[tuple[int, bytes]], later: int) -> None:
    memory = _memory.Memory(buckets=8)
    told: dict[int, set[bytes]] = {}
    for number, mark in kept:
        memory.keep(trace(number), mark, 1, LIFETIME)
        told.setdefault(number, set()).add(mark)
    for number in range(501):
        found = memory.find(trace(number), 1 + later)
        assert found is None or (told[number] >= {found} and later < LIFETIME)


def test_as_many_traces_as_it_is_made_for_are_mostly_there() -> None:
    memory = _memory.Memory()
    count = _memory.BUCKETS * _memory.WAYS // 2
    for number in range(count):
        memory.keep(trace(number), b"v%d" % number, 1, LIFETIME)
    found = [memory.find(trace(number), 2) for number in range(count)]
    assert all(each in (None, b"v%d" % number) for number, each in enumerate(found))
    assert sum(each is not None for each in found) > 0.95 * count


@pytest.fixture
def shared() -> Iterator[int]:
    fd = _memory.create(1)
    yield fd
    os.close(fd)


@given(
    MARKS,
    MARKS,
    st.booleans(),
    st.integers(0, 2**20 - 1),
)
def test_an_entry_that_is_half_one_and_half_another_is_none(one: bytes, other: bytes, same: bool, mask: int) -> None:
    """Word by word, any of what two writers put into one place."""
    fd = _memory.create(1)
    try:
        memory = _memory.Memory(fd)
        entry = WORD * 20
        traces = (trace(7), trace(7 if same else 8))
        states = []
        for number, (which, mark) in enumerate(zip(traces, (one, other), strict=True)):
            os.pwrite(fd, bytes(entry), HEADER)
            memory.keep(which, mark, 1 + number, LIFETIME)
            states.append(os.pread(fd, entry, HEADER))
            assert memory.find(which, 3) == mark
        mixed = b"".join(states[mask >> i & 1][i * WORD : (i + 1) * WORD] for i in range(20))
        os.pwrite(fd, mixed, HEADER)
        for which in traces:
            allowed = {None} | {mark for each, mark in zip(traces, (one, other), strict=True) if each == which}
            assert memory.find(which, 3) in allowed
        if mixed[:WORD] != states[1][:WORD] and mixed[WORD : 4 * WORD] == states[1][WORD : 4 * WORD]:
            assert memory.find(traces[1], 3) is None
        assert memory.keep(trace(9), b"v9", 4, LIFETIME)
        assert memory.find(trace(9), 5) == b"v9"
    finally:
        os.close(fd)


WRITER = """
import sys
from graylb import _memory
memory = _memory.Memory(int(sys.argv[1]))
traces = [(b"%032x" % n, b"mark-%d-" % n + b"y" * n) for n in range(1, 33)]
print("ready", flush=True)
sys.stdin.readline()
for turn in range(1500):
    for trace, mark in traces[:: 1 if turn % 2 else -1]:
        memory.keep(trace, mark, 1 + turn, 1000)
"""


def test_writers_and_readers_at_once(shared: int) -> None:
    """32 traces in a bucket of eight: every place is written over all the time, by three processes."""
    command = [sys.executable, "-c", WRITER, str(shared)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[shared]) for _ in range(3)
    ]
    traces = [(b"%032x" % n, b"mark-%d-" % n + b"y" * n) for n in range(1, 33)]
    memory = _memory.Memory(shared)
    seen = 0
    try:
        for each in writers:
            assert each.stdout is not None
            assert each.stdout.readline() == b"ready\n"
        for each in writers:
            assert each.stdin is not None
            each.stdin.write(b"go\n")
            each.stdin.flush()
        while any(each.poll() is None for each in writers):
            for which, mark in traces:
                found = memory.find(which, 1)
                assert found in (None, mark)
                seen += found is not None
    finally:
        for each in writers:
            each.kill()
            each.communicate()
    assert [each.returncode for each in writers] == [0, 0, 0]
    assert seen
    assert any(memory.find(which, 1) == mark for which, mark in traces)


def test_what_is_no_memory_is_refused() -> None:
    for size in (0, 64, 2000, HEADER + 8 * 160):
        fd = os.memfd_create("other")
        try:
            os.ftruncate(fd, size)
            with pytest.raises(ValueError, match="expected a memory of marks"):
                _memory.Memory(fd)
        finally:
            os.close(fd)
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        _memory.Memory(buckets=1).find(b"A" * 32, 1)
