"""Memory of idle keep-alive connections: private pages of the process tree, with them and without."""

from __future__ import annotations

import resource
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers
from benchmarks.load.peers import KINDS, Peer
from benchmarks.load.process import smaps_field, tree
from benchmarks.load.stage import all_up, my_cores, stage

CONNECTIONS = 10_000
BOUND = 2048
"""Bytes for each of graylb's."""
REQUEST = b"GET /128 HTTP/1.1\r\nHost: x\r\n\r\n"


def private_bytes(pid: int) -> int:
    """Of a process tree, from smaps_rollup: pages that nobody else uses."""
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in tree(pid)]
    return 1024 * sum(smaps_field(text, key) for text in texts for key in ("Private_Clean", "Private_Dirty"))


def open_and_ask(port: int, count: int, stack: ExitStack, name: str) -> None:
    """`count` connections that stay open, each answered once."""
    for number in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        client.sendall(REQUEST)
        received = client.recv(4096)
        if not received.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"{name}: connection {number + 1} got {received[:80]!r}, expected a 200")


def measure(peer: Peer, count: int) -> dict[str, Any]:
    """One proxy, warm: it has had some connections before."""
    with ExitStack() as warm:
        open_and_ask(peer.port, 200, warm, peer.name)
    before = private_bytes(peer.pid)
    with ExitStack() as stack:
        open_and_ask(peer.port, count, stack, peer.name)
        used = private_bytes(peer.pid) - before
    return {"round": 1, "case": "idle", "peer": peer.name, "connections": count, "before": before,
            "each": max(1, used) / count}  # fmt: skip


def raise_limit(wanted: int) -> None:
    """Descriptors of this process and of those that it starts. Raises BenchError where that is not allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError) as error:
        raise BenchError(f"{wanted} descriptors are needed, {hard} allowed: raise ulimit -Hn") from error


def run(names: Sequence[str], count: int = CONNECTIONS) -> dict[str, Any]:
    """The raw result, ready for JSON; proxies run one after the other. Raises BenchError."""
    names = [name for name in names if name not in ("graylb-10k", "floor") and not KINDS[name].slow]
    raise_limit(count + 2_000)
    environment = stamp.environment(peers.programs_of(names))
    runs = []
    with stage(my_cores(), connections=count + 1_000) as on:
        for name in names:
            with all_up(on, [name]) as up:
                runs.append(measure(up[name], count))
                print(f"{name:12} {runs[-1]['each']:8.0f} bytes for each of {count} idle connections", flush=True)
    settings = {"rounds": 1, "connections": count, "peers": names}
    return {"kind": "idle", "stamp": environment, "settings": settings, "runs": runs}


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    rows = []
    for run in result["runs"]:
        verdict = ("holds" if run["each"] <= BOUND else "**broken**") if run["peer"] == "graylb" else ""
        bound = f"≤ {BOUND:,}" if run["peer"] == "graylb" else ""
        rows.append([titles.get(run["peer"], run["peer"]), report.number(run["each"]), bound, verdict])
    count = result["settings"]["connections"]
    about = f"{count:,} idle keep-alive connections, each answered once; bytes of private memory each."
    return f"## Idle connections\n\n{report.stamp_lines(result)}\n{about}\n\n" + report.table(
        ["proxy", "bytes each", "bound", "verdict"], rows
    )
