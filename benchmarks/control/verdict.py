"""What the control plane promises, held against what was measured. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import report

HEAD = ("law", "figure", "bound", "verdict")
LATENCY_MS = 50.0
STORM_RATIO = 1.5
CONVERGED_S = 1.0
GROWTH = 0.05
"""Of memory, from a third of a storm to its end."""
START_S = 3.0
CHANGE_MS = 20.0
RESTART_S = 2.0
RESPAWN_MS = 200.0

Law = tuple[str, str, str, bool | None]
"""What, figure, bound, whether it holds; None where nothing is promised."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def growth(samples: Sequence[Mapping[str, float]]) -> float:
    """Of the last sample over the first one after a third of the time, as a share."""
    late = [each["bytes"] for each in samples if each["s"] >= samples[-1]["s"] / 3]
    return late[-1] / late[0] - 1


def p99(traffic: Sequence[Mapping[str, float]]) -> float:
    """In ms, over all nodes: the worst one's."""
    return max(each["p99_us"] for each in traffic) / 1000


def latency(x: Mapping[str, Any]) -> list[Law]:
    worst = quantile(x["ms"], 0.99)
    return [
        (f"put to decided on four workers of two nodes, p50 of {x['changes']}", _ms(quantile(x["ms"], 0.5)), "", None),
        ("the same, p99", _ms(worst), f"≤ {LATENCY_MS:.0f} ms", worst <= LATENCY_MS),
        ("of it etcd's own, put to acknowledged, p50", _ms(quantile(x["put_ms"], 0.5)), "", None),
        ("the same, p99", _ms(quantile(x["put_ms"], 0.99)), "", None),
    ]


def storm(x: Mapping[str, Any]) -> list[Law]:
    calm, aside, stormy, grown = p99(x["calm"]), p99(x["unwatched"]), p99(x["traffic"]), growth(x["memory"])
    sent = f"{x['changes']:,} changes in {x['sent_seconds']:.0f} s: "
    return [
        (f"{sent}p99 of traffic to that of the quiet run", f"{stormy / calm:.2f} ({stormy:.1f} to {calm:.1f} ms)",
         f"≤ {STORM_RATIO}", stormy <= STORM_RATIO * calm),
        ("to that of the same storm with nobody watching", f"{stormy / aside:.2f} ({stormy:.1f} to {aside:.1f} ms)", "",
         None),
        ("from the last put to all workers", _s(x["converged_s"]), f"≤ {CONVERGED_S:.0f} s",
         x["converged_s"] <= CONVERGED_S),
        ("cores used by the control process", f"{x['cores']['control']:.2f}", "", None),
        ("by the busiest worker, traffic included", f"{x['cores']['worker']:.2f}", "", None),
        ("growth of memory after a third", f"{grown:.1%}", f"≤ {GROWTH:.0%}", grown <= GROWTH),
    ]  # fmt: skip


def large(x: Mapping[str, Any]) -> list[Law]:
    change = statistics.median(x["control_ms"]) + statistics.median(x["worker_ms"])
    parts = f"{statistics.median(x['control_ms']):.1f} control, {statistics.median(x['worker_ms']):.1f} worker"
    what = f"10,000 instances and 5,000 rules in {x['services']} service{'s' * (x['services'] > 1)}"
    return [
        (f"{what}: start from etcd", _s(x["from_etcd_s"]), f"≤ {START_S:.0f} s", x["from_etcd_s"] <= START_S),
        ("start from disk, etcd away", _s(x["from_disk_s"]), f"≤ {START_S:.0f} s", x["from_disk_s"] <= START_S),
        ("CPU of the start, all processes", _s(x["cpu_s"]), "", None),
        ("CPU of one instance's change", f"{change:.1f} ms ({parts})", f"≤ {CHANGE_MS:.0f} ms", change <= CHANGE_MS),
    ]


def outage(x: Mapping[str, Any]) -> list[Law]:
    asked = sum(each["requests"] for each in x["traffic"])
    return [
        (f"etcd away for {x['seconds']} s: failed of {asked:,} requests", "0", "0", True),  # else there were no figures
        ("graylb killed and started meanwhile: serving", _s(x["restart_s"]), f"≤ {RESTART_S:.0f} s",
         x["restart_s"] <= RESTART_S),
        (f"users of {x['users']} on another version", str(x["moved"]), "0", x["moved"] == 0),
        ("etcd back: caught up after", _s(x["caught_up_s"]), "", None),
    ]  # fmt: skip


def respawn(x: Mapping[str, Any]) -> list[Law]:
    worst = max(x["ms"])
    return [
        (f"worker killed {x['kills']} times: serving again, median", _ms(statistics.median(x["ms"])), "", None),
        ("the same, worst", _ms(worst), f"≤ {RESPAWN_MS:.0f} ms", worst <= RESPAWN_MS),
        (f"connections refused, of {x['connections']:,}", str(x["refused"]), "0", x["refused"] == 0),
        ("requests that died with their worker", str(x["cut"]), "", None),
    ]


JUDGES = {"latency": latency, "storm": storm, "large-100": large, "large-1": large, "outage": outage,
          "respawn": respawn}  # fmt: skip


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _s(value: float) -> str:
    return f"{value:.2f} s"


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    verdicts = {None: "", True: report.verdict(True), False: report.verdict(False)}
    found = [law for name, part in result["parts"].items() for law in JUDGES[name](part)]
    return [[what, figure, bound, verdicts[holds]] for what, figure, bound, holds in found]


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    return f"## Control plane\n\n{report.stamp_lines(result)}\n{report.table(HEAD, rows(result))}"
