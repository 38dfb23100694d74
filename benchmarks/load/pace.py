"""Latency at a constant rate (an open loop), and of small requests beside large downloads."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers, wrk
from benchmarks.load.cases import Case
from benchmarks.load.peers import KINDS, Peer
from benchmarks.load.stage import Stage, all_up, drive, end, my_cores, spawn, stage, timeouts_so_far
from benchmarks.stats import rotated, round_ratios, spread

SHARE = 0.7
"""Of nginx's highest rate: what everybody is measured at."""
CONNECTIONS = 64
PATH = "/128"
NICE = 10
DOWNLOADS = Case("downloads", "1 MiB beside small requests", 1 << 20, connections=16)
SMALL_CONNECTIONS = 8
SMALL_RATE = 400.0
BOUND_MS = 10.0
"""Of the 99th percentile of small requests beside downloads."""
BESIDE = ("beside", "clients")
DIRECT = "no proxy"
"""Small requests that go to the instance itself while the downloads go through graylb: what its own core costs it."""
FAR_BEHIND = 0.01
"""Share of requests unanswered long after the end beyond which a proxy has no latency to speak of at that rate."""


def highest_rate(on: Stage, peer: Peer, seconds: float) -> float:
    """Requests per second of a closed loop."""
    command = on.native("pace", peer.port, PATH, CONNECTIONS, 0, seconds)
    found = drive(command, on.cores.load, seconds + 30, f"{peer.name}, highest rate")
    return float(found["requests"] / found["seconds"])


def row(number: int, case: str, peer: str, found: Mapping[str, Any], rate: float) -> dict[str, Any]:
    asked = found["requests"] + found["lost"]
    if found["recorded"] < 1 or (case in BESIDE and found["lost"]):
        raise BenchError(f"round {number}, {case}, {peer}: {found['lost']} of {asked} requests were never answered")
    return {"round": number, "case": case, "peer": peer, "rate": rate, **found, "behind": found["lost"] / asked}


def steady(number: int, on: Stage, peer: Peer, rate: float, seconds: float) -> dict[str, Any]:
    command = on.native("pace", peer.port, PATH, CONNECTIONS, rate, seconds)
    found = drive(command, on.cores.load, seconds + 30, f"round {number}, {peer.name} at {rate:.0f}/s")
    return row(number, "steady", peer.name, found, rate)


def beside(number: int, on: Stage, peer: Peer, seconds: int, case: str, *, direct: bool = False) -> dict[str, Any]:
    """Small requests while other connections download as fast as they can.

    direct: the small ones pass the proxy by.

    case: `beside`, at a low constant rate, counted from when each was due; `clients`, each asking again once it has
    its answer, as wrk does, which leaves out those that would have been asked meanwhile.
    """
    name, port = (DIRECT, on.to.v1) if direct else (peer.name, peer.port)
    what = f"round {number}, {name}, {case}"
    rate = SMALL_RATE if case == "beside" else 0.0
    # at a lower priority: one core carries all clients, and what they wait for it is not the proxy's
    downloads = spawn(["nice", "-n", str(NICE), *wrk.command(DOWNLOADS, peer.port, seconds + 60)], on.cores.load)
    try:
        command = on.native("pace", port, PATH, SMALL_CONNECTIONS, rate, seconds)
        found = drive(command, on.cores.load, seconds + 30, what)
        if downloads.poll() is not None:
            raise BenchError(f"{what}: the downloads ended before the small requests")
        downloads.send_signal(signal.SIGINT)  # on which wrk ends its run and tells its figures
        loaded = wrk.finish(downloads, DOWNLOADS, 5, what)
    finally:
        end(downloads)
    return row(number, case, name, {**found, "downloads_s": loaded.requests / loaded.seconds}, rate)


