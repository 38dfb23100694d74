"""What every row needs: upstreams that can be broken, callers, and an eye on the proxy's memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from benchmarks.failure import BenchError
from benchmarks.load.process import Memory, memory, tree
from benchmarks.load.stage import Cores, end, spawn

PATIENCE = 20.0
MIB = 1024.0  # KiB


class Program:
    """A Python program of the suite that prints a port first."""

    def __init__(self, cores: frozenset[int], module: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.faults.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip().isdigit():
            self.stop()
            raise BenchError(f"{module} ended at start with status {self.process.returncode}")
        self.port = int(line)

    def say(self, line: str) -> None:
        """One command, done when this returns."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        if self.process.stdout.readline().strip() != line:
            raise BenchError(f"the breakable proxy does not take {line!r}")

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for end_ in (self.process.stdin, self.process.stdout):
            if end_ is not None:
                end_.close()


class Origin:
    """One upstream process on a port of its own, which it keeps through its deaths."""

    def __init__(self, name: str, folder: Path, cores: frozenset[int]) -> None:
        self.name, self.ledger, self._cores = name, folder / f"{name}.ledger", cores
        self.port = 0
        self._program: Program | None = None
        self.start()

    def start(self) -> None:
        if self._program is None:
            self._program = Program(self._cores, "origin", self.name, self.port, self.ledger)
            self.port = self._program.port

    def signal(self, number: signal.Signals) -> None:
        if self._program is not None:
            self._program.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as by the kernel when memory is out."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def ill(self) -> None:
        self.signal(signal.SIGUSR1)

    def well(self) -> None:
        self.signal(signal.SIGUSR2)

    def count(self) -> int:
        """Requests that it got, in this life of its process."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/count", timeout=PATIENCE) as answer:
            return int(answer.read())

    def posts(self) -> list[str]:
        """The ids of all POSTs that it ever got, in order."""
        return self.ledger.read_text().split() if self.ledger.exists() else []


def doubled(origins: list[Origin]) -> int:
    """POSTs that were done more than once."""
    counts = Counter(each for origin in origins for each in origin.posts())
    return sum(count > 1 for count in counts.values())


@dataclass(frozen=True, slots=True)
class Scene:
    """A folder of its own, which core is whose, and how long things take: `pace` seconds for each phase of a fault."""

    work: Path
    cores: Cores
    pace: float = 1.5

    @contextmanager
    def origins(self, count: int) -> Iterator[list[Origin]]:
        with tempfile.TemporaryDirectory(dir=self.work) as folder, ExitStack() as stack:
            made: list[Origin] = []
            for number in range(count):
                made.append(Origin(f"o{number}", Path(folder), self.cores.load))
                stack.callback(made[-1].kill)
            yield made

    @contextmanager
    def breakable(self, origin: Origin) -> Iterator[Program]:
        made = Program(self.cores.load, "breakable", origin.port)
        try:
            yield made
        finally:
            made.stop()

    def folder(self, name: str) -> Path:
        """A new one."""
        found = self.work / name
        if found.exists():
            shutil.rmtree(found)
        found.mkdir(mode=0o755)
        return found


@dataclass
class Callers:
    """A client process of `client`, to be entered; `figures` are there once it has been left."""

    scene: Scene
    method: str
    port: int
    connections: int
    seconds: float
    path: str = "/128"
    rate: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Callers:
        asked = map(str, (self.method, self.port, self.connections, self.seconds, self.path, self.rate))
        command = [sys.executable, "-m", "benchmarks.faults.client", *asked]
        self._process = spawn(command, self.scene.cores.load)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                output, said = self._process.communicate(timeout=self.seconds + 40)
                if self._process.returncode:
                    raise BenchError(f"the callers ended with status {self._process.returncode}: {said[-400:]}")
                self.figures = orjson.loads(output)
        finally:
            end(self._process)

    def failed(self) -> int:
        """Of any kind: no whole answer, or one that is not a success."""
        bad = sum(count for status, count in self.figures["answered"].items() if not 200 <= int(status) < 400)
        return int(self.figures["failed"]) + int(bad)


class Watch:
    """Memory of a process tree: what it was at the start, and the most of all looks since. To be entered."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self.pid, self.every = pid, every
        self.before = self.most = _mib(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown(self) -> float:
        """MiB."""
        return self.most - self.before

    def _look(self) -> None:
        while not self._done.wait(self.every):
            self.most = max(self.most, _mib(self.pid))


def _mib(pid: int) -> float:
    """Of a tree, whose members may come and go; 0 where it is gone."""
    total = 0.0
    for each in tree(pid):
        with suppress(OSError, BenchError):
            found: Memory = memory([each])
            total += (found.pss if found.pss is not None else found.rss) / MIB
    return total


def until(look: Callable[[], Any], what: str, seconds: float = PATIENCE, every: float = 0.01) -> float:
    """Seconds until `look` gave something true. Raises BenchError when it never does."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            raise BenchError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)
    return time.monotonic() - began


def after(began: float, seconds: float) -> None:
    """Waits until so many seconds after `began`, a time of the monotonic clock: faults come at set times of a load."""
    time.sleep(max(0.0, began + seconds - time.monotonic()))
