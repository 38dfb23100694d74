"""Throughput of bodies from 10 KiB to 1 GiB, both ways, and what a MiB costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers
from benchmarks.load.peers import Peer
from benchmarks.load.process import cpu_seconds, tree
from benchmarks.load.stage import Stage, all_up, drive, my_cores, stage
from benchmarks.load.verify import count_at
from benchmarks.stats import rotated

MIB = 1 << 20
PEERS = ("graylb", "nginx", "haproxy", "floor")


@dataclass(frozen=True, slots=True)
class Body:
    """`size` bytes down from `path`, or with `upload` up to it; `times` on each connection."""

    name: str
    title: str
    path: str
    size: int
    upload: bool
    connections: int
    times: int

    @property
    def transfers(self) -> int:
        return self.connections * self.times


BODIES = (
    Body("down-10k", "10 KiB down", "/10240", 10 << 10, False, 64, 200),
    Body("up-10k", "10 KiB up", "/128", 10 << 10, True, 64, 200),
    Body("down-1m", "1 MiB down", "/1048576", MIB, False, 16, 48),
    Body("up-1m", "1 MiB up", "/0", MIB, True, 16, 48),
    Body("down-1g", "1 GiB down", "/1073741824", 1 << 30, False, 2, 1),
    Body("up-1g", "1 GiB up", "/0", 1 << 30, True, 2, 1),
)
TITLES = {body.name: body.title for body in BODIES}


def measure(number: int, body: Body, peer: Peer, on: Stage) -> dict[str, Any]:
    """One run. Raises BenchError when a byte is missing."""
    what = f"round {number}, {body.title}, {peer.name}"
    ports = (on.to.v1, on.to.v2)
    seen = [count_at(port) for port in ports]
    processes = tree(peer.pid)
    before = cpu_seconds(processes)
    upload = body.size if body.upload else 0
    command = on.native("transfer", peer.port, body.path, upload, body.connections, body.times)
    found = drive(command, on.cores.load, 120, what)
    spent = cpu_seconds(processes) - before
    arrived = [count_at(port).since(then) for port, then in zip(ports, seen, strict=True)]
    total = body.transfers * body.size
    sent_on = sum(each.bodies for each in arrived)
    if found["bytes"] != total or sum(each.requests for each in arrived) != body.transfers:
        raise BenchError(
            f"{what}: {found['bytes']} bytes of {total} in {body.transfers} transfers, upstreams {arrived}"
        )
    if sent_on != (total if body.upload else 0):
        raise BenchError(f"{what}: {sent_on} bytes of request bodies arrived")
    return {
        "round": number, "case": body.name, "peer": peer.name, "seconds": found["seconds"],
        "mib_s": total / MIB / found["seconds"], "cpu_us_mib": spent * 1e6 / (total / MIB),
        "core_share": spent / found["seconds"],
    }  # fmt: skip


def run(names: Sequence[str], rounds: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """The raw result, ready for JSON. Raises BenchError."""
    names = [name for name in names if name in PEERS or not peers.KINDS[name].standard]
    chosen = [body for body in BODIES if only is None or body.name in only]
    environment = stamp.environment(("cc", *peers.programs_of(names)))
    runs = []
    with stage(my_cores()) as on, all_up(on, names) as up:
        for number in range(1, rounds + 1):
            for index, body in enumerate(chosen):
                for name in rotated(names, number + index):
                    row = measure(number, body, up[name], on)
                    runs.append(row)
                    print(
                        f"round {number} {body.title:12} {name:8} {row['mib_s']:7.0f} MiB/s"
                        f"  cpu {row['cpu_us_mib']:7.1f} us/MiB  core {row['core_share']:4.0%}",
                        flush=True,
                    )
    return {
        "kind": "bodies",
        "stamp": environment,
        "settings": {"rounds": rounds, "peers": names, "cases": [body.name for body in chosen]},
        "runs": runs,
    }


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    titles = {**titles, **TITLES}
    return (
        f"## Large bodies\n\n{report.stamp_lines(result)}- rounds: {result['settings']['rounds']}\n"
        + "\n### MiB per second\n\n"
        + report.figures(result, titles, "mib_s", compare=True)
        + "\n### CPU µs per MiB (whole process tree)\n\n"
        + report.figures(result, titles, "cpu_us_mib", compare=True)
    )
