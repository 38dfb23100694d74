"""The proxy under soak: its document, its processes, what it says of itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from benchmarks.failure import BenchError
from benchmarks.load.peers import Upstreams, free_port, told_ports
from benchmarks.load.process import memory, running, tree, wait_until

PATIENCE = 20.0


def document(to: Upstreams, echo: int, broken: int, share: int, revision: int) -> dict[str, Any]:
    """Two versions, a third that nobody listens for, tunnels to `echo`; `share` and `revision` are what changes."""
    return {
        "listeners": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "services": {
            "canary": {
                "hosts": ["*"],
                "paths": ["/"],
                "stable": "v1",
                "split": {"v1": 100 - share, "v2": share},
                "rules": [
                    {"name": "broken", "match": {"headers": {"x-service-version": "broken"}}, "to": "broken"},
                    {"name": "changing", "match": {"headers": {"x-revision": f"r{revision}"}}, "to": "v2"},
                ],
                "instances": [
                    {"address": f"127.0.0.1:{to.v1}", "version": "v1"},
                    {"address": f"127.0.0.1:{to.v2}", "version": "v2"},
                    {"address": f"127.0.0.1:{broken}", "version": "broken"},
                ],
            },
            "tunnels": {
                "hosts": ["*"],
                "paths": ["/ws"],
                "stable": "v1",
                "instances": [{"address": f"127.0.0.1:{echo}", "version": "v1"}],
            },
        },
    }


@dataclass(slots=True)
class Proxy:
    """graylb with one worker."""

    pid: int
    port: int
    admin: int
    file: Path
    to: Upstreams
    echo: int
    broken: int = field(default_factory=free_port)

    def get(self, path: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self.admin}{path}", timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    @property
    def revision(self) -> int:
        return int(self.get("/status")["revision"])

    def worker_stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.get("/stats")[0]["stats"]
        return stats

    def worker(self) -> int:
        """The worker's process id."""
        return int(self.get("/status")["workers"][0]["pid"])

    def change(self, share: int, number: int) -> None:
        """Writes a document that differs, and waits until it is in force. Raises BenchError when it never is."""
        before = self.revision
        fresh = self.file.with_suffix(".new")
        fresh.write_bytes(orjson.dumps(document(self.to, self.echo, self.broken, share, number)))
        fresh.replace(self.file)
        until(lambda: self.revision > before, f"change {number} in force")

    def quiet(self) -> None:
        """Waits until no client is connected."""
        until(lambda: self.worker_stats()["clients"] == 0, "all clients gone")

    def sample(self, requests: int) -> dict[str, int]:
        """Memory and descriptors; to be taken when it is quiet."""
        return {
            "requests": requests,
            "rss": memory(tree(self.pid)).rss * 1024,
            "descriptors": len(list(Path(f"/proc/{self.worker()}/fd").iterdir())),
            "pooled": self.worker_stats()["upstream_connections"],
        }


def until(look: Any, what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


@contextmanager
def proxy(work: Path, cores: frozenset[int], to: Upstreams, echo: int) -> Iterator[Proxy]:
    file, ports = work / "soak.json", work / "soak-ports.json"
    made = Proxy(0, 0, 0, file, to, echo)
    file.write_bytes(orjson.dumps(document(to, echo, made.broken, 5, 0)))
    command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(file), "--ports-file", str(ports)]
    with running("graylb", command, cores, work / "soak.log") as process:
        wait_until(ports.exists, process, "graylb", seconds=30)
        made.port, made.admin = told_ports(ports.read_bytes())
        made.pid = process.pid
        until(lambda: bool(made.get("/ready")["ready"]), "graylb ready")
        yield made
