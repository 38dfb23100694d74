"""The load benchmark: all proxies up at once, under load in turns, order rotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import stamp
from benchmarks.load import peers, turns, wrk
from benchmarks.load.cases import Case
from benchmarks.load.peers import KINDS
from benchmarks.load.stage import all_up, my_cores, stage
from benchmarks.stats import rotated


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


def run(plan: Plan, *, tell: bool = True) -> dict[str, Any]:
    """All rounds of `plan`: the raw result, ready for JSON. Raises BenchError."""
    cores = my_cores()
    environment = stamp.environment(("wrk", *peers.programs_of(plan.peers), "cc"))
    runs: list[turns.Run] = []
    with stage(cores) as on, all_up(on, plan.peers) as up:
        for number in range(1, plan.rounds + 1):
            for index, case in enumerate(plan.cases):
                order = rotated(participants(case, plan.peers, chosen=plan.chosen), number + index)
                some = {name: up[name] for name in order}
                load = wrk.load_of(case)
                for found in turns.measure(number, load, some, on.to, cores, plan.seconds) if some else ():
                    runs.append(found)
                    if tell:
                        print(turns.line(found), flush=True)
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
