"""What slow clients do to the others: latency with a crowd of them and without, and how long they stay."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers
from benchmarks.load.idle import raise_limit
from benchmarks.load.peers import Peer
from benchmarks.load.process import check_idle, tree
from benchmarks.load.stage import Stage, all_up, drive, end, my_cores, spawn, stage
from benchmarks.stats import round_ratios, spread

PEERS = ("graylb", "nginx", "haproxy")
CROWDS = {"heads": 5_000, "bodies": 1_000, "readers": 200}
"""So few readers, for on loopback the kernel keeps up to 5 MB for each, and has a limit for all."""
TITLES = {"heads": "5,000 slow heads", "bodies": "1,000 slow bodies", "readers": "200 slow readers"}
CONNECTIONS = 64
RATE = 2_000.0
PATIENCE = 20
"""Seconds for which a crowd is slow."""
SETTLED = 0.2
"""Share of a core that proxy, upstreams and slow readers use at most, once all of these are as slow as that."""
BOUND = 2.0
"""Of the 99th percentile with the crowd to that without."""
SHED = 10.3
"""Seconds: a head's 10 s, and what the timer's ticks and the generator add."""


def latency(number: int, on: Stage, peer: Peer, crowd: str, seconds: int) -> dict[str, Any]:
    command = on.native("pace", peer.port, "/128", CONNECTIONS, RATE, seconds)
    found = drive(command, on.cores.load, seconds + 30, f"round {number}, {peer.name}, {crowd}")
    if found["recorded"] < 1:
        raise BenchError(f"round {number}, {peer.name}, {crowd}: nobody was answered")
    return {"round": number, "case": crowd, "peer": peer.name, **found}


def crowded(number: int, on: Stage, peer: Peer, crowd: str, count: int, seconds: int) -> dict[str, Any]:
    """Latency of the others while the crowd is there; of heads also how they ended."""
    command = [sys.executable, "-m", "benchmarks.load.drip", crowd, str(peer.port), str(count), str(PATIENCE)]
    process = spawn(command, on.cores.load)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "open":
            raise BenchError(f"round {number}, {peer.name}: not all of {count} {crowd} could connect")
        if crowd == "readers":  # first they get what fits into the buffers on the way
            check_idle({"what is under way": tree(os.getpid())}, most=SETTLED, patience=PATIENCE / 2)
        found = latency(number, on, peer, crowd, seconds)
        if crowd != "heads":  # who has a right to be slow
            return {**found, "crowd": count}
        said, _ = process.communicate(timeout=PATIENCE + 30)
    finally:
        end(process)
    told = orjson.loads(said)
    return {**found, "crowd": count, "closed": told["closed"], "longest": told["longest"]}


def run(names: Sequence[str], rounds: int, seconds: int, crowds: Mapping[str, int] = CROWDS) -> dict[str, Any]:
    """The raw result, ready for JSON; proxies one after the other. Raises BenchError."""
    raise_limit(max(crowds.values()) + 2_000)
    environment = stamp.environment(("cc", *peers.programs_of(names)))
    runs: list[dict[str, Any]] = []
    with stage(my_cores(), connections=max(crowds.values()) + 1_000) as on:
        for name in names:
            with all_up(on, [name]) as up:
                for number in range(1, rounds + 1):
                    runs.append(latency(number, on, up[name], "nobody", seconds))
                    tell(runs[-1])
                    for crowd, count in crowds.items():
                        runs.append(crowded(number, on, up[name], crowd, count, seconds))
                        tell(runs[-1])
    settings = {"rounds": rounds, "seconds": seconds, "peers": names, "crowds": dict(crowds)}
    return {"kind": "slow", "stamp": environment, "settings": settings, "runs": runs}


def tell(found: Mapping[str, Any]) -> None:
    text = f"round {found['round']} {found['peer']:10} {found['case']:8}"
    text += f" p50 {found['p50_us']:8.0f} p99 {found['p99_us']:8.0f} us"
    if "closed" in found:
        text += f"  closed {found['closed']} of {found['crowd']}, the last after {found['longest']:.1f} s"
    print(text, flush=True)


def laws(runs: Sequence[Mapping[str, Any]], crowds: Sequence[str]) -> list[list[str]]:
    """What is promised of graylb, each row with its verdict."""
    quiet = report.by_round(runs, "nobody", "graylb", "p99_us")
    rows = []
    for crowd in crowds:
        ratio = round_ratios(report.by_round(runs, crowd, "graylb", "p99_us"), quiet, crowd)
        held = report.verdict(ratio.median <= BOUND)
        rows.append([f"p99 beside {TITLES[crowd]} to that without", report.ratio(ratio), f"≤ {BOUND:.2f}", held])
    ours = [run for run in runs if run["peer"] == "graylb" and run["case"] == "heads"]
    if ours:
        longest = max(run["longest"] for run in ours)
        shed = longest <= SHED and all(run["closed"] == run["crowd"] for run in ours)
        rows.append(["every slow head closed after, s", f"{longest:.1f}", f"≤ {SHED}", report.verdict(shed)])
    return rows


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings, runs = result["settings"], result["runs"]
    rows = []
    for name in settings["peers"]:
        for crowd in ("nobody", *settings["crowds"]):
            there = [run for run in runs if run["peer"] == name and run["case"] == crowd]
            p99 = [run["p99_us"] / 1000 for run in there]
            closed = f"{min(run['closed'] for run in there):,}" if crowd == "heads" else "–"
            stayed = f"{max(run['longest'] for run in there):.1f}" if crowd == "heads" else "–"
            middle = spread(p99, f"{crowd}, {name}").median
            rows.append([titles.get(name, name), TITLES.get(crowd, crowd), f"{middle:.2f}", closed, stayed])
    about = (
        f"{RATE:,.0f} requests/s over {CONNECTIONS} connections, beside clients that are slow for {PATIENCE} s: a "
        "byte a second, or 1 KiB of a download. Everybody's timeouts are those of its configuration in this suite."
    )
    head = ["proxy", "beside", "p99 of the others, ms", "closed", "the last after, s"]
    text = f"## Slow clients\n\n{report.stamp_lines(result)}\n{about}\n\n{report.table(head, rows)}"
    if "graylb" not in settings["peers"]:
        return text
    return text + "\n" + report.table(["law", "figure", "bound", "verdict"], laws(runs, list(settings["crowds"])))
