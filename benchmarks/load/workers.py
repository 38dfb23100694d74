"""Two workers against one: what a request costs, and how connections spread.

Proxy and load share all cores here, for two workers need two of them. The rates are fixed. Two workers are measured at
the rate of one, and at twice that. The latter is judged: each is under the same load as the one, so that what they cost
each other shows, and not that a worker with less to do wakes up more often for each request.
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

RATE_SHARE = 0.25
"""Of the most that one worker can do: the rate for each."""
SPREAD_CONNECTIONS = 512
STEPS = {"one": (1, 1), "two": (2, 1), "two-twice": (2, 2)}
"""Name -> (workers, times the rate and the connections of one)."""
TITLES = {"one": "one worker", "two": "two workers at the same rate", "two-twice": "two workers at twice the rate"}
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


def measure(number: int, step: str, on: Stage, peer: Peer, rate: float, seconds: float) -> dict[str, Any]:
    """`rate`: of one worker."""
    processes = tree(peer.pid)
    before = cpu_seconds(processes)
    what, times = f"round {number}, {TITLES[step]}", STEPS[step][1]
    command = on.native("pace", peer.port, PATH, times * CONNECTIONS // 2, times * rate, seconds)
    found = drive(command, on.cores.load, seconds + 30, what)
    spent = cpu_seconds(processes) - before
    if found["lost"]:
        raise BenchError(f"{what}: {found['lost']} requests were never answered")
    return {"round": number, "case": "steady", "peer": step, "cpu_us": spent / found["requests"] * 1e6, **found}


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """The raw result, ready for JSON. Raises BenchError."""
    own = my_cores()
    everywhere = own.proxy | own.load
    environment = stamp.environment(("cc",))
    runs, spreads = [], []
    with stage(Cores(everywhere, everywhere)) as on, ExitStack() as stack:
        up = {count: stack.enter_context(all_up(on, ["graylb"], workers=count))["graylb"] for count in (1, 2)}
        rate = RATE_SHARE * highest_rate(on, up[1], seconds)
        print(f"{rate:.0f} requests/s for one worker", flush=True)
        for number in range(1, rounds + 1):
            for step in rotated(list(STEPS), number):
                runs.append(measure(number, step, on, up[STEPS[step][0]], rate, seconds))
                print(f"round {number} {TITLES[step]:30} cpu {runs[-1]['cpu_us']:7.2f} us", flush=True)
            spreads.append(spread_of(up[2]))
            print(f"round {number} {SPREAD_CONNECTIONS} connections: {spreads[-1]}", flush=True)
    settings = {"rounds": rounds, "seconds": seconds, "rate": rate, "connections": SPREAD_CONNECTIONS}
    return {"kind": "workers", "stamp": environment, "settings": settings, "runs": runs, "spreads": spreads}


def least_share(spreads: Sequence[Sequence[int]]) -> float:
    """The smallest part of the connections that a worker ever had."""
    return min(min(each) / sum(each) for each in spreads)


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings, runs = result["settings"], result["runs"]
    cpu = {step: report.by_round(runs, "steady", step, "cpu_us") for step in STEPS}
    rows = [[f"CPU µs per request, {TITLES[s]}", report.median_of(runs, "steady", s, "cpu_us"), "", ""] for s in STEPS]
    same, twice = (round_ratios(cpu[step], cpu["one"], TITLES[step]) for step in ("two", "two-twice"))
    least = least_share(result["spreads"])
    held = report.verdict(twice.median <= BOUND), report.verdict(least >= LEAST)
    rows += [
        ["two to one, same rate", report.ratio(same), "", ""],
        ["two to one, twice the rate", report.ratio(twice), f"≤ {BOUND:.2f}", held[0]],
        [f"least of {settings['connections']} connections", f"{least:.0%}", f"≥ {LEAST:.0%}", held[1]],
    ]
    about = f"{settings['rounds']} rounds of {settings['seconds']} s, {settings['rate']:,.0f} requests/s for one worker"
    text = f"## Two workers\n\n{report.stamp_lines(result)}- {about}; proxy and load share all cores\n\n"
    return text + report.table(["figure", "median", "bound", "verdict"], rows)
