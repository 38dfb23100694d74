"""The HTTP/2 load benchmark: all proxies up at once, under load of h2load in turns, order rotated."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report, stamp
from benchmarks.h2 import h2load
from benchmarks.h2.cases import CASES, LAWS, Case
from benchmarks.h2.measured import measure
from benchmarks.h2.peers import KINDS, Side
from benchmarks.h2.scene import all_up, scene
from benchmarks.h2.verify import counts_at
from benchmarks.load.peers import Peer
from benchmarks.load.stage import my_cores
from benchmarks.load.turns import Load, Told

PROGRAMS = ("h2load", "cc")


def load_of(case: Case, name: str, side: Side, work: Path) -> Load:
    """A case as a load that takes turns, under this name."""

    def command(peer: Peer, seconds: int) -> list[str]:
        return h2load.command(case, peer.port, seconds, work, tls=bool(side.tls))

    def told(process: subprocess.Popen[str], seconds: int, what: str) -> Told:
        return Told(h2load.finish(process, case, seconds, what))

    return Load(name, command, told, case.connections * case.streams, count=partial(counts_at, protocol=side.upstream))


def run(names: Sequence[str], cases: Sequence[Case], rounds: int, seconds: int) -> dict[str, Any]:
    """All rounds: the raw result, ready for JSON. Raises BenchError."""
    cores = my_cores()
    environment = stamp.environment((*PROGRAMS, *(KINDS[name].program for name in names if KINDS[name].program)))
    sides = {case.name: Side(case.upstream) for case in cases}
    with scene(cores) as on, all_up(on, names, sorted(set(sides.values()), key=lambda side: side.name)) as up:
        loads = [(load_of(case, case.name, sides[case.name], on.work), sides[case.name]) for case in cases]
        rows = measure(loads, names, up, on, rounds, seconds)
    settings = {
        "rounds": rounds, "seconds": seconds, "peers": list(names), "cases": [case.name for case in cases],
        "proxy_cores": sorted(cores.proxy), "load_cores": sorted(cores.load),
    }  # fmt: skip
    return {"kind": "h2", "stamp": environment, "settings": settings, "runs": rows}


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    titles = {**titles, **{case.name: case.title for case in CASES}, **{n: k.title for n, k in KINDS.items()}}
    return report.sections(
        "HTTP/2",
        result,
        [
            ("Laws", report.laws(result, titles, LAWS)),
            ("CPU µs per request (whole process tree)", report.figures(result, titles, "cpu_us", compare=True)),
            ("Requests per second", report.figures(result, titles, "rps", compare=True)),
            ("Memory of the whole process tree under load", report.memories(result, titles)),
        ],
        titles,
    )
