"""Rows 18 and 19: three times the load that the instances can bear, and retries while all of them fail."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks.faults.origin import WORKERS
from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Callers, Scene

WORK = 10
"""Milliseconds of each request."""
CAPACITY = WORKERS * 1000 / WORK
"""Requests a second that the one instance can do."""
ROOM = 4 * WORKERS
"""Requests at once that a proxy lets through to it; more get 503, or wait as far as it has a queue."""
CONNECTIONS = 400
TIMES = 3
LIMITS = f"    limits: {{requests: {ROOM}}}\n"
RETRIES = "    retries: {on: [connect-failure, refused-stream, reset, 5xx], attempts: 4}\n"


def surplus(scene: Scene, peer: str, *, seconds: float = 3.0, service: str = LIMITS) -> dict[str, Any]:
    """Answers in time at the capacity, and at three times as many requests as that; how fast the surplus is refused."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        job = Job(scene.folder(f"{peer}-overload"), scene.cores.proxy, (origins[0].port,), response=10,
                  service=service, room=ROOM)  # fmt: skip
        up = stack.enter_context(START[peer](job))
        found = {}
        for name, times in (("peak", 0.95), ("overload", TIMES)):
            path, rate = f"/work/{WORK}", CAPACITY * times
            with Callers(scene, "GET", up.port, CONNECTIONS, seconds, path, rate) as callers:
                pass
            found[name] = callers.figures
        return {
            "peer": peer,
            "peak": found["peak"]["good"] / seconds,
            "goodput": found["overload"]["good"] / seconds,
            "asked": found["overload"]["asked"] / seconds,
            "refused_p99_ms": found["overload"]["refused_p99_ms"],
            "answered": found["overload"]["answered"],
        }


def amplified(scene: Scene, peer: str, *, seconds: float = 2.0) -> dict[str, Any]:
    """Two instances answer 503 to everything: requests that reach them for each that was made."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(2))
        ports = tuple(each.port for each in origins)
        job = Job(scene.folder(f"{peer}-storm"), scene.cores.proxy, ports, service=RETRIES, stubborn=True)
        up = stack.enter_context(START[peer](job))
        for each in origins:
            each.ill()
        before = sum(each.count() for each in origins)
        with Callers(scene, "GET", up.port, 16, seconds) as callers:
            pass
        reached = sum(each.count() for each in origins) - before
        return {"peer": peer, "asked": callers.figures["asked"], "reached": reached,
                "times": reached / callers.figures["asked"]}  # fmt: skip
