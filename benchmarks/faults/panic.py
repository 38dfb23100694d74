"""Row 20: half of a version's instances are ill, then three of four, then all, then none."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Callers, Scene

CALLERS = 16
INSTANCES = 4
SETTLE = 1.2
"""Seconds that checks have to find out, five times a second, twice in a row."""
PHASES = {"none": 0, "half": 2, "three of four": 3, "all": 4, "none again": 0}


def measure(scene: Scene, peer: str, *, seconds: float = 1.0) -> dict[str, Any]:
    """For each phase: requests, failures, the largest share that one instance had, and that of the ill ones."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(INSTANCES))
        ports = tuple(each.port for each in origins)
        job = Job(scene.folder(f"{peer}-panic"), scene.cores.proxy, ports, checks=True)
        up = stack.enter_context(START[peer](job))
        for phase, ill in PHASES.items():
            for number, origin in enumerate(origins):
                (origin.ill if number < ill else origin.well)()
            time.sleep(SETTLE)
            with Callers(scene, "GET", up.port, CALLERS, seconds) as callers:
                pass
            origin_of = callers.figures["origins"]
            total = max(1, sum(origin_of.values()))
            found[phase] = {
                "asked": callers.figures["asked"],
                "failed": callers.failed(),
                "largest": max(origin_of.values(), default=0) / total,
                "ill": sum(origin_of.get(f"o{number}", 0) for number in range(ill)) / total,
                "p99_ms": callers.figures["p99_ms"],
            }
    return {"peer": peer, "phases": found}
