"""The slab: what is counted is what is read, by whoever reads whenever, and a writer's end loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _slab
from graylb.observe.slabs import Series, Slabs

SMALL = 1 << 16
V1 = (("service", "up"), ("version", "v1"))
CODES = ("none", "1xx", "2xx")


@contextmanager
def slabs(workers: int = 1, size: int = 0) -> Iterator[Slabs]:
    made = Slabs(workers, size)
    try:
        yield made
    finally:
        made.close()


def writer(of: Slabs, number: int = 0) -> _slab.Slab:
    return _slab.Slab(_slab.Memory(of.fds[number], number))


def values(of: Slabs, name: str, gone_after: int = 600) -> dict[tuple[tuple[str, str], ...], int]:
    return {each.labels: each.value for each in of.read(gone_after) if each.name == name}


def test_a_slab_without_a_writer_is_empty() -> None:
    with slabs(2) as both:
        assert both.read() == []
        assert both.refused() == 0


def test_series_of_several_workers_are_summed() -> None:
    with slabs(3) as all_three:
        for number in range(3):
            slab = writer(all_three, number)
            slab.add("a_total", V1, 10 + number)
            slab.set("g", (("worker", str(number)),), 5)
            slab.add_several("r_total", V1, "code", CODES, 2, number)
        assert values(all_three, "a_total") == {V1: 33}
        assert values(all_three, "g") == {(("worker", str(number)),): 5 for number in range(3)}
        assert values(all_three, "r_total") == {(*V1, ("code", code)): 3 * (code == "2xx") for code in CODES}
        kinds = {each.name: each.kind for each in all_three.read()}
        assert kinds == {"a_total": "counter", "g": "gauge", "r_total": "counter"}


names = st.text(min_size=1, max_size=20)
Key = tuple[str, tuple[tuple[str, str], ...]]
keys: st.SearchStrategy[Key] = st.tuples(
    st.sampled_from(["x_total", "y_total"]), st.lists(st.tuples(st.just("version"), names), max_size=1).map(tuple)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), keys, st.integers(0, 1 << 40), st.sampled_from(["add", "succeed"]))))
def test_what_is_read_is_what_a_dict_would_hold(steps: list[tuple[int, Key, int, str]]) -> None:
    """Whatever the labels are, and however often a writer's place is taken by another."""
    with slabs(2) as both:
        writers = [writer(both, 0), writer(both, 1)]
        wanted: Counter[Key] = Counter()
        for number, key, n, step in steps:
            if step == "succeed":
                writers[number] = writer(both, number)
            writers[number].add(*key, n)
            wanted[key] += n
        assert {(each.name, each.labels): each.value for each in both.read()} == dict(wanted)


@given(st.lists(st.integers(0, 1 << 36), min_size=1))
def test_a_histogram_tells_how_many_took_less(times: list[int]) -> None:
    with slabs() as one:
        slab = writer(one)
        for us in times:
            slab.observe("t_seconds", V1, us)
        (found,) = one.read()
        assert found.cells is not None
        assert found.cells.total() == len(times)
        assert found.cells[_slab.BUCKETS] == sum(times)
        ends = [_slab.bucket_of(us) for us in (16, 1000, 50_000, 10_000_000)]
        limits = [_slab.bucket_end(end - 1) for end in ends]
        assert found.cells.up_to(ends) == [sum(us < limit for us in times) for limit in limits]


def test_the_middle_of_a_bucket_is_within_five_percent_of_what_is_in_it() -> None:
    for bucket in range(16, 511):
        first, end = _slab.bucket_end(bucket - 1), _slab.bucket_end(bucket)
        middle = (first + end) / 2
        assert max(middle - first, end - middle) / first <= 0.05


WRITER = """
import os, sys
from graylb import _slab
slab = _slab.Slab(_slab.Memory(int(sys.argv[1])))
slab.set("busy", (), 1)
n = 0
while True:
    slab.add("n_total", ())
    slab.add("of_total", (("k", str(n % 500)),))
    n += 1
    if n % 100 == 0: os.write(1, b"%d\\n" % n)
"""


def test_a_killed_writer_loses_nothing_and_its_successor_goes_on() -> None:
    """Killed anywhere: every step it has told of is counted, gauges begin anew, and the slab can be written on."""
    with slabs() as one:
        least = 0
        for _ in range(4):
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(one.fds[0])], stdout=subprocess.PIPE, pass_fds=one.fds
            )
            assert process.stdout is not None
            told = 0
            for _ in range(30):
                told = int(process.stdout.readline())
            assert values(one, "busy") == {(): 1}
            process.send_signal(signal.SIGKILL)
            process.wait()
            rest = process.stdout.read().split()
            process.stdout.close()
            least += int(rest[-1]) if rest else told
            n = values(one, "n_total")[()]
            assert n >= least
            assert 0 <= n - sum(values(one, "of_total").values()) <= 4  # each was killed at most between the two
            least = n
        slab = writer(one)
        assert slab.memory.predecessors == 4
        assert values(one, "busy") == {(): 0}
        slab.add("n_total", ())
        assert values(one, "n_total") == {(): least + 1}


