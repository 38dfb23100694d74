"""`python -m benchmarks control`: the parts one after the other, each on an etcd and nodes of its own."""

from __future__ import annotations

import argparse
import compileall
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graylb
from benchmarks import report, stamp
from benchmarks.control import measure, verdict
from benchmarks.control.etcd import Etcd, etcd
from benchmarks.load.stage import Stage, my_cores, stage

WHOLE = {"changes": 200, "storm": 60, "outage": 600, "kills": 10}
QUICK = {"changes": 40, "storm": 8, "outage": 10, "kills": 3}
PER_SECOND = 1_000
RATE = 500.0
"""Requests a second on each node, at a constant rate."""

Part = Callable[[Stage, Etcd, argparse.Namespace], dict[str, Any]]
PARTS: dict[str, Part] = {
    "latency": lambda on, keys, asked: measure.latency(on, keys, asked.changes, RATE),
    "storm": lambda on, keys, asked: measure.storm(on, keys, asked.storm, asked.per_second, RATE),
    "large-100": lambda on, keys, asked: measure.large(on, keys, measure.SERVICES),
    "large-1": lambda on, keys, asked: measure.large(on, keys, 1),
    "outage": lambda on, keys, asked: measure.outage(on, keys, asked.outage, RATE),
    "respawn": lambda on, keys, asked: measure.respawn(on, keys, asked.kills),
}


def add_arguments(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("control")
    for name, what in (
        ("changes", "whose latency is measured"),
        ("storm", "seconds of a storm of changes"),
        ("outage", "seconds that etcd is away"),
        ("kills", "of workers"),
    ):
        group.add_argument(f"--{name}", type=_positive, help=f"{what} (default: {WHOLE[name]}, quick: {QUICK[name]})")
    group.add_argument("--per-second", type=_positive, default=PER_SECOND, help="changes of a storm")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def filled(options: argparse.Namespace) -> argparse.Namespace:
    """With what was not given."""
    defaults = QUICK if options.quick else WHOLE
    found = {name: getattr(options, name) or value for name, value in defaults.items()}
    return argparse.Namespace(**{**vars(options), **found})


def whole(options: argparse.Namespace) -> bool:
    asked = filled(options)
    return all(getattr(asked, name) >= value for name, value in WHOLE.items()) and asked.per_second >= PER_SECOND


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """The raw result; None when none of it was asked for. Prints each part's laws as they are known."""
    asked = filled(options)
    wanted = [name for name in PARTS if not asked.only or name in asked.only]
    if not wanted:
        return None
    # as pip leaves it: where PYTHONDONTWRITEBYTECODE is set, each start from a checkout would compile all of graylb
    compileall.compile_dir(Path(graylb.__file__).parent, quiet=2)
    settings = {name: getattr(asked, name) for name in (*WHOLE, "per_second")}
    result: dict[str, Any] = {"kind": "control", "stamp": stamp.environment(("etcd", "cc")), "settings": settings}
    result["parts"] = {}
    for name in wanted:
        print(f"control: {name} …", flush=True)
        with stage(my_cores()) as on, etcd(on.work) as keys:
            found = result["parts"][name] = PARTS[name](on, keys, asked)
        print(report.table(verdict.HEAD, verdict.rows({"parts": {name: found}})), flush=True)
    return result