def counted(measure: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> dict[str, Any]:
    """What it found, with the kernel's TCP timeouts meanwhile."""
    before = timeouts_so_far()
    found = measure(*arguments, **options)
    return {**found, "tcp_timeouts": timeouts_so_far() - before}


def tell(found: Mapping[str, Any]) -> None:
    text = f"round {found['round']} {found['case']:7} {found['peer']:10} {found['rate']:7.0f}/s"
    text += "".join(f"  {name} {found[name + '_us']:8.0f}" for name in ("p50", "p99", "p999", "max"))
    print(f"{text} us" + (f"  TCP timeouts {found['tcp_timeouts']}" if found["tcp_timeouts"] else ""), flush=True)


def run(names: Sequence[str], rounds: int, seconds: int) -> dict[str, Any]:
    """The raw result, ready for JSON. Raises BenchError, also when nginx is not among the names."""
    if "nginx" not in names:
        raise BenchError("pace: needs nginx, whose highest rate sets everybody's")
    names = [name for name in names if name != "graylb-10k"]
    quick = [name for name in names if not KINDS[name].slow]
    environment = stamp.environment(("wrk", "cc", *peers.programs_of(names)))
    runs: list[dict[str, Any]] = []
    with stage(my_cores()) as on, all_up(on, names) as up:
        peak = statistics.median(highest_rate(on, up["nginx"], seconds) for _ in range(3))
        rate = SHARE * peak
        print(f"nginx answers {peak:.0f} requests/s at most; everybody is asked {rate:.0f}/s", flush=True)
        for number in range(1, rounds + 1):
            for name in rotated(names, number):
                runs.append(counted(steady, number, on, up[name], rate, seconds))
                tell(runs[-1])
            for case in BESIDE:
                for name in rotated(quick, number):
                    runs.append(counted(beside, number, on, up[name], seconds, case))
                    tell(runs[-1])
                if "graylb" in quick:
                    runs.append(counted(beside, number, on, up["graylb"], seconds, case, direct=True))
                    tell(runs[-1])
    settings = {"rounds": rounds, "seconds": seconds, "peers": names, "peak": peak, "rate": rate}
    return {"kind": "pace", "stamp": environment, "settings": settings, "runs": runs}


def milliseconds(runs: Sequence[Mapping[str, Any]], case: str, peer: str) -> list[str]:
    """Cells p50, p99, p99.9 and the worst round's p99."""
    behind = report.by_round(runs, case, peer, "behind")
    if statistics.median(behind.values()) > FAR_BEHIND:
        return ["does not keep up", "–", "–", "–"]
    cells = []
    for figure in ("p50_us", "p99_us", "p999_us"):
        values = list(report.by_round(runs, case, peer, figure).values())
        cells.append(f"{spread(values, f'{case}, {peer}, {figure}').median / 1000:.2f}")
    return [*cells, f"{max(report.by_round(runs, case, peer, 'p99_us').values()) / 1000:.2f}"]


def laws(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """What is promised of graylb, each row with its verdict."""
    found: list[list[str]] = []

    def judge(what: str, value: str, bound: str, held: bool) -> None:
        found.append([what, value, bound, report.verdict(held)])

    def compare(case: str, other: str, what: str) -> None:
        if other in names:
            ours, theirs = (report.by_round(runs, case, name, "p99_us") for name in ("graylb", other))
            ratio = round_ratios(ours, theirs, what)
            judge(what, report.ratio(ratio), "≤ 1.00", ratio.median <= 1)

    if "graylb" in names:
        compare("steady", "nginx", "p99 at the constant rate to nginx's")
        for case, how in (("beside", "at a constant rate"), ("clients", "of clients in turn")):
            ours = spread(list(report.by_round(runs, case, "graylb", "p99_us").values()), case).median / 1000
            judge(f"p99 beside downloads, {how}, ms", f"{ours:.2f}", f"≤ {BOUND_MS:.0f}", ours <= BOUND_MS)
            compare(case, "haproxy", f"p99 beside downloads, {how}, to HAProxy's")
    return found


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings, runs = result["settings"], result["runs"]
    text = f"## Latency at a constant rate\n\n{report.stamp_lines(result)}"
    text += (
        f"- {settings['rounds']} rounds of {settings['seconds']} s; nginx's highest rate {settings['peak']:,.0f}/s\n"
    )
    stood = [f"{run['peer']} in round {run['round']} ({run['case']})" for run in runs if run.get("tcp_timeouts")]
    if stood:
        text += (
            f"- the kernel lost segments on loopback and waited 200 ms or more for some of them: {', '.join(stood)}\n"
        )
    head = ["proxy", "p50", "p99", "p99.9", "worst round's p99"]
    small = f"over {SMALL_CONNECTIONS} connections, beside 16 downloads of 1 MiB; ms"
    for case, about in (
        ("steady", f"{settings['rate']:,.0f} requests/s over {CONNECTIONS} connections, {SHARE:.0%} of nginx's; ms"),
        ("beside", f"{SMALL_RATE:.0f} requests/s {small}"),
        ("clients", f"One request after the other {small}"),
    ):
        there = [name for name in (*settings["peers"], DIRECT) if report.by_round(runs, case, name, "p99_us")]
        rows = [[titles.get(name, name), *milliseconds(runs, case, name)] for name in there]
        text += f"\n### {about}\n\n{report.table(head, rows)}"
    return text + "\n" + report.table(["law", "median", "bound", "verdict"], laws(runs, settings["peers"]))