def test_a_reader_beside_a_writer_sees_only_what_was_and_never_less_than_before() -> None:
    with slabs() as one:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(one.fds[0])], stdout=subprocess.DEVNULL, pass_fds=one.fds
        )
        try:
            before: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
            deadline = time.monotonic() + 20
            while before.get(("n_total", ()), 0) < 2000:
                now = {(each.name, each.labels): each.value for each in one.read()}
                assert all(now[key] >= n for key, n in before.items() if key[0] != "busy")
                assert {key[0] for key in now} <= {"busy", "n_total", "of_total"}
                before = now
                assert time.monotonic() < deadline
        finally:
            process.kill()
            process.wait()


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1 << 36)), max_size=60))
def test_the_newest_exemplar_of_each_doubling_is_kept(times: list[tuple[int, int]]) -> None:
    """Of two workers together, whichever has seen it."""
    with slabs(2) as both:
        writers = [writer(both, 0), writer(both, 1)]
        writers[0].observe("t_seconds", V1, 1)
        newest: dict[int, tuple[int, int, str, str]] = {}
        for at, (number, us) in enumerate(times, 1):
            trace_id, span_id = b"%032x" % at, b"%016x" % at
            writers[number].show("t_seconds", V1, us, at, trace_id, span_id)
            newest[min(us, (1 << 35) - 1).bit_length() if us >= 16 else 0] = (
                us,
                at,
                trace_id.decode(),
                span_id.decode(),
            )
        (found,) = both.read()
        assert found.cells is not None
        assert found.cells.total() == 1
        shown = found.exemplars.exemplars() if found.exemplars else []
        assert sorted(shown) == sorted(newest.values())


SHOWER = """
import sys
from graylb import _slab
slab = _slab.Slab(_slab.Memory(int(sys.argv[1])))
slab.observe("t_seconds", (), 1)
n = 0
while True:
    n += 1
    slab.show("t_seconds", (), 1000 + n % 2, n, b"%032x" % n, b"%016x" % n)
"""


def test_an_exemplar_is_read_whole_also_while_it_is_written_and_after_its_writer_was_killed() -> None:
    with slabs() as one:
        at = 0
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", SHOWER, str(one.fds[0])], pass_fds=one.fds)
            try:
                last, looks, deadline = 0, 0, time.monotonic() + 20
                while looks < 1000:
                    for each in one.read():
                        for us, at, trace_id, span_id in each.exemplars.exemplars() if each.exemplars else ():
                            assert us == 1000 + at % 2
                            assert int(trace_id, 16) == int(span_id, 16) == at
                            looks += at != last
                            last = at
                    assert time.monotonic() < deadline
            finally:
                process.kill()
                process.wait()
        slab = writer(one)
        slab.show("t_seconds", (), 1000, 7, b"%032x" % 7, b"%016x" % 7)
        (found,) = one.read()
        assert found.exemplars is not None
        assert found.exemplars.exemplars() == [(1000, 7, f"{7:032x}", f"{7:016x}")]


def test_a_full_slab_counts_the_rest_together() -> None:
    with slabs(size=SMALL) as one:
        slab = writer(one)
        for number in range(2000):
            slab.add("n_total", (("version", str(number)),))
            slab.add_several("m_total", (("version", str(number)),), "code", CODES, 1)
        found = values(one, "n_total")
        assert sum(found.values()) == sum(values(one, "m_total").values()) == 2000
        rest = (("version", _slab.OTHER),)
        assert found[rest] == 2000 - (len(found) - 1)
        assert values(one, "m_total")[(*rest, ("code", "1xx"))] > 0
        assert one.refused() > 2000
        assert one.used() <= SMALL


def test_series_of_those_who_left_stay_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of still, so that their last counts are scraped; taken up again when they come back; then no more."""
    with slabs() as one:
        slab = writer(one)
        service, twin = slab.part(), slab.part()
        service.add("n_total", V1, 3)
        twin.add("n_total", V1, 1)
        slab.add("mine_total", ())
        del service
        assert values(one, "n_total", 0) == {V1: 4}  # the twin counts in it
        del twin
        assert values(one, "n_total") == {V1: 4}
        assert values(one, "n_total", 0) == {}
        assert values(one, "mine_total", 0) == {(): 1}
        back = slab.part()
        back.add("n_total", V1)
        assert values(one, "n_total", 0) == {V1: 5}
        monkeypatch.setattr(_slab, "GONE_AFTER", 0)
        slab.part().add("n_total", (("service", "up"), ("version", "v2")))
        assert values(one, "n_total", 0) == {V1: 5}  # nothing takes the place of a series that somebody counts in


def test_the_place_of_a_series_that_is_gone_for_long_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab does not fill up because versions come and go, and no count of one is told as another's."""
    monkeypatch.setattr(_slab, "GONE_AFTER", 0)
    with slabs(size=SMALL) as one:
        slab = writer(one)
        for number in range(5000):
            labels = (("service", "up"), ("version", f"v{number:04}"))
            part = slab.part()
            part.add("n_total", labels, number)
            assert values(one, "n_total", 0) == {labels: number}
            del part
        assert one.refused() == 0
        assert one.used() < 4096


def test_a_successor_tells_of_no_series_that_it_does_not_count_in() -> None:
    with slabs() as one:
        writer(one).add("n_total", V1, 3)
        slab = writer(one)
        assert values(one, "n_total", 0) == {}
        slab.add("n_total", V1)
        assert values(one, "n_total", 0) == {V1: 4}


def test_what_is_no_slab_is_refused() -> None:
    fd = os.memfd_create("junk")
    try:
        os.truncate(fd, SMALL)
        os.pwrite(fd, b"x" * 64, 0)
        with pytest.raises(ValueError, match="not a slab"):
            _slab.Memory(fd)
        os.truncate(fd, 100)
        with pytest.raises(ValueError, match="expected at least"):
            _slab.Memory(fd)
    finally:
        os.close(fd)


def test_without_a_descriptor_there_is_memory_of_ones_own() -> None:
    slab = _slab.Slab()
    slab.add("n_total", ())
    assert isinstance(Series("n_total", "counter", (), 1), Series)
