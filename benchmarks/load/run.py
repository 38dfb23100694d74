"""The load benchmark: all proxies up at once, interleaved rounds, order rotated."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers, wrk
from benchmarks.load.cases import Case
from benchmarks.load.peers import Peer, Upstreams
from benchmarks.load.process import check_idle, check_pinned, cpu_seconds, memory, tree
from benchmarks.load.verify import check_share, count_at, verify
from benchmarks.stats import rotated


@dataclass(frozen=True, slots=True)
class Cores:
    proxy: frozenset[int]
    load: frozenset[int]


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


def choose_cores(available: frozenset[int]) -> Cores:
    """The last core for the proxy, all others for load and upstreams. Raises BenchError with fewer than two."""
    if len(available) < 2:
        raise BenchError(f"{len(available)} core available, expected 2: one for the proxy, the others for the load")
    proxy = max(available)
    return Cores(frozenset({proxy}), available - {proxy})


def participants(case: Case, names: Sequence[str]) -> list[str]:
    return [name for name in names if name != "floor" or case.floor]


@contextmanager
def stage(names: Sequence[str], cores: Cores, work: Path) -> Iterator[tuple[Upstreams, dict[str, Peer]]]:
    """Upstreams and proxies, all up, pinned and verified."""
    with ExitStack() as stack:
        peers.compile_native(work)
        to = Upstreams(*(stack.enter_context(peers.upstream(each, work, cores.load)) for each in ("v1", "v2")))
        up = {name: stack.enter_context(peers.START[name](work, cores.proxy, to)) for name in names}
        for name, peer in up.items():
            check_pinned(tree(peer.pid), cores.proxy, name)
            verify(peer, to)
        check_idle({name: tree(peer.pid) for name, peer in up.items()})
        yield to, up


def measure(number: int, case: Case, peer: Peer, to: Upstreams, cores: Cores, seconds: int) -> Run:
    """One run. Raises BenchError for any error, a process that came or went, or a split that does not hold."""
    what = f"round {number}, {case.name}, {peer.name}"
    processes = tree(peer.pid)
    seen = count_at(to.v1), count_at(to.v2)
    before, busy = cpu_seconds(processes), busy_seconds(cores.proxy)
    load = subprocess.Popen(
        wrk.command(case, peer.port, seconds),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores.load),
    )
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
        if load.poll() is None:
            load.kill()
            load.communicate()
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


def core_ticks(stat: str, core: int) -> int:
    """Clock ticks that a core was not idle, hypervisor's theft included, from a /proc/stat text."""
    for line in stat.splitlines():
        name, *values = line.split()
        if name == f"cpu{core}":
            return sum(map(int, values[:8])) - int(values[3]) - int(values[4])  # less idle and waiting for disks
    raise BenchError(f"/proc/stat tells nothing of core {core}")


def busy_seconds(cores: Iterable[int]) -> float:
    stat = Path("/proc/stat").read_text()
    return sum(core_ticks(stat, core) for core in cores) / os.sysconf("SC_CLK_TCK")


def run(plan: Plan, *, tell: bool = True) -> dict[str, Any]:
    """All rounds of `plan`: the raw result, ready for JSON. Raises BenchError."""
    cores = choose_cores(frozenset(os.sched_getaffinity(0)))
    programs = tuple(name for name in ("nginx", "haproxy") if name in plan.peers)
    environment = stamp.environment(("wrk", *programs, "cc"))
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="graylb-bench-") as folder:
        work = Path(folder)
        work.chmod(0o755)  # nginx workers run as another user
        with stage(plan.peers, cores, work) as (to, up):
            for number in range(1, plan.rounds + 1):
                for index, case in enumerate(plan.cases):
                    for name in rotated(participants(case, plan.peers), number + index):
                        runs.append(measure(number, case, up[name], to, cores, plan.seconds))
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
        f"round {each.round} {each.case:13} {each.peer:8} {each.rps:9.0f} rq/s  cpu {each.cpu_us:7.2f} us"
        f"  core {each.core_share:4.0%}  p50 {each.p50_us} p99 {each.p99_us} p99.9 {each.p999_us} us"
    )
