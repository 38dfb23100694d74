"""Three times what the upstreams can do, from clients that give up: what is served, how soon the rest is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers
from benchmarks.load.peers import Peer, Upstreams
from benchmarks.load.process import check_pinned, running, tree
from benchmarks.load.stage import Stage, drive, my_cores, stage
from benchmarks.stats import round_ratios, spread

SLOTS = {"v1": 38, "v2": 2}
"""Requests at once of each upstream: capacities as the shares of the configuration's split, 95 and 5."""
TIME_US = 20_000
CAPACITY = sum(SLOTS.values()) / (TIME_US / 1e6)
"""Requests per second of both."""
PATIENCE_MS = 500
CONNECTIONS = 4_000
"""Of clients; enough that each request that is due finds one free."""
TIMES = 3
WARM = 2
"""Seconds until an adaptive limit has found its place."""
BOUND = 0.9
"""Of the goodput to the highest."""
FAST_MS = 50.0
"""Within which 99 % of what is refused is refused: a tenth of the clients' patience."""

_ADAPTIVE = "{min: 2, max: 500, probe: 5s}"
CASES = {
    "none": ("no limit", ""),
    "fixed": ("requests per version", "    limits: {per_version: {requests: 76}}\n"),
    "instances": ("requests per instance", "    limits: {per_instance: {requests: 76}}\n"),
    "adaptive": ("adaptive per version", f"    limits: {{per_version: {{adaptive: {_ADAPTIVE}}}}}\n"),
    "rate": ("rate", f"    limits: {{rates: [{{name: all, rate: {CAPACITY:.0f}/s, burst: 40}}]}}\n"),
}
"""Title, and the lines to add to the service."""
LIMITED = tuple(name for name in CASES if name != "none")


@contextmanager
def queue(version: str, name: str, on: Stage) -> Iterator[int]:
    """An upstream of limited capacity; yields its port."""
    command = on.native("queue", version, SLOTS[version], TIME_US)
    with running(f"queue {version}", command, on.cores.load, on.work / f"{name}-{version}.log", tells=True) as process:
        yield peers.told_port(process, f"queue {version}")


@contextmanager
def proxy(on: Stage, number: int, case: str, what: str = "") -> Iterator[Peer]:
    """graylb with this limit, before upstreams of its own: those of another may still work off what was given up."""
    name = f"{case}{what}-{number}"
    with ExitStack() as stack:
        to = Upstreams(*(stack.enter_context(queue(version, name, on)) for version in SLOTS))
        setting = replace(on.setting, to=to)
        peer = stack.enter_context(peers.graylb(setting, f"graylb-{name}", instances=CASES[case][1]))
        check_pinned(tree(peer.pid), setting.cores, name)
        yield peer


def surge(on: Stage, peer: Peer, connections: int, rate: float, seconds: float, what: str) -> dict[str, Any]:
    command = on.native("surge", peer.port, "/2", connections, rate, seconds + WARM, WARM, PATIENCE_MS)
    found = drive(command, on.cores.load, seconds + WARM + 30, what)
    if found["other"]:
        raise BenchError(f"{what}: {found['other']} answers were neither 200 nor 503 nor 429")
    return {**found, "goodput": found["good"] / found["seconds"]}


def run(rounds: int, seconds: int, cases: Sequence[str] = tuple(CASES)) -> dict[str, Any]:
    """The raw result, ready for JSON; the limits one after the other in each round. Raises BenchError."""
    environment = stamp.environment(("cc",))
    runs: list[dict[str, Any]] = []
    with stage(my_cores(), connections=2 * CONNECTIONS) as on:
        peers.compile_native(on.work, ("queue", "surge"))
        for number in range(1, rounds + 1):
            with proxy(on, number, "none", "-highest") as peer:
                # twice as many clients as are served at once keep every slot busy
                some = 2 * sum(SLOTS.values())
                peak = surge(on, peer, some, 0, seconds, f"round {number}, the highest")
            for case in cases:
                with proxy(on, number, case) as peer:
                    found = surge(on, peer, CONNECTIONS, TIMES * CAPACITY, seconds, f"round {number}, {case}")
                runs.append({"round": number, "case": case, "peer": "graylb", "peak": peak["goodput"], **found})
                tell(runs[-1])
    settings = {"rounds": rounds, "seconds": seconds, "cases": list(cases), "capacity": CAPACITY}
    return {"kind": "overload", "stamp": environment, "settings": settings, "runs": runs}


def tell(found: Mapping[str, Any]) -> None:
    text = (
        f"round {found['round']} {found['case']:10} goodput {found['goodput']:6.0f}/s, highest {found['peak']:6.0f}/s"
    )
    text += f"  refused {found['refused']} in p99 {found['refused_p99_us'] / 1000:.1f} ms, gave up {found['late']}"
    print(text, flush=True)


def laws(runs: Sequence[Mapping[str, Any]], cases: Sequence[str]) -> list[list[str]]:
    """What is promised of graylb, each row with its verdict."""
    rows = []
    for case in cases:
        if case not in LIMITED:
            continue
        title = CASES[case][0]
        goodput, peak = (report.by_round(runs, case, "graylb", field) for field in ("goodput", "peak"))
        ratio = round_ratios(goodput, peak, case)
        rows.append(
            [f"{title}: goodput to the highest", report.ratio(ratio), f"≥ {BOUND:.2f}", _held(ratio.median >= BOUND)]
        )
        slowest = max(run["refused_p99_us"] for run in runs if run["case"] == case) / 1000
        rows.append([f"{title}: p99 of refusals, ms", f"{slowest:.1f}", f"≤ {FAST_MS:.0f}", _held(slowest <= FAST_MS)])
    return rows


def _held(holds: bool) -> str:
    return report.verdict(holds)


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings, runs = result["settings"], result["runs"]
    rows = []
    for case in settings["cases"]:
        there = [run for run in runs if run["case"] == case]

        def middle(field: str, there: list[Any] = there, case: str = case) -> float:
            return spread([run[field] for run in there], f"{case}, {field}").median

        figures = [f"{middle(field):,.0f}" for field in ("peak", "goodput")]
        times = [f"{middle(field) / 1000:.1f}" for field in ("p99_us", "refused_p99_us")]
        lost = [
            f"{sum(run[field] for run in there) / sum(run['offered'] for run in there):.1%}"
            for field in ("refused", "late")
        ]
        rows.append([CASES[case][0], *figures, *times, *lost])
    about = (
        f"Upstreams of {settings['capacity']:,.0f} requests/s in all ({sum(SLOTS.values())} at once, {TIME_US // 1000} "
        f"ms each, the others in line), {TIMES} times as many requests, of clients that give up after {PATIENCE_MS} ms."
        " The highest: the goodput of clients that ask again once they are answered."
    )
    head = ["limit", "highest/s", "goodput/s", "p99, ms", "p99 of refusals, ms", "refused", "gave up"]
    text = f"## Overload\n\n{report.stamp_lines(result)}\n{about}\n\n{report.table(head, rows)}"
    return text + "\n" + report.table(["law", "figure", "bound", "verdict"], laws(runs, settings["cases"]))
