"""A real `graylb run` for tests of the supervisor and of commands that talk to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 20.0


def until(look: Callable[[], T], what: str) -> T:
    """The first true answer of `look`."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.01)
    return found


class Running:
    """A process of graylb whose stderr goes to a file."""

    def __init__(self, folder: Path, command: list[str], ports_file: Path | None, **env: str) -> None:
        self.folder, self.ports_file = folder, ports_file
        self.log_file = folder / f"stderr-{time.monotonic_ns()}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                start_new_session=True,
            )

    @property
    def ports(self) -> dict[str, Any]:
        assert self.ports_file is not None
        found: dict[str, Any] = json.loads(self.ports_file.read_bytes())
        return found

    @property
    def admin(self) -> str:
        return str(self.ports["admin"])

    def get(self, path: str, where: str | None = None) -> tuple[int, Any]:
        """Status and JSON of the admin API."""
        try:
            with urllib.request.urlopen(f"http://{where or self.admin}{path}", timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/status")[1]
        return found

    def log(self) -> str:
        return self.log_file.read_text()

    def wait_for_log(self, text: str) -> None:
        until(lambda: text in self.log(), f"{text!r} in the log")

    def wait_ready(self) -> None:
        assert self.ports_file is not None

        def look() -> bool:
            assert self.process.poll() is None, self.log()
            return self.ports_file is not None and self.ports_file.exists()

        until(look, "the ports file")

    def stop(self, *signals: signal.Signals) -> int:
        """Its exit status."""
        for each in signals or (signal.SIGTERM,):
            self.process.send_signal(each)
        return self.process.wait(PATIENCE)


@contextmanager
def started(folder: Path, document: Path, *options: str, ready: bool = True) -> Iterator[Running]:
    ports = folder / "ports.json"
    ports.unlink(missing_ok=True)
    command = ["graylb.cli", "run", "-c", str(document), "--ports-file", str(ports), *options]
    running = Running(folder, command, ports)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
