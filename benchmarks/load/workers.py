"""Two workers against one: what a request costs, and how connections spread.

Proxy and load share all cores here, for two workers need two of them. The rate is fixed, at half of what one worker can
do, so that both run under the same conditions.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import httpx

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load.pace import CONNECTIONS, PATH, highest_rate
from benchmarks.load.peers import Peer
from benchmarks.load.process import cpu_seconds, tree
from benchmarks.load.stage import Cores, Stage, all_up, drive, my_cores, stage
from benchmarks.stats import rotated, round_ratios

COUNTS = (1, 2)
RATE_SHARE = 0.5
SPREAD_CONNECTIONS = 512
BOUND = 1.10
LEAST = 0.40


def clients_of(peer: Peer) -> list[int]:
    """Open client connections by worker, from the admin API. Raises BenchError when it tells none."""
    answer = httpx.get(f"http://127.0.0.1:{peer.admin}/stats", timeout=10)
    counts = [each["stats"].get("clients") for each in answer.json()]
    if not counts or not all(isinstance(each, int) for each in counts):
        raise BenchError(f"graylb's /stats tells no clients by worker: {answer.text[:200]}")
    return counts


def spread_of(peer: Peer) -> list[int]:
    """Connections that each worker has of SPREAD_CONNECTIONS, each of which was answered once."""
    before = clients_of(peer)
    with ExitStack() as stack:
        for _ in range(SPREAD_CONNECTIONS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", peer.port), 10))
            client.sendall(b"GET /128 HTTP/1.1\r\nHost: x\r\n\r\n")
            if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                raise BenchError(f"{peer.name}: a connection was not answered with 200")
        return [after - then for after, then in zip(clients_of(peer), before, strict=True)]


def measure(number: int, count: int, on: Stage, peer: Peer, rate: float, seconds: float) -> dict[str, Any]:
    processes = tree(peer.pid)
    before = cpu_seconds(processes)
    what = f"round {number}, {count} workers"
    command = on.native("pace", peer.port, PATH, CONNECTIONS, rate, seconds)
    found = drive(command, on.cores.load, seconds + 30, what)
    spent = cpu_seconds(processes) - before
    if found["lost"]:
        raise BenchError(f"{what}: {found['lost']} requests were never answered")
    return {"round": number, "case": "steady", "peer": str(count), "cpu_us": spent / found["requests"] * 1e6, **found}


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """The raw result, ready for JSON. Raises BenchError."""
    own = my_cores()
    everywhere = own.proxy | own.load
    environment = stamp.environment(("cc",))
    runs, spreads = [], []
    with stage(Cores(everywhere, everywhere)) as on, ExitStack() as stack:
        up = {count: stack.enter_context(all_up(on, ["graylb"], workers=count))["graylb"] for count in COUNTS}
        rate = RATE_SHARE * highest_rate(on, up[1], seconds)
        print(f"one worker and two at {rate:.0f} requests/s", flush=True)
        for number in range(1, rounds + 1):
            for count in rotated(COUNTS, number):
                runs.append(measure(number, count, on, up[count], rate, seconds))
                print(f"round {number} {count} workers  cpu {runs[-1]['cpu_us']:7.2f} us", flush=True)
            spreads.append(spread_of(up[2]))
            print(f"round {number} {SPREAD_CONNECTIONS} connections: {spreads[-1]}", flush=True)
    settings = {"rounds": rounds, "seconds": seconds, "rate": rate, "connections": SPREAD_CONNECTIONS}
    return {"kind": "workers", "stamp": environment, "settings": settings, "runs": runs, "spreads": spreads}


def least_share(spreads: Sequence[Sequence[int]]) -> float:
    """The smallest part of the connections that a worker ever had."""
    return min(min(each) / sum(each) for each in spreads)


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings, runs = result["settings"], result["runs"]
    one, two = (report.by_round(runs, "steady", str(count), "cpu_us") for count in COUNTS)
    ratio, least = round_ratios(two, one, "two workers to one"), least_share(result["spreads"])
    held = report.verdict(ratio.median <= BOUND), report.verdict(least >= LEAST)
    rows = [
        ["CPU µs per request, one worker", report.median_of(runs, "steady", "1", "cpu_us"), "", ""],
        ["CPU µs per request, two workers", report.median_of(runs, "steady", "2", "cpu_us"), "", ""],
        ["two workers to one", report.ratio(ratio), f"≤ {BOUND:.2f}", held[0]],
        [f"least of {settings['connections']} connections", f"{least:.0%}", f"≥ {LEAST:.0%}", held[1]],
    ]
    about = f"{settings['rounds']} rounds of {settings['seconds']} s at {settings['rate']:,.0f} requests/s"
    about = f"- {about}; proxy and load share all cores\n"
    return f"## Two workers\n\n{report.stamp_lines(result)}{about}\n" + report.table(
        ["figure", "median", "bound", "verdict"], rows
    )
