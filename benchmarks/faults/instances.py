"""Row 7 and its kin: one of two instances is killed, frozen, or behind a connection that breaks, under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Callers, Origin, Program, Scene, Watch, after, doubled, until

GETTERS, POSTERS = 32, 8
WARM = 20
"""Requests that each instance has had before anything breaks: the callers take a moment to start."""


@dataclass(frozen=True, slots=True)
class Fault:
    """begin and finish: what is done to the second instance, or to the breakable proxy before it."""

    title: str
    begin: Callable[[Origin, Program | None], object]
    finish: Callable[[Origin, Program | None], object]
    broken: bool = False  # by the breakable proxy


def _says(line: str, title: str) -> Fault:
    def say(what: str) -> Callable[[Origin, Program | None], object]:
        return lambda origin, way: way.say(what) if way is not None else None

    return Fault(title, say(line), say("pass"), broken=True)


FAULTS = {
    "killed": Fault("killed (SIGKILL), started again", lambda o, _: o.kill(), lambda o, _: o.start()),
    "frozen": Fault("frozen (SIGSTOP), thawed", lambda o, _: o.freeze(), lambda o, _: o.thaw()),
    "reset": _says("reset", "every connection reset on its request"),
    "refuse": _says("refuse", "port closed, connections reset"),
    "stall": _says("stall", "connections that move nothing"),
    "garbage": _says("garbage", "answers that are no HTTP"),
    "half": _says("half", "answers cut in half"),
    "late": _says("late 300", "answers 300 ms late"),
    "lossy": _says("lossy 5", "5 % of segments lost"),
}


def measure(scene: Scene, peer: str, fault: str, *, turns: int = 2) -> dict[str, Any]:
    """`turns` times the fault for a phase, and a phase without; GETs and POSTs go on all the time."""
    kind = FAULTS[fault]
    seconds = scene.pace * (2 * turns + 1)
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(2))
        way = stack.enter_context(scene.breakable(origins[1])) if kind.broken else None
        ports = (origins[0].port, way.port if way is not None else origins[1].port)
        job = Job(scene.folder(f"{peer}-{fault}"), scene.cores.proxy, ports)
        up = stack.enter_context(START[peer](job))
        with (
            Watch(up.pid) as watch,
            Callers(scene, "GET", up.port, GETTERS, seconds) as gets,
            Callers(scene, "POST", up.port, POSTERS, seconds) as posts,
        ):
            until(lambda: all(each.count() > WARM for each in origins), "requests come")
            began = time.monotonic()
            for turn in range(turns):
                after(began, scene.pace * (2 * turn + 0.7))
                kind.begin(origins[1], way)
                after(began, scene.pace * (2 * turn + 1.7))
                kind.finish(origins[1], way)
        return {
            "peer": peer,
            "fault": fault,
            "gets": gets.figures["asked"],
            "failed_gets": gets.failed(),
            "posts": posts.figures["asked"],
            "failed_posts": posts.failed(),
            "doubled_posts": doubled(origins),
            "p99_ms": gets.figures["p99_ms"],
            "max_ms": gets.figures["max_ms"],
            "memory_mib": watch.grown,
            "answered": gets.figures["answered"],
            "why": gets.figures["why"],
        }
