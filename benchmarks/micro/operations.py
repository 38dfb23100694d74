"""The operations themselves, over tables compiled from snapshots. Importing this needs graylb's compiled modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.failure import BenchError
from benchmarks.micro import snapshots
from benchmarks.micro.sizes import HEADS, INSTANCES, RULES
from graylb import _fast, _gate, _http1, table
from graylb.model.snapshot import Snapshot, StickyKey

CLIENT = "127.0.0.1"
ANYONE = 1  # graylb.table numbers a service's targets: its stable version, all its instances, then what rules ask
Named = tuple[str, Callable[[int], float], int]


def load(snapshot: Snapshot) -> _fast.Table:
    return _fast.Table(table.compile(snapshot))


def over_heads(loaded: _fast.Table, heads: list[bytes]) -> Callable[[int], float]:
    """The mean over all heads, decided in turn n times, so that neighbours in time differ."""
    return lambda n: loaded.bench_match(heads, CLIENT, n)


def matches() -> Iterator[Named]:
    """One whole decision: route, rules, split or subset, instance."""
    for count in RULES:
        loaded = load(snapshots.snapshot(snapshots.exact_rules(count)))
        hits = [snapshots.head(f"u{each * count // HEADS}") for each in range(HEADS)]
        misses = [snapshots.head(f"nobody{each}") for each in range(HEADS)]
        for kind, heads in (("hit", hits), ("miss", misses)):
            for head in heads:
                rule = loaded.decide(head)["rule"]
                if (rule is not None) != (kind == "hit"):
                    raise BenchError(f"match, {kind} among {count} rules: decided by {rule}")
            yield f"match, {kind}, {count:,} rules", over_heads(loaded, heads), 500


def picks() -> Iterator[Named]:
    """One instance out of a subset of all."""
    for count in INSTANCES:
        loaded = load(snapshots.snapshot(instances=count))
        yield f"pick, {count:,} instances", picker(loaded), 500_000


def picker(loaded: _fast.Table) -> Callable[[int], float]:
    return lambda n: loaded.bench_pick(0, ANYONE, n)


def first_split(loaded: _fast.Table) -> int:
    """The number of the service's default split: the first target that has slots."""
    for target in range(ANYONE + 1, 10):
        try:
            loaded.bench_slot(0, target, b"key", 1)
        except ValueError:
            continue
        return target
    raise BenchError("the table has no split where one was configured")


def sticky() -> Iterator[Named]:
    loaded = load(snapshots.snapshot(sticky=(StickyKey("header", "x-user-id"),)))
    split = first_split(loaded)
    yield "sticky key to version", lambda n: loaded.bench_slot(0, split, b"user-0123456789", n), 500_000
    heads = [snapshots.head(f"user-{each}") for each in range(HEADS)]
    yield "match, sticky split, no rules", over_heads(loaded, heads), 500


def heads() -> Iterator[Named]:
    """What a request's head and its answer's go through, for the head of a bare client and of a browser."""
    for head in (snapshots.BARE, snapshots.head("u1")):
        size = f"{len(head)}-byte head"
        yield f"scan of a {size}", partial(_http1.bench_scan, head), 100_000
        yield f"second parser, {size}", partial(_gate.bench_admits, head), 50_000
        yield f"writing of a {size}", partial(_http1.bench_write, head), 100_000
    yield "answer's head, read and written", partial(_http1.bench_answer, snapshots.ANSWER), 100_000
