"""Laws of memory that processes share: a reader survives any bytes in it, and what was kept is what is found."""

from __future__ import annotations

import os

from graylb import _memory, _slab

SIZE = 65536
KEY = (("version", "v1"),)
COUNT_AT = 24


def slab(data: bytes) -> None:
    """A worker that ran wild wrote any bytes into its slab: it is read, and a successor goes on counting."""
    fd = _slab.create("fuzz", SIZE)
    try:
        first = _slab.Slab(_slab.Memory(fd, 1))
        first.add("a_total", KEY, 5)
        first.observe("b_seconds", KEY, 7)
        first.add_several("c_total", KEY, "code", ("1xx", "2xx"), 1)
        # the first two bytes say where, from the count of records on: what stands before it, a successor checks
        os.pwrite(fd, data[2:4096], COUNT_AT + int.from_bytes(data[:2]) % 8192)
        sums: dict[tuple[int, int, bytes], _slab.Sum] = {}
        reader = _slab.Reader(fd)
        reader.add_to(sums)
        reader.add_to(sums)
        for (kind, n, text), found in sums.items():
            assert len(found) == n
            assert 8 * n + len(text) <= SIZE
            assert all(k < n for k in found.cells())
            if _slab.KINDS[kind] == "histogram":
                assert found.up_to([_slab.BUCKETS]) == [found.total()]
        successor = _slab.Slab(_slab.Memory(fd, 1))
        before = successor.value("d_total", KEY)
        successor.add("d_total", KEY, 3)
        assert successor.value("d_total", KEY) == (before + 3) % 2**64
        _slab.Reader(fd).add_to({})
        del first, successor
    finally:
        os.close(fd)


def images() -> list[bytes]:
    """Damage to the count of all records; to the first one's length, count of values, text; one that is half made."""
    return [
        b"\0\0" + (1).to_bytes(8, "little"),
        b"\0\0" + b"\xff" * 8,
        b"\0\x28" + b"\xff" * 4 + bytes(12),
        b"\0\x28" + bytes(4),
        b"\0\x28" + (128).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\3\0\0\0" + b"\xff" * 4,
        b"\0\x38\1",
    ]


LIFETIME = 100


def memory(data: bytes) -> None:
    """Steps of three bytes: which trace, which mark (0: it is looked up, 1: its place is damaged), how much later."""
    fd = _memory.create(1)
    try:
        kept, other = _memory.Memory(fd), _memory.Memory(fd)
        oracle: dict[int, tuple[bytes | None, int]] = {}
        now = 1
        for at in range(0, min(len(data) - 2, 300), 3):
            number, mark, later = data[at] % 24, data[at + 1], data[at + 2]
            now += later % 41
            oracle = {key: (known, end) for key, (known, end) in oracle.items() if end > now}
            trace = b"%032x" % (number + 1 << 64 if number % 3 == 0 else number + 1)
            if mark == 1:
                os.pwrite(fd, bytes([data[at] ^ 0x55]), 64 + later * 5)
                oracle.clear()
                break  # what is damaged is none; what that makes of the others is tests/test_trace_marks.py's
            if mark:
                text = b"m" * (1 + mark % 128)
                alike = number not in oracle or oracle[number][0] == text
                assert kept.keep(trace, text, now, LIFETIME) is alike
                if number not in oracle and len(oracle) == _memory.WAYS:
                    del oracle[min(oracle, key=lambda key: oracle[key][1])]
                oracle[number] = (text if alike else None, now + LIFETIME)
            assert other.find(trace, now) == oracle.get(number, (None, 0))[0]
        for number in range(24):
            found = other.find(b"%032x" % (number + 1), now)
            assert found is None or set(found) == {ord("m")}
    finally:
        os.close(fd)


STEPS = (bytes(range(3, 99)), b"\1\5\0" * 30, b"\2\x80\1\2\0\x28\2\x81\1\3\1\7")
