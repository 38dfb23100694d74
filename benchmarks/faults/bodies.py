"""Row 21: bodies of 1 GB between a fast side and a slow one: memory of the proxy, by connection."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

from benchmarks.faults.peers import START, Job
from benchmarks.faults.scene import Scene, Watch

CONNECTIONS = 16
GB = 1_000_000_000
HEADS = {
    "download": f"GET /{GB} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "upload": f"POST /sink HTTP/1.1\r\nHost: x\r\nContent-Length: {GB}\r\n\r\n".encode(),
}
TITLES = {"download": "1 GB to a slow client", "upload": "1 GB to a slow instance"}
SIP = 65_536
PAUSE = 0.05


def measure(scene: Scene, peer: str, way: str, *, seconds: float = 4.0, count: int = CONNECTIONS) -> dict[str, Any]:
    """Slow: 64 KiB in each 50 ms; fast: whatever is taken. One warm connection of the same kind has come before."""
    with ExitStack() as stack:
        origins = stack.enter_context(scene.origins(1))
        job = Job(scene.folder(f"{peer}-{way}"), scene.cores.proxy, (origins[0].port,), response=60)
        up = stack.enter_context(START[peer](job))
        _crowd(up.port, way, 1, 0.5)
        with Watch(up.pid, every=0.05) as watch:
            moved = _crowd(up.port, way, count, seconds)
        return {"peer": peer, "way": way, "connections": count, "moved_mib": moved / (1 << 20),
                "mib_each": watch.grown / count}  # fmt: skip


def _crowd(port: int, way: str, count: int, seconds: float) -> int:
    """Bytes that all clients moved."""
    end = time.monotonic() + seconds
    moved = [0] * count
    threads = [threading.Thread(target=_one, args=(port, way, end, moved, n), daemon=True) for n in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(moved)


def _one(port: int, way: str, end: float, moved: list[int], number: int) -> None:
    with socket.socket() as client, suppress(OSError):
        if way == "download":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SIP)
        client.connect(("127.0.0.1", port))
        client.sendall(HEADS[way])
        client.settimeout(0.2)
        piece = b"x" * (1 << 18)
        while time.monotonic() < end:
            with suppress(TimeoutError):
                if way == "upload":
                    moved[number] += client.send(piece)
                else:
                    got = client.recv(SIP)
                    if not got:
                        return
                    moved[number] += len(got)
                    time.sleep(PAUSE)
