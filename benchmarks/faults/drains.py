"""Row 10: told to stop, with requests in flight, idle connections, and one download that never ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import h2.events

from benchmarks.failure import BenchError
from benchmarks.faults.deaths import _may_end
from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Scene
from benchmarks.h2.client import Client

STOP = {"graylb": signal.SIGTERM, "nginx": signal.SIGQUIT, "haproxy": signal.SIGUSR1, "envoy": signal.SIGTERM}
"""By which each is asked to finish what it has; Envoy has no signal for it."""
IN_FLIGHT, IDLE = 30, 20
THINK = 2
"""Seconds that an answer takes."""
BOUND = 4
"""Seconds that graylb is given (`--drain`); for others there is none, and they are watched for twice that."""


class Asking(threading.Thread):
    """One connection and a request that is answered late."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self.sock = socket.create_connection(("127.0.0.1", port), 30)
        self.path, self.answer, self.ended = path, b"", 0.0
        self.start()

    def run(self) -> None:
        with suppress(OSError):
            self.sock.sendall(f"GET {self.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while piece := self.sock.recv(65536):
                self.answer += piece
                if b"\r\n\r\n" in self.answer and len(self.answer) >= self.answer.index(b"\r\n\r\n") + 4 + 16:
                    break
        self.ended = time.monotonic()

    @property
    def whole(self) -> bool:
        return self.answer.startswith(b"HTTP/1.1 200 ") and self.answer.endswith(b"x" * 16)


def measure(scene: Scene, peer: str, *, think: float = THINK, bound: float = BOUND, h2c: bool = True) -> dict[str, Any]:
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        folder = scene.folder(f"{peer}-drain")
        job = Job(folder, scene.cores.proxy, (origins[0].port,), response=60, options=("--drain", f"{bound:g}"))
        up = stack.enter_context(_may_end(START[peer](job)))
        idle = [socket.create_connection(("127.0.0.1", up.port), 10) for _ in range(IDLE)]
        for each in idle:
            each.sendall(b"GET /16 HTTP/1.1\r\nHost: x\r\n\r\n")
            each.recv(4096)
        session = stack.enter_context(Client(up.port)) if h2c and peer == "graylb" else None
        if session is not None:
            session.ask("/16")
        asking = [Asking(up.port, f"/late/{think * 1000:.0f}") for _ in range(IN_FLIGHT)]
        never = Asking(up.port, "/never")
        time.sleep(think / 4)
        told = time.monotonic()
        os.kill(up.pid, STOP[peer])
        goaway = session is not None and _goaway(session)
        for thread in asking:
            thread.join(think + 10)
        ended = _gone(up.pid, told + 2 * bound)
        never.join(0.5)
        for sock in (*idle, never.sock, *(each.sock for each in asking)):
            sock.close()
        finished = [each for each in asking if each.whole]
        return {
            "peer": peer,
            "in_flight": IN_FLIGHT,
            "finished": len(finished),
            "told_close": sum(b"\r\nconnection: close\r\n" in each.answer.lower() for each in finished),
            "goaway": goaway if session is not None else None,
            "bound_s": bound if peer == "graylb" else None,
            "ended_s": None if ended is None else ended - told,
        }


def _gone(pid: int, until: float) -> float | None:
    """When the process ended; None when it did not in time. It is our child, and a zombie until it is waited for."""
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return time.monotonic()
        except OSError:
            return time.monotonic()
        time.sleep(0.01)
    return None


def _goaway(session: Client) -> bool:
    with suppress(BenchError, OSError):
        while True:
            if any(isinstance(each, h2.events.ConnectionTerminated) for each in session.receive()):
                return True
    return False
