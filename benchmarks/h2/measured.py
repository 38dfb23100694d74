"""One run of any load against one proxy: processor time, memory, and the upstreams' own counts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.failure import BenchError
from benchmarks.h2.peers import Side
from benchmarks.h2.scene import Scene
from benchmarks.h2.verify import counts_at
from benchmarks.load.cases import SPLIT
from benchmarks.load.peers import Peer
from benchmarks.load.process import cpu_seconds, memory, tree
from benchmarks.load.stage import busy_seconds, end
from benchmarks.load.verify import Counts, check_share


@dataclass(frozen=True, slots=True)
class Load:
    """How to start a load generator, and to read `requests`, `seconds` and `latency_us` of it when it ends."""

    start: Callable[[], subprocess.Popen[str]]
    finish: Callable[[subprocess.Popen[str]], dict[str, Any]]
    under_way: int
    """Requests that may be under way when it ends, and then are in nobody's count but the upstreams'."""


def counts(on: Scene, side: Side) -> list[Counts]:
    to = on.to[side.upstream]
    return [counts_at(port, side.upstream) for port in (to.v1, to.v2)]


def run_load(load: Load, pids: tuple[int, ...], seconds: float, what: str) -> tuple[dict[str, Any], int, int | None]:
    """(figures, RSS, PSS in KiB while all connections were in use). Raises BenchError when it ends early."""
    process = load.start()
    try:
        try:
            process.wait(seconds * 0.7)
        except subprocess.TimeoutExpired:
            used = memory(pids)
            return load.finish(process), used.rss, used.pss
        load.finish(process)  # which may know why
        raise BenchError(f"{what}: the load ended early")
    finally:
        end(process)


def measure(
    number: int, case: str, name: str, peer: Peer, side: Side, on: Scene, load: Load, seconds: float
) -> dict[str, Any]:
    """A row of results. Raises BenchError for any error, a process that came or went, a split that does not hold."""
    what = f"round {number}, {case}, {peer.name}"
    pids = tree(peer.pid)
    seen = counts(on, side)
    before, busy = cpu_seconds(pids), busy_seconds(on.cores.proxy)
    found, rss, pss = run_load(load, pids, seconds, what)
    spent, busy = cpu_seconds(pids) - before, busy_seconds(on.cores.proxy) - busy
    if tree(peer.pid) != pids:
        raise BenchError(f"{what}: its processes changed while it was measured")
    served = [now.since(then).requests for now, then in zip(counts(on, side), seen, strict=True)]
    total = sum(served)
    if not found["requests"] <= total <= found["requests"] + 2 * load.under_way:
        raise BenchError(f"{what}: {found['requests']} answers, but the upstreams served {total}")
    check_share(served[1], total, SPLIT, what)
    length = found["seconds"]
    return {
        "round": number, "case": case, "peer": name, "requests": found["requests"], "seconds": length,
        "rps": found["requests"] / length, "latency_us": found["latency_us"], "cpu_us": spent / total * 1e6,
        "core_share": spent / length, "rss_kib": rss, "pss_kib": pss, "processes": len(pids),
        "v2_share": served[1] / total, "disturbance": max(0.0, busy - spent) / length,
    }  # fmt: skip


def show(row: Mapping[str, Any]) -> None:
    print(
        f"round {row['round']} {row['case']:14} {row['peer']:8} {row['rps']:9.0f} rq/s  cpu {row['cpu_us']:7.2f} us"
        f"  core {row['core_share']:4.0%}  latency {row['latency_us']:.0f} us",
        flush=True,
    )
