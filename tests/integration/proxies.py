"""A real `graylb run` of a test: start on free ports, edit its document, ask its status, stop it without orphans."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from tests.integration.client import Client

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
RUNNING: list[Proxy] = []
"""Every proxy that runs now; the last lines of their logs are shown with a failed test."""

Document = dict[str, Any]


def until(look: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """The first true answer of `look`, asked every 10 ms."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)
    return found


def document(services: dict[str, Any], **top: Any) -> Document:
    """A document with one listener and the admin address on free ports, decision headers on."""
    return {
        "listeners": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "decision_headers": True,
        "services": services,
        **top,
    }


def service(*instances: str | tuple[str, str], **more: Any) -> dict[str, Any]:
    """A service for every host and path; instances are addresses (of version v1) or (address, version)."""
    pairs = [(item, "v1") if isinstance(item, str) else item for item in instances]
    return {
        "hosts": ["*"],
        "paths": ["/"],
        "stable": "v1",
        "instances": [{"address": address, "version": version} for address, version in pairs],
        **more,
    }


def cli(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """One `graylb` command; the caller looks at the exit status."""
    command = [sys.executable, "-m", "graylb.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


class Proxy:
    """`graylb run -c FILE OPTIONS…` in `folder`. `address` is its first listener, `pid` the supervisor's.

    launcher: a command that runs the one behind it, with `fds` open. environment: in addition to this process's.
    """

    def __init__(
        self,
        folder: Path,
        doc: Document,
        *options: str | Path,
        start: bool = True,
        launcher: Sequence[str] = (),
        fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.options, self.launcher, self.fds = list(map(str, options)), list(launcher), fds
        self.environment = {**os.environ, **(environment or {})}
        self.folder = folder
        self.file = folder / "graylb.yaml"
        self.ports_file = folder / "ports.json"
        self.log_file = folder / "stderr.log"
        self.document = doc
        self.address = self.admin = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.write(doc)
        if start:
            self.start()

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> Proxy:
        self.ports_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(self.file), *self.options]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.launcher, *command, "--ports-file", str(self.ports_file)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self.fds,
                env=self.environment,
            )
        RUNNING.append(self)
        try:
            ports = until(self._ports, "the ports file")
        except BaseException:
            self.kill()
            raise
        self.address, self.admin = ports
        return self

    def _ports(self) -> tuple[str, str] | None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"graylb run exited with {self.process.returncode}:\n{self.log()}")
        try:
            ports = json.loads(self.ports_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return ports["listeners"][0], ports["admin"]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def family(self) -> list[psutil.Process]:
        """The supervisor's descendants."""
        return psutil.Process(self.pid).children(recursive=True)

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, seconds: float = PATIENCE) -> None:
        """A clean stop: exit status 0 and nobody left behind."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.kill()
            raise AssertionError(f"graylb had exited with {self.process.returncode}:\n{self.log()}")
        family = self.family()
        self.process.send_signal(with_signal)
        try:
            status = self.process.wait(seconds)
            _, alive = psutil.wait_procs(family, timeout=2)
        finally:
            self.kill()
        assert status == 0, f"exit status {status}:\n{self.log()}"
        assert not alive, f"left behind: {alive}"

    def kill(self) -> None:
        """Whatever is left of it, at once."""
        if self in RUNNING:
            RUNNING.remove(self)
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log(self, lines: int = 60) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def wait_for_log(self, text: str) -> None:
        until(lambda: text in self.log(), f"{text!r} in the log")

    # -- talking to it -------------------------------------------------------------------------------------------

    def client(self, **options: Any) -> Client:
        return Client(self.address, **options)

    def call(self, path: str, data: Any = None) -> Any:
        """JSON of the admin API."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://{self.admin}{path}", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.call("/status")
        return status

    @property
    def revision(self) -> int:
        """The revision that every worker has applied."""
        return int(self.status()["revision"])

    def workers(self) -> list[int]:
        """Process ids of the workers that live."""
        return [int(worker["pid"]) for worker in self.status()["workers"] if worker["pid"] is not None]

    def rss(self) -> int:
        """Resident bytes of all workers."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.workers())

    # -- its document --------------------------------------------------------------------------------------------

    def write(self, doc: Document | str) -> None:
        """Replace the file in one step, as editors and deployments do."""
        text = doc if isinstance(doc, str) else yaml.safe_dump(doc, sort_keys=False)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    def edit(self, doc: Document) -> int:
        """Write a valid document that differs and wait until it is applied; gives the revision."""
        before = self.revision
        self.write(doc)
        self.document = doc
        return self.wait_revision(before + 1)

    def wait_revision(self, at_least: int) -> int:
        return until(lambda: revision if (revision := self.revision) >= at_least else None, f"revision {at_least}")


@contextlib.contextmanager
def running(folder: Path, doc: Document, *options: str | Path, **more: Any) -> Iterator[Proxy]:
    """A proxy for the block; stopped cleanly at its end, killed after a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    proxy = Proxy(folder, doc, *options, **more)
    try:
        yield proxy
    except BaseException:
        proxy.kill()
        raise
    proxy.stop()
