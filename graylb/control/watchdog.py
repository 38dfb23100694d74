"""Looks after what still runs: workers that hang, this process standing still, a wall clock that jumps.

A worker is asked for a sign of life ten times within the bound. It hangs when it gave none for ten looks in a row.
Looks are counted, not seconds: if this process itself was stopped, or got no CPU, that is no worker's fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graylb.control import alarms
from graylb.control.logs import log
from graylb.control.workers import Worker
from graylb.proxy.channel import STACK_SIGNAL

LOOKS: Final = 10
LOADING: Final = 3
"""Times the bound for a worker that loads a table: patterns of a large one are compiled in one go."""
STACK_PATIENCE: Final = 0.2
IDLE: Final = 1.0
"""Seconds between two looks at the clocks without a watchdog for workers."""
ANEW: Final = 1.0
"""Seconds until a part of the control process that failed is begun anew."""
NOTABLE: Final = 1.0
"""Seconds of a standstill, or of a jump of the clock."""


@dataclass(slots=True)
class _Seen:
    pid: int | None
    said: int
    looks: int = 0
    told: bool = False  # that it is traced, and left alone


class Watchdog:
    """bound: seconds without a sign of life, 0: workers are not watched; asked each time, for it may change."""

    def __init__(self, workers: Callable[[], Sequence[Worker]], bound: Callable[[], float]) -> None:
        self._workers, self._bound = workers, bound
        self._seen: dict[int, _Seen] = {}
        self._clocks = (time.monotonic(), time.time())

    async def run(self) -> None:
        """For ever."""
        while True:
            bound = self._bound()
            every = bound / LOOKS if bound else IDLE
            await asyncio.sleep(every)
            self.look_at_clocks(every, time.monotonic(), time.time())
            if not bound:
                self._seen.clear()
                continue
            for worker in self._workers():
                if self.hangs(worker):
                    await self._replace(worker, bound)

    def look_at_clocks(self, every: float, now: float, wall: float) -> None:
        """`every` seconds after the last look, or so; now: of the monotonic clock."""
        passed, wall_passed = now - self._clocks[0], wall - self._clocks[1]
        self._clocks = (now, wall)
        if passed - every > NOTABLE:
            alarms.count("control_stalls")
            log.warning("the control process stood still for %.1f s", passed - every)
        if abs(wall_passed - passed) > NOTABLE:
            alarms.count("clock_jumps")
            log.warning("the clock jumped by %+.0f s; no timer depends on it", wall_passed - passed)

    def hangs(self, worker: Worker) -> bool:
        """One look: whether it was the last one without a sign of life."""
        seen = self._seen.get(worker.number)
        if worker.stopping or not worker.ready.is_set():
            self._seen.pop(worker.number, None)  # what does not serve yet is somebody else's business
            return False
        if seen is None or (seen.pid, seen.said) != (worker.pid, worker.said):
            self._seen[worker.number] = _Seen(worker.pid, worker.said)
            worker.ping()
            return False
        seen.looks += 1
        if seen.looks < LOOKS * (LOADING if worker.loading else 1):
            return False
        tracer = _status(worker.pid).get("TracerPid", "0")
        if tracer == "0":
            return True
        if not seen.told:
            seen.told = True
            log.warning("worker %d (pid %s) does not answer; process %s traces it, so it is left alone",
                        worker.number, worker.pid, tracer)  # fmt: skip
        return False

    async def _replace(self, worker: Worker, bound: float) -> None:
        pid, said = worker.pid, worker.said
        self._seen.pop(worker.number, None)
        if pid is None:
            return
        status, before = _status(pid), _cpu(pid)
        stack = bool(int(status.get("SigCgt", "0"), 16) >> (STACK_SIGNAL - 1) & 1)
        if stack:  # else it would be its end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STACK_SIGNAL)
        await asyncio.sleep(STACK_PATIENCE)
        if worker.said != said or worker.pid != pid:
            log.warning("worker %d (pid %d) answers again, just in time", worker.number, pid)
            return
        doing = "burns CPU" if _cpu(pid) - before > STACK_PATIENCE / 4 else f"waits in {_waits_in(pid)}"
        log.error(
            "worker %d (pid %d) has given no sign of life for %g s: it %s, state %s%s; replacing it",
            worker.number, pid, bound, doing, status.get("State", "gone"),
            "; its Python stack is above" if stack and not status.get("State", "").startswith("T") else "",
        )  # fmt: skip
        alarms.count("worker_hung")
        worker.replace()


async def enduring(begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Runs a part of the control process until it ends by itself; one that fails is begun anew: no traffic needs it."""
    while True:
        try:
            await begin()
            return
        except Exception as error:
            alarms.count("control_errors")
            log.error("a part of the control process failed: %r; beginning it anew", error, exc_info=error)
            await asyncio.sleep(ANEW)


def _status(pid: int | None) -> dict[str, str]:
    """Of /proc; empty where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _cpu(pid: int) -> float:
    """Seconds that it has run; 0 where that cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _waits_in(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text() or "?"
    except OSError:
        return "?"
