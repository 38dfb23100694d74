"""`python -m benchmarks.soak`: a long mixed load on one worker, then WebSockets under changes of the configuration.

The load goes round the cases of the load benchmark, new connections for each request among them, one second each,
beside clients that misbehave in every way of trouble.KINDS. After each round, when all clients are gone, memory and
descriptors are looked at. Figures are printed, and kept as soak.json (partial-soak.json below 10 million requests).
Exit status: 0 every law held, 1 one is broken or the run failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.keep import RESULTS, keep
from benchmarks.load import wrk
from benchmarks.load.cases import CASES
from benchmarks.load.idle import raise_limit
from benchmarks.load.stage import Stage, end, my_cores, spawn, stage
from benchmarks.load.verify import count_at
from benchmarks.soak import tunnels, verdict
from benchmarks.soak.proxy import Proxy, proxy
from benchmarks.soak.trouble import Trouble

WHOLE = 10_000_000
MIX = ("get-128", "browser-128", "close-128", "users-128", "get-128-c512", "post-10k", "get-10k", "get-100k", "get-1m")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="A long mixed load on graylb.")
    made.add_argument("--requests", type=int, default=1_000_000, help="at least so many (default: a million)")
    made.add_argument("--tunnels", type=int, default=1_000, help="WebSockets that are held; 0: leave that part out")
    made.add_argument("--changes", type=int, default=100, help="of the configuration, under load")
    made.add_argument("--out", type=Path, default=RESULTS, help="results folder")
    return made


def served(on: Stage) -> int:
    return sum(count_at(port).requests for port in (on.to.v1, on.to.v2))


def one_round(on: Stage, port: int, number: int) -> None:
    """A second of each case. Raises BenchError for any failed request: misbehaviour beside it is no excuse."""
    for name in MIX:
        case = next(case for case in CASES if case.name == name)
        what = f"round {number}, {case.title}"
        load = spawn(wrk.command(case, port, 1), on.cores.load)
        try:
            wrk.finish(load, case, 1, what)
        finally:
            end(load)


def mixed(on: Stage, proxy: Proxy, requests: int) -> dict[str, Any]:
    """Rounds until so many requests were served: samples, and what was unexpected."""
    samples: list[dict[str, int]] = []
    unexpected: list[str] = []
    start, number = served(on), 0
    while not samples or samples[-1]["requests"] < requests:
        number += 1
        with Trouble(proxy.port) as trouble:
            one_round(on, proxy.port, number)
        unexpected.extend(trouble.unexpected)
        proxy.quiet()
        samples.append(proxy.sample(served(on) - start))
        last = samples[-1]
        text = f"round {number}: {last['requests']:,} requests, {trouble.done.total()} misbehaved"
        text += f", {last['rss'] / 1e6:.1f} MB, {last['descriptors'] - last['pooled']} descriptors"
        print(f"{text} and {last['pooled']} pooled connections", flush=True)
    return {"samples": samples, "unexpected": unexpected[:20]}


def run(options: argparse.Namespace) -> dict[str, Any]:
    cores = my_cores()
    raise_limit(4 * options.tunnels + 8_000)
    environment = stamp.environment(("wrk", "cc"))
    result: dict[str, Any] = {"kind": "soak", "stamp": environment, "settings": {"requests": options.requests}}
    with stage(cores) as on, tunnels.echo() as echo, proxy(on.work, cores.proxy, on.to, echo) as under:
        if options.requests:
            result |= mixed(on, under, options.requests)
        if options.tunnels:
            result["tunnels"] = tunnels.run(on, under, options.tunnels, options.changes)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        result = run(options)
    except BenchError as error:
        print(f"soak failed: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("soak stopped", file=sys.stderr)
        return 130
    whole = options.requests >= WHOLE and options.tunnels >= 1_000 and options.changes >= 100
    print(report.table(["law", "figure", "bound", "verdict"], verdict.rows(result)))
    for each in result.get("unexpected", ()):
        print(f"unexpected: {each}")
    keep(options.out, "soak", result, whole)
    return 0 if verdict.held(result) else 1


if __name__ == "__main__":
    sys.exit(main())
