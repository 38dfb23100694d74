"""The HTTP/2 load benchmark: all proxies up at once, interleaved rounds, order rotated, h2load as the load."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import report, stamp
from benchmarks.h2 import h2load
from benchmarks.h2.cases import CASES, LAWS, Case
from benchmarks.h2.measured import Load, measure, show
from benchmarks.h2.peers import KINDS, Side
from benchmarks.h2.scene import Scene, all_up, scene
from benchmarks.load.peers import Peer
from benchmarks.load.stage import my_cores, spawn
from benchmarks.stats import rotated

PROGRAMS = ("h2load", "cc")


def load_of(case: Case, peer: Peer, side: Side, on: Scene, seconds: int, what: str) -> Load:
    """h2load's run of a case; `latency_us` is the mean."""

    def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
        found = h2load.finish(process, case, seconds, what)
        return {"requests": found.requests, "seconds": found.seconds, "latency_us": found.mean_us}

    command = h2load.command(case, peer.port, seconds, on.work, tls=bool(side.tls))
    return Load(lambda: spawn(command, on.cores.load), finish, case.connections * case.streams)


def run(names: Sequence[str], cases: Sequence[Case], rounds: int, seconds: int) -> dict[str, Any]:
    """All rounds: the raw result, ready for JSON. Raises BenchError."""
    cores = my_cores()
    environment = stamp.environment((*PROGRAMS, *(KINDS[name].program for name in names if KINDS[name].program)))
    sides = {case.name: Side(case.upstream) for case in cases}
    rows: list[dict[str, Any]] = []
    with scene(cores) as on, all_up(on, names, sorted(set(sides.values()), key=lambda side: side.name)) as up:
        for number in range(1, rounds + 1):
            for index, case in enumerate(cases):
                for name in rotated(names, number + index):
                    side = sides[case.name]
                    peer = up[name, side]
                    load = load_of(case, peer, side, on, seconds, f"round {number}, {case.name}, {peer.name}")
                    rows.append(measure(number, case.name, name, peer, side, on, load, seconds))
                    show(rows[-1])
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
            ("Mean latency in µs, at saturation", report.figures(result, titles, "latency_us", compare=False)),
            ("Memory of the whole process tree under load", report.memories(result, titles)),
        ],
        titles,
    )
