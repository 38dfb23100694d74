"""The stage of every load benchmark: which core is whose, upstreams and proxies up, pinned and verified."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from benchmarks.failure import BenchError
from benchmarks.load import peers
from benchmarks.load.peers import Peer, Setting, Upstreams
from benchmarks.load.process import check_idle, check_pinned, tree
from benchmarks.load.verify import verify


@dataclass(frozen=True, slots=True)
class Cores:
    proxy: frozenset[int]
    load: frozenset[int]


@dataclass(frozen=True, slots=True)
class Stage:
    cores: Cores
    work: Path
    to: Upstreams
    setting: Setting

    def native(self, name: str, *arguments: object) -> list[str]:
        return [str(self.work / name), *map(str, arguments)]


def choose_cores(available: frozenset[int]) -> Cores:
    """The last core for the proxy, all others for load and upstreams. Raises BenchError with fewer than two."""
    if len(available) < 2:
        raise BenchError(f"{len(available)} core available, expected 2: one for the proxy, the others for the load")
    proxy = max(available)
    return Cores(frozenset({proxy}), available - {proxy})


def my_cores() -> Cores:
    return choose_cores(frozenset(os.sched_getaffinity(0)))


@contextmanager
def stage(cores: Cores, connections: int = 4096) -> Iterator[Stage]:
    """A folder with the native programs, and both upstreams up."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graylb-bench-")))
        work.chmod(0o755)  # nginx workers run as another user
        peers.compile_native(work)
        to = Upstreams(*(stack.enter_context(peers.upstream(each, work, cores.load)) for each in ("v1", "v2")))
        yield Stage(cores, work, to, Setting(work, cores.proxy, to, connections))


@contextmanager
def all_up(on: Stage, names: Sequence[str], **changes: Any) -> Iterator[dict[str, Peer]]:
    """These proxies, pinned, doing their job, and idle. `changes`: fields of Setting."""
    setting = replace(on.setting, **changes)
    with ExitStack() as stack:
        up = {name: stack.enter_context(peers.KINDS[name].start(setting)) for name in names}
        for name, peer in up.items():
            check_pinned(tree(peer.pid), setting.cores, name)
            verify(peer, on.to)
        check_idle({name: tree(peer.pid) for name, peer in up.items()})
        yield up


def spawn(command: Sequence[str], cores: frozenset[int], *, session: bool = False) -> subprocess.Popen[str]:
    """A load generator, pinned; its figures come on standard output. session: one of its own, which the kernel's
    autogroups give a share of its own (sched(7)): it does not pay for what else runs in ours."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def finish(process: subprocess.Popen[str], seconds: float, what: str) -> dict[str, Any]:
    """The one JSON line of a native generator. Raises BenchError when it fails or does not end in time."""
    try:
        output, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what}: the load did not end within {seconds:.0f} s") from None
    finally:
        end(process)
    if process.returncode:
        raise BenchError(f"{what}: the load ended with status {process.returncode}: {said[-300:]}")
    found: dict[str, Any] = orjson.loads(output)
    return found


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()


def drive(command: Sequence[str], cores: frozenset[int], seconds: float, what: str) -> dict[str, Any]:
    """Runs a native generator to its end."""
    return finish(spawn(command, cores), seconds, what)


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


def tcp_timeouts(netstat: str) -> int:
    """Retransmissions that the kernel made after waiting for 200 ms or more, from a /proc/net/netstat text.

    Loopback drops segments when its backlog is full; a connection then stands still, whoever its ends are.
    """
    lines = netstat.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if names.startswith("TcpExt:"):
            return int(dict(zip(names.split(), values.split(), strict=True))["TCPTimeouts"])
    raise BenchError("/proc/net/netstat tells nothing of TcpExt")


def timeouts_so_far() -> int:
    return tcp_timeouts(Path("/proc/net/netstat").read_text())
