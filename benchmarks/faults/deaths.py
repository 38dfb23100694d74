"""Row 8 and the hung worker: a worker is killed, or stands still, while clients come without pause."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx

from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Scene, until
from benchmarks.load.peers import Peer
from benchmarks.load.process import tree

ASK = b"GET /128 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CALLERS = 2
REST = 1.2
"""Seconds between two deaths: a worker that dies young is given a rest before the next."""
PATIENCE = 8.0


class Knocking:
    """Threads that connect, ask once and leave: when each that was answered had begun, how many were refused or cut."""

    def __init__(self, port: int, patience: float = PATIENCE) -> None:
        self.port, self.patience = port, patience
        self.refused = self.cut = 0
        self.answered: list[tuple[float, float]] = []  # begun, answered
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CALLERS)]

    def __enter__(self) -> Knocking:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for each in self._threads:
            each.join(self.patience + 5)

    def served_since(self, moment: float) -> float | None:
        """When the first answer came of those that were asked for after `moment`."""
        with self._lock:
            return min((end for begun, end in self.answered if begun >= moment), default=None)

    def _run(self) -> None:
        while not self._done.wait(0.001):
            begun = time.monotonic()
            outcome = self._call()
            with self._lock:
                if outcome == "answered":
                    self.answered.append((begun, time.monotonic()))
                elif outcome == "refused":
                    self.refused += 1
                else:
                    self.cut += 1

    def _call(self) -> str:
        try:
            client = socket.create_connection(("127.0.0.1", self.port), self.patience)
        except OSError:
            return "refused"
        with client:
            try:
                client.sendall(ASK)
                return "answered" if client.recv(4096).startswith(b"HTTP/1.1 200 ") else "cut"
            except OSError:
                return "cut"


def worker_of(peer: Peer) -> int:
    """The process that has the clients; the root itself where there is only one."""
    if peer.name == "graylb":
        return int(httpx.get(f"http://127.0.0.1:{peer.admin}/status", timeout=10).json()["workers"][0]["pid"])
    others = [pid for pid in tree(peer.pid) if pid != peer.pid]
    return others[0] if others else peer.pid


def killed(scene: Scene, peer: str, *, kills: int = 5) -> dict[str, Any]:
    """SIGKILL to the worker, again and again: how long nobody is served, who is refused."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        job = Job(scene.folder(f"{peer}-death"), scene.cores.proxy, (origins[0].port,))
        took: list[float] = []
        lives = True
        with suppress(_Ended):
            up = stack.enter_context(_may_end(START[peer](job)))
            with Knocking(up.port) as callers:
                until(lambda: callers.answered, "the first answer")
                for _ in range(kills):
                    pid = worker_of(up)
                    os.kill(pid, signal.SIGKILL)
                    moment = time.monotonic()
                    try:
                        until(lambda at=moment: callers.served_since(at), "an answer", seconds=3)  # type: ignore[misc]
                    except Exception:
                        lives = False
                        break
                    served = callers.served_since(moment)
                    assert served is not None
                    took.append((served - moment) * 1000)
                    time.sleep(REST)
        return {"peer": peer, "kills": kills, "ms": took, "refused": callers.refused, "cut": callers.cut,
                "asked": len(callers.answered) + callers.refused + callers.cut, "lives": lives}  # fmt: skip


def hung(scene: Scene, *, watchdog: float = 1.0) -> dict[str, Any]:
    """graylb's worker stands still (SIGSTOP): until it is found out, and until another serves."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        job = Job(scene.folder("hung"), scene.cores.proxy, (origins[0].port,), top=f"watchdog: {watchdog:g}s")
        up = stack.enter_context(START["graylb"](job))
        with Knocking(up.port) as callers:
            until(lambda: callers.answered, "the first answer")
            pid = worker_of(up)
            os.kill(pid, signal.SIGSTOP)
            moment = time.monotonic()
            until(lambda: callers.served_since(moment), "an answer of another worker")
            served = callers.served_since(moment)
            assert served is not None
        workers = httpx.get(f"http://127.0.0.1:{up.admin}/status", timeout=10).json()["workers"]
        return {"peer": "graylb", "watchdog_s": watchdog, "served_s": served - moment, "refused": callers.refused,
                "hung": workers[0]["hung"], "recovered_ms": (workers[0]["recovered"] or 0.0) * 1000}  # fmt: skip


class _Ended(Exception):
    """A proxy that ended with its worker."""


class _may_end:
    """A proxy whose own end is a figure, not a failure of the benchmark."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __enter__(self) -> Any:
        return self.inner.__enter__()

    def __exit__(self, *what: Any) -> None:
        from benchmarks.failure import BenchError

        with suppress(BenchError):
            self.inner.__exit__(*what)
