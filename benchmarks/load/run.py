"""The load benchmark: all proxies up at once, interleaved rounds, order rotated."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers, wrk
from benchmarks.load.cases import Case
from benchmarks.load.peers import KINDS, Peer, Upstreams
from benchmarks.load.process import cpu_seconds, memory, tree
from benchmarks.load.stage import Cores, all_up, busy_seconds, end, my_cores, spawn, stage
from benchmarks.load.verify import at_rest, check_share, count_at
from benchmarks.stats import rotated


@dataclass(frozen=True, slots=True)
class Run:
    """One case on one proxy in one round. Times in microseconds, memory in KiB, shares from 0 to 1."""

    round: int
    case: str
    peer: str
    requests: int
    seconds: float
    rps: float
    p50_us: int
    p99_us: int
    p999_us: int
    max_us: int
    cpu_us: float  # processor time of the proxy's whole tree for each request
    core_share: float  # of the proxy's core, used by its tree
    rss_kib: int
    pss_kib: int | None
    processes: int
    v2_share: float
    disturbance: float  # of the proxy's core, used by anyone else


@dataclass(frozen=True, slots=True)
class Plan:
    cases: Sequence[Case]
    peers: Sequence[str]
    rounds: int
    seconds: int
    chosen: bool = False  # the cases were asked for by name: slow peers run them, too


def participants(case: Case, names: Sequence[str], *, chosen: bool = False) -> list[str]:
    """Which of the peers run a case."""

    def takes_part(name: str) -> bool:
        if case.many or name == "graylb-10k":
            return case.many and name in ("graylb", "graylb-10k")
        if name == "floor":
            return case.floor
        return case.slow or chosen or not KINDS[name].slow

    return [name for name in names if takes_part(name)]


def measure(number: int, case: Case, peer: Peer, to: Upstreams, cores: Cores, seconds: int) -> Run:
    """One run. Raises BenchError for any error, a process that came or went, or a split that does not hold."""
    what = f"round {number}, {case.name}, {peer.name}"
    processes = tree(peer.pid)
    seen = at_rest(to)
    before, busy = cpu_seconds(processes), busy_seconds(cores.proxy)
    load = spawn(wrk.command(case, peer.port, seconds), cores.load)
    try:
        try:
            load.wait(seconds * 0.7)  # memory while all connections are in use
        except subprocess.TimeoutExpired:
            used = memory(processes)
            found = wrk.finish(load, case, seconds, what)
        else:
            found = wrk.finish(load, case, seconds, what)
            raise BenchError(f"{what}: wrk ended early")
    finally:
        end(load)
    spent, busy = cpu_seconds(processes) - before, busy_seconds(cores.proxy) - busy
    if tree(peer.pid) != processes:
        raise BenchError(f"{what}: its processes changed while it was measured")
    served = [count_at(port).since(then).requests for port, then in zip((to.v1, to.v2), seen, strict=True)]
    check_served(served, found.requests, case, peer.name, what)
    return Run(
        number, case.name, peer.name, found.requests, found.seconds, found.requests / found.seconds,
        found.p50_us, found.p99_us, found.p999_us, found.max_us,
        spent / found.requests * 1e6, spent / found.seconds,
        used.rss, used.pss, len(processes), served[1] / sum(served), max(0.0, busy - spent) / found.seconds,
    )  # fmt: skip


def check_served(served: Sequence[int], answered: int, case: Case, peer: str, what: str) -> None:
    """The upstreams' own counts: every answer came from one of them, none was asked twice, the shares hold."""
    total = sum(served)
    if not answered <= total <= answered + 2 * case.connections:
        raise BenchError(f"{what}: {answered} answers, but the upstreams served {total}")
    if peer != "floor":
        check_share(served[1], total, case.v2_share, what)


def run(plan: Plan, *, tell: bool = True) -> dict[str, Any]:
    """All rounds of `plan`: the raw result, ready for JSON. Raises BenchError."""
    cores = my_cores()
    environment = stamp.environment(("wrk", *peers.programs_of(plan.peers), "cc"))
    runs: list[Run] = []
    with stage(cores) as on, all_up(on, plan.peers) as up:
        for number in range(1, plan.rounds + 1):
            for index, case in enumerate(plan.cases):
                for name in rotated(participants(case, plan.peers, chosen=plan.chosen), number + index):
                    runs.append(measure(number, case, up[name], on.to, cores, plan.seconds))
                    if tell:
                        print(line(runs[-1]), flush=True)
    return {
        "kind": "load",
        "stamp": environment,
        "settings": {
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "peers": list(plan.peers),
            "cases": [case.name for case in plan.cases],
            "proxy_cores": sorted(cores.proxy),
            "load_cores": sorted(cores.load),
        },
        "runs": [asdict(each) for each in runs],
    }


def line(each: Run) -> str:
    return (
        f"round {each.round} {each.case:13} {each.peer:10} {each.rps:9.0f} rq/s  cpu {each.cpu_us:7.2f} us"
        f"  core {each.core_share:4.0%}  p50 {each.p50_us} p99 {each.p99_us} p99.9 {each.p999_us} us"
    )
