"""Rounds of loads over HTTP/2 or TLS, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.h2.peers import Side
from benchmarks.h2.scene import Scene
from benchmarks.load import turns
from benchmarks.load.peers import Peer
from benchmarks.load.turns import Load
from benchmarks.stats import rotated


def measure(
    loads: Sequence[tuple[Load, Side]],
    names: Sequence[str],
    up: Mapping[tuple[str, Side], Peer],
    on: Scene,
    rounds: int,
    seconds: int,
) -> list[dict[str, Any]]:
    """The rows of results: each load on all proxies of its side, the order rotated. Raises BenchError."""
    rows = []
    for number in range(1, rounds + 1):
        for index, (load, side) in enumerate(loads):
            some = {name: up[name, side] for name in rotated(names, number + index)}
            for found in turns.measure(number, load, some, on.to[side.upstream], on.cores, seconds):
                print(turns.line(found), flush=True)
                rows.append(asdict(found))
    return rows
