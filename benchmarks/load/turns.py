"""Proxies under load in turns of a tenth of a second, each from a load generator of its own that is stopped in between.

What is compared is often smaller than what a machine's speed changes by within a second: whatever makes it slow for
longer than a moment makes it slow for all. What a generator was stopped for is in its slowest answers, so of latencies
nothing but the median is told.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.failure import BenchError
from benchmarks.load.cases import SPLIT
from benchmarks.load.peers import Peer, Upstreams
from benchmarks.load.process import Memory, cpu_seconds, memory, tree
from benchmarks.load.stage import Cores, busy_seconds, end, spawn
from benchmarks.load.verify import Counts, at_rest, count_at
from benchmarks.stats import share_bounds

TURN = 0.1
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a generator says when it ends."""

    requests: int
    p50_us: int | None = None  # in microseconds, of those that know a median


@dataclass(frozen=True, slots=True)
class Load:
    """What the proxies of a case are put under, each by a generator of its own.

    The clock of a generator goes on while it is stopped: `command` and `finish` are told the seconds of all turns.
    """

    case: str
    command: Callable[[Peer, int], Sequence[str]]
    finish: Callable[[subprocess.Popen[str], int, str], Told]  # raises BenchError for any error
    under_way: int
    """Requests that a generator may leave unanswered when it ends, which then are in the upstreams' counts alone."""
    v2_share: float = SPLIT
    count: Callable[[int], Counts] = count_at
    """What the upstream at a port has seen."""


@dataclass(frozen=True, slots=True)
class Run:
    """One case on one proxy in one round. Times in microseconds, memory in KiB, shares from 0 to 1."""

    round: int
    case: str
    peer: str
    requests: int
    seconds: float  # of its turns
    rps: float
    p50_us: int | None
    cpu_us: float  # processor time of the proxy's whole tree for each request
    core_share: float  # of the proxy's core in its turns, used by its tree
    rss_kib: int
    pss_kib: int | None
    processes: int
    v2_share: float  # of all of the round
    disturbance: float  # of the proxy's core, used by anyone else


@dataclass(frozen=True, slots=True)
class Taken:
    """What turns told, by peer. spent: CPU seconds of the tree; took: seconds of all turns."""

    found: Mapping[str, Told]
    spent: Mapping[str, float]
    used: Mapping[str, Memory]
    trees: Mapping[str, tuple[int, ...]]
    took: float


@contextmanager
def elsewhere(cores: Cores) -> Iterator[None]:
    """This thread leaves the proxy's core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.load)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def take_turns(load: Load, up: Mapping[str, Peer], cores: Cores, seconds: int, what: str) -> Taken:
    """Each is under load for so many seconds, in the order of `up`. Raises BenchError for any error, and a process that
    came or went."""
    trees = {name: tree(peer.pid) for name, peer in up.items()}
    whole = seconds * len(up)
    before = {name: cpu_seconds(pids) for name, pids in trees.items()}
    began = time.monotonic()
    running = {}
    try:
        for name, peer in up.items():
            running[name] = spawn(load.command(peer, whole), cores.load)
            running[name].send_signal(signal.SIGSTOP)
        while time.monotonic() - began < whole - len(up) * TURN:
            for name, each in running.items():
                if each.poll() is not None:
                    load.finish(each, whole, f"{what}, {name}")  # which may know why
                    raise BenchError(f"{what}, {name}: the load ended early")
                each.send_signal(signal.SIGCONT)
                time.sleep(TURN)
                each.send_signal(signal.SIGSTOP)
        used = {name: memory(pids) for name, pids in trees.items()}  # while all connections are open
        for each in running.values():
            each.send_signal(signal.SIGCONT)
        found = {name: load.finish(each, whole, f"{what}, {name}") for name, each in running.items()}
    finally:
        for each in running.values():
            end(each)
    spent = {name: cpu_seconds(pids) - before[name] for name, pids in trees.items()}
    if any(tree(up[name].pid) != pids for name, pids in trees.items()):
        raise BenchError(f"{what}: processes changed while they were measured")
    return Taken(found, spent, used, trees, time.monotonic() - began)


def bounds(name: str, v2_share: float, count: int) -> tuple[float, float]:
    """Of so many answers, those that v2 may have given. The floor looks at no request and splits its connections, some
    of which are faster than others."""
    low, high = (0.0, 2 * SPLIT) if name == "floor" else share_bounds(v2_share, count)
    return low * count, high * count


def check_served(served: Sequence[int], answered: Mapping[str, int], load: Load, what: str) -> None:
    """The upstreams' own counts: every answer came from one of them, none was asked twice, the shares hold."""
    total, told = sum(served), sum(answered.values())
    if not told <= total <= told + 2 * load.under_way * len(answered):
        raise BenchError(f"{what}: {told} answers, but the upstreams served {total}")
    low, high = map(sum, zip(*(bounds(name, load.v2_share, count) for name, count in answered.items()), strict=True))
    if not low <= served[1] <= high + total - told:
        raise BenchError(f"{what}: v2 got {served[1]} of {total}, expected between {low:.0f} and {high:.0f}")


def measure(number: int, load: Load, up: Mapping[str, Peer], to: Upstreams, cores: Cores, seconds: int) -> list[Run]:
    """A round of one case. Raises BenchError as `take_turns`, and for a split that does not hold."""
    what = f"round {number}, {load.case}"
    seen, busy = at_rest(to, load.count), busy_seconds(cores.proxy)
    with elsewhere(cores):
        taken = take_turns(load, up, cores, seconds, what)
    others = max(0.0, busy_seconds(cores.proxy) - busy - sum(taken.spent.values())) / taken.took
    served = [load.count(port).since(then).requests for port, then in zip((to.v1, to.v2), seen, strict=True)]
    check_served(served, {name: each.requests for name, each in taken.found.items()}, load, what)
    own = taken.took / len(up)
    return [
        Run(
            number, load.case, name, each.requests, own, each.requests / own, each.p50_us,
            taken.spent[name] / each.requests * 1e6, taken.spent[name] / own,
            taken.used[name].rss, taken.used[name].pss, len(taken.trees[name]), served[1] / sum(served), others,
        )
        for name, each in taken.found.items()
    ]  # fmt: skip


def line(each: Run) -> str:
    median = "" if each.p50_us is None else f"  p50 {each.p50_us} us"
    return (
        f"round {each.round} {each.case:14} {each.peer:14} {each.rps:9.0f} rq/s  cpu {each.cpu_us:7.2f} us"
        f"  core {each.core_share:4.0%}{median}"
    )
