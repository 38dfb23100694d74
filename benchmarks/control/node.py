"""Nodes: real `graylb run` processes on one etcd, and connections to each of their workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson

from benchmarks.control.etcd import Etcd
from benchmarks.failure import BenchError
from benchmarks.load.peers import free_port, told_ports
from benchmarks.load.process import tree

T = TypeVar("T")
PATIENCE = 30.0
WORKERS = 2
ASK = b"GET /128 HTTP/1.1\r\nHost: x\r\nX-Probe: on\r\n\r\n"


def until(look: Callable[[], T], what: str, seconds: float = PATIENCE, every: float = 0.01) -> T:
    """The first true answer of `look`. Raises BenchError."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)
    return found


class Node:
    """One proxy with WORKERS workers, all of whose services are keys. `admin` is known once it runs.

    cores: all that any of its processes may run on; None: those of this process.
    """

    def __init__(self, folder: Path, name: str, etcd: Etcd, prefix: str, cores: frozenset[int] | None = None) -> None:
        self._cores = cores
        self.folder, self.name = folder / name, name
        self.folder.mkdir(exist_ok=True)
        self.port, self.admin = free_port(), 0
        self._process: subprocess.Popen[bytes] | None = None
        document = {
            "listeners": [{"address": f"127.0.0.1:{self.port}"}],
            "admin": {"address": "127.0.0.1:0"},
            "workers": WORKERS,
            "decision_headers": True,
            "etcd": {"endpoints": [etcd.endpoint], "node": name, "prefix": prefix},
        }
        (self.folder / "graylb.json").write_bytes(orjson.dumps(document))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Seconds until a request was answered. Returns when every worker serves and the admin API answers."""
        ports = self.folder / "ports.json"
        ports.unlink(missing_ok=True)
        command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(self.folder / "graylb.json")]
        cores = self._cores or os.sched_getaffinity(0)
        began = time.monotonic()
        with (self.folder / "graylb.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--ports-file", str(ports)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        try:
            until(self._answers, f"{self.name} answers", every=0.002)
            took = time.monotonic() - began
            until(lambda: self._told(ports), f"{self.name} is ready")
        except BenchError as error:
            said = (self.folder / "graylb.log").read_text(errors="replace")[-600:]
            error.add_note(f"--- {self.name} said:\n{said}")
            raise
        return took

    def _answers(self) -> bool:
        """As soon as anything listens, a request waits there until it is answered."""
        if self._process is None or self._process.poll() is not None:
            raise BenchError(f"{self.name} ended at start")
        try:
            probe = Probe(self.port)
        except ConnectionRefusedError:
            return False
        try:
            return bool(probe.version())
        finally:
            probe.close()

    def _told(self, ports: Path) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise BenchError(f"{self.name} ended at start")
        with suppress(OSError, orjson.JSONDecodeError, httpx.HTTPError):
            _, self.admin = told_ports(ports.read_bytes())
            return bool(self.get("/ready")["ready"])
        return False

    def kill(self) -> None:
        """Supervisor and workers, as by the kernel."""
        if self._process is not None:
            workers = self.pids()[1:] if self._process.poll() is None else []
            self._process.kill()
            for pid in workers:  # they would end by themselves, too
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def get(self, path: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self.admin}{path}", timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def pids(self) -> list[int]:
        """Supervisor, then workers."""
        return [self.pid, *(pid for pid in tree(self.pid) if pid != self.pid)]

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/status")["workers"]
        return found

    def serves(self, revision: int) -> bool:
        """Whether all workers serve it, or a later one."""
        return min(each["revision"] or 0 for each in self.workers()) >= revision

    def clients(self) -> list[int]:
        """Open client connections by worker."""
        return [int(each["stats"]["clients"]) for each in self.get("/stats") if each["stats"]]


class Probe:
    """One connection to one worker. The key `rules/probe` decides its requests."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def version(self) -> str:
        """That answered."""
        return field_of(self.ask(), b"x-version")

    def revision(self) -> int:
        """By which it was decided."""
        return int(field_of(self.ask(), b"x-graylb-revision"))

    def ask(self, head: bytes = ASK) -> bytes:
        """A whole answer. Raises BenchError when there is none."""
        self.socket.sendall(head)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer) < answer.index(b"\r\n\r\n") + 4 + 128:
            piece = self.socket.recv(4096)
            if not piece:
                raise BenchError("a worker closed a probe's connection")
            answer += piece
        return answer

    def close(self) -> None:
        self.socket.close()


def field_of(answer: bytes, wanted: bytes) -> str:
    """The value of a header, by lower-case name. Raises BenchError unless the answer is a 200 that has it."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"a probe got {head[:120]!r}")
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == wanted:
            return value.strip().decode()
    raise BenchError(f"an answer without {wanted.decode()}: {head[:300]!r}")


@contextmanager
def probes(nodes: list[Node]) -> Iterator[list[Probe]]:
    """One to each worker of each node. To be opened before any load: who got a connection is read from the counts."""
    with ExitStack() as stack:
        found = []
        for node in nodes:
            missing = set(range(WORKERS))
            for _ in range(64):
                before = node.clients()
                probe = Probe(node.port)
                stack.callback(probe.close)
                probe.version()
                grown = {n for n, (a, b) in enumerate(zip(before, node.clients(), strict=True)) if b > a}
                if grown & missing:
                    missing -= grown
                    found.append(probe)
                if not missing:
                    break
            else:
                raise BenchError(f"{node.name}: no connection to worker {sorted(missing)}")
        yield found


@contextmanager
def running(
    folder: Path, etcd: Etcd, prefix: str, *names: str, cores: frozenset[int] | None = None
) -> Iterator[list[Node]]:
    """Nodes up and serving."""
    made = [Node(folder, name, etcd, prefix, cores) for name in names]
    with ExitStack() as stack:
        for node in made:
            stack.callback(node.stop)
            node.start()
        yield made
