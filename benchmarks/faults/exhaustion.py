"""Row 22: no descriptors, a full disk, a clock that jumps, a new certificate: nobody exits, all recovers."""

from __future__ import annotations

import mmap
import os
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.faults.deaths import ASK, Knocking, _may_end, worker_of
from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Callers, Scene, until
from benchmarks.h2.certificates import write_certificates
from benchmarks.load.peers import Peer

NATIVE = Path(__file__).parent / "native"
TITLES = {
    "descriptors": "worker out of descriptors",
    "control": "control process out of descriptors",
    "disk": "disk full",
    "clock": "clock jumps by a day, forth and back",
    "certificate": "certificate replaced",
}
ALONE = ("control", "disk", "certificate")
"""What is measured of graylb alone: others have no such process, state or watch."""
CROWD = 60
DAY = 86_400


def measure(scene: Scene, peer: str, what: str) -> dict[str, Any]:
    """Failures of others meanwhile, whether the process lives, and seconds from the end of the trouble to recovery."""
    found = {"descriptors": _descriptors, "control": _control, "disk": _disk, "clock": _clock,
             "certificate": _certificate}[what](scene, peer)  # fmt: skip
    return {"peer": peer, "fault": what, **found}


def _status(up: Peer) -> Any:
    return httpx.get(f"http://127.0.0.1:{up.admin}/status", timeout=10).json()


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """A process's limit, for as long as it lives."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def _open(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _served(port: int, seconds: float = 1.0) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), seconds) as client:
        client.sendall(ASK)
        return client.recv(4096).startswith(b"HTTP/1.1 200 ")
    return False


def _descriptors(scene: Scene, peer: str) -> dict[str, Any]:
    """A crowd of connections that stay, a dozen descriptors more than the worker has; then the limit is lifted."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        job = Job(scene.folder(f"{peer}-descriptors"), scene.cores.proxy, (origins[0].port,))
        up = stack.enter_context(_may_end(START[peer](job)))
        worker = worker_of(up)
        with ExitStack() as crowd:
            with limited(worker, resource.RLIMIT_NOFILE, _open(worker) + 12):
                for _ in range(CROWD):
                    with suppress(OSError):
                        each = crowd.enter_context(socket.create_connection(("127.0.0.1", up.port), 2))
                        each.sendall(b"GET /16 HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(scene.pace)
            lives = _lives(worker) and _lives(up.pid)
            recovered = _recovered(lambda: _served(up.port)) if lives else None
        return {"lives": lives, "failed": None, "recovered_s": recovered}


def _recovered(look: Callable[[], bool], seconds: float = 10.0) -> float | None:
    try:
        return until(look, "recovery", seconds)
    except BenchError:
        return None


def _change(job: Job) -> None:
    """Of the document: its decision headers are on."""
    text = (job.folder / "graylb.yaml").read_text()
    fresh = job.folder / "graylb.new"
    fresh.write_text(text + "decision_headers: true\n")
    fresh.replace(job.folder / "graylb.yaml")


def _troubled(scene: Scene, name: str, limit: int, soft: int) -> dict[str, Any]:
    """The control process in trouble, and a change of the document meanwhile: it must come into force afterwards."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        job = Job(scene.folder(name), scene.cores.proxy, (origins[0].port,))
        up = stack.enter_context(START["graylb"](job))
        before = _status(up)["revision"]
        with Callers(scene, "GET", up.port, 8, 2 * scene.pace + 1) as callers:
            with limited(up.pid, limit, soft):
                _change(job)
                time.sleep(2 * scene.pace)
            recovered = _recovered(lambda: _status(up)["revision"] > before)
        return {"lives": _lives(up.pid), "failed": callers.failed(), "recovered_s": recovered}


def _control(scene: Scene, peer: str) -> dict[str, Any]:
    return _troubled(scene, f"{peer}-control", resource.RLIMIT_NOFILE, 3)


def _disk(scene: Scene, peer: str) -> dict[str, Any]:
    """A small disk of its own where that may be mounted, else a limit that lets no file grow."""
    folder = scene.folder(f"{peer}-disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        return {**_troubled(scene, f"{peer}-disk", resource.RLIMIT_FSIZE, 0), "by": "RLIMIT_FSIZE"}
    try:
        with ExitStack() as stack:
            origins = stack.enter_context(scene.origins(1))
            state = ("--state", str(folder / "state.json"))
            job = Job(scene.folder(f"{peer}-full"), scene.cores.proxy, (origins[0].port,), options=state)
            up = stack.enter_context(START["graylb"](job))
            before = _status(up)["revision"]
            with Callers(scene, "GET", up.port, 8, 2 * scene.pace + 1) as callers:
                _fill(folder / "ballast")
                _change(job)
                until(lambda: _status(up)["refusal"], "the change is refused")
                time.sleep(scene.pace)
                (folder / "ballast").unlink()
                recovered = _recovered(lambda: _status(up)["revision"] > before)
            return {"lives": _lives(up.pid), "failed": callers.failed(), "recovered_s": recovered, "by": "tmpfs"}
    finally:
        subprocess.run(["umount", folder], check=False)


def _fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


class Clock:
    """What the wall clock of other processes is ahead of ours, in seconds; see native/clock.c."""

    def __init__(self, scene: Scene) -> None:
        self.library, self._file = scene.work / "clock.so", scene.work / "clock.offset"
        self._file.write_bytes(struct.pack("q", 0))
        flags = ["-shared", "-fPIC", "-O2", "-o", str(self.library)]
        command = [programs.find("cc"), *flags, str(NATIVE / "clock.c"), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"clock.c does not compile:\n{done.stderr}")

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "GRAYLB_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
            memory[:] = struct.pack("q", seconds)


def _clock(scene: Scene, peer: str) -> dict[str, Any]:
    clock = Clock(scene)
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        ports = (origins[0].port,)
        job = Job(scene.folder(f"{peer}-clock"), scene.cores.proxy, ports, environment=clock.environment, checks=True)
        up = stack.enter_context(START[peer](job))
        with Callers(scene, "GET", up.port, 8, 3 * scene.pace) as callers, Knocking(up.port) as knocking:
            began = time.monotonic()
            slowest = 0.0
            for turn, offset in enumerate((DAY, -DAY)):
                time.sleep(max(0.0, began + scene.pace * (turn + 0.7) - time.monotonic()))
                clock.set(offset)
                moment = time.monotonic()
                slowest = max(slowest, until(lambda at=moment: knocking.served_since(at), "an answer"))  # type: ignore[misc]
        failed = callers.failed() + knocking.refused + knocking.cut
        return {"lives": _lives(up.pid), "failed": failed, "recovered_s": slowest, "max_ms": callers.figures["max_ms"]}


def _certificate(scene: Scene, peer: str) -> dict[str, Any]:
    """Until a new handshake shows the new certificate, while others shake hands all the time."""
    old, new = (scene.folder(f"{peer}-{name}") for name in ("old", "new"))
    for folder in (old, new):
        write_certificates(folder)
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        tls = f', tls: {{cert: "{old}/ecdsa.crt", key: "{old}/ecdsa.key"}}'
        job = Job(scene.folder(f"{peer}-tls"), scene.cores.proxy, (origins[0].port,), listener=tls)
        up = stack.enter_context(START["graylb"](job))
        before = _shown(up.port)
        failed = 0
        for name in ("ecdsa.key", "ecdsa.crt"):
            shutil.copy(new / name, old / f"{name}.new")
            (old / f"{name}.new").replace(old / name)
        began = time.monotonic()
        recovered = None
        while recovered is None and time.monotonic() < began + 10:
            try:
                if _shown(up.port) != before:
                    recovered = time.monotonic() - began
            except OSError:
                failed += 1
        return {"lives": _lives(up.pid), "failed": failed, "recovered_s": recovered}


def _shown(port: int) -> bytes:
    """The certificate that a new handshake shows, as DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw) as secure:
        return secure.getpeercert(binary_form=True) or b""
