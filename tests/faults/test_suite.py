"""The fault suite in a short form, of graylb alone: what must hold on any machine. Times are for `make faults`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.faults import __main__ as main
from benchmarks.faults import bodies, deaths, drains, exhaustion, instances, panic, verdict
from benchmarks.faults.breakable import MODES
from benchmarks.faults.scene import Origin, Scene, doubled
from benchmarks.load.stage import Cores
from tests.integration.client import Client


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    everywhere = frozenset(os.sched_getaffinity(0))
    return Scene(tmp_path, Cores(everywhere, everywhere), pace=0.5)


@pytest.fixture
def origin(scene: Scene) -> Iterator[Origin]:
    with scene.origins(1) as (made,):
        yield made


def ask(port: int) -> bytes:
    """All that comes on a connection of one request."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET /100 HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while not got.endswith(b"x" * 100) and (piece := client.recv(65536)):
            got += piece
        return got


def test_the_breakable_proxy_breaks_as_it_is_told(scene: Scene, origin: Origin) -> None:
    direct = ask(origin.port)
    assert direct.endswith(b"\r\n\r\n" + b"x" * 100)
    with scene.breakable(origin) as way:
        for mode in ("pass", "late 50", "lossy 100", "drip", "pass"):
            way.say(mode)
            assert ask(way.port) == direct, mode
        way.say("half")
        assert ask(way.port) == direct[: len(direct) // 2]
        way.say("garbage")
        assert b"HTTP" not in ask(way.port)
        way.say("reset")
        with pytest.raises(ConnectionResetError):
            ask(way.port)
        way.say("refuse")
        with pytest.raises(ConnectionRefusedError):
            ask(way.port)
        way.say("stall")
        with socket.create_connection(("127.0.0.1", way.port), 10) as client:
            client.sendall(b"GET /100 HTTP/1.1\r\nHost: x\r\n\r\n")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            way.say("pass")
            client.settimeout(10)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert {"pass", "late", "lossy", "drip", "half", "garbage", "reset", "refuse", "stall"} == set(MODES)


def test_a_post_is_in_the_ledger_though_its_instance_is_killed(origin: Origin) -> None:
    with Client(f"127.0.0.1:{origin.port}") as client:
        for name in ("a", "b", "a"):
            assert client.ask("POST", "/", headers=[f"X-Id: {name}"], body=b"body").status == 200
    origin.kill()
    assert origin.posts() == ["a", "b", "a"]
    assert doubled([origin]) == 1
    port = origin.port
    origin.start()
    assert origin.port == port
    assert ask(port).startswith(b"HTTP/1.1 200 OK")


def measured(row: str, case: str, figures: dict[str, Any]) -> list[list[str]]:
    """The lines of the report that it makes, graylb's verdict last."""
    return verdict.rows({"rows": {row: [{"case": case, **figures}]}})


def holds(row: str, case: str, figures: dict[str, Any]) -> None:
    lines = measured(row, case, figures)
    assert lines
    assert all(line[-1] == report.verdict(True) for line in lines), lines


def test_a_killed_instance_costs_no_get_and_doubles_no_post(scene: Scene) -> None:
    figures = instances.measure(scene, "graylb", "killed", turns=1)
    assert figures["gets"] > 50
    assert figures["posts"] > 20
    holds("7", "killed", figures)


def test_a_killed_worker_refuses_nobody(scene: Scene) -> None:
    figures = deaths.killed(scene, "graylb", kills=1)
    assert figures["lives"]
    assert figures["refused"] == 0
    assert len(figures["ms"]) == 1


def test_draining(scene: Scene) -> None:
    figures = drains.measure(scene, "graylb", think=0.8, bound=1.5)
    assert figures["finished"] == figures["told_close"] == figures["in_flight"]
    assert figures["goaway"]
    assert figures["ended_s"] is not None


def test_large_bodies_cost_little_memory(scene: Scene) -> None:
    for way in bodies.HEADS:
        holds("21", way, bodies.measure(scene, "graylb", way, seconds=0.5))


def test_a_clock_that_jumps_breaks_nothing(scene: Scene) -> None:
    figures = exhaustion.measure(scene, "graylb", "clock")
    assert figures["lives"]
    assert figures["failed"] == 0


def phases(failed: int = 0, ill: float = 0.0, largest: float = 0.25) -> dict[str, Any]:
    each = {"asked": 100, "failed": failed, "largest": largest, "ill": ill, "p99_ms": 1.0}
    return {"peer": "graylb", "phases": dict.fromkeys(panic.PHASES, each)}


def test_figures_have_their_place_in_the_document() -> None:
    text = main.DOCUMENT.read_text()
    once = main.placed(text, "| figures |\n")
    assert f"{main.BEGIN}\n| figures |\n{main.END}" in once
    assert main.placed(main.placed(once, "others\n"), "| figures |\n") == once
    for row in main.ROWS:
        assert f"| {row} |" in text
        assert f"--only {row}'" in text


def test_verdicts() -> None:
    assert [line[-1] for line in measured("20", "panic", phases())] == ["holds"] * 3
    assert [line[-1] for line in measured("20", "panic", phases(1, 0.1, 1.0))] == ["**broken**"] * 3
    killed = {"peer": "graylb", "gets": 10, "failed_gets": 0, "posts": 5, "failed_posts": 1, "doubled_posts": 0}
    rows = {"7": [{"case": "killed", **killed, "memory_mib": 0.5}]}
    rows["7"].append({**rows["7"][0], "peer": "nginx", "failed_gets": 1000, "gets": 2000})
    stamp = {"date": "d", "commit": "c" * 40, "dirty": False, "cpu": "x", "cores": 2, "memory": "1 kB", "kernel": "6",
             "machine": "m", "python": "3", "versions": {}, "libraries": {}}  # fmt: skip
    page = verdict.page({"stamp": stamp, "rows": rows}, {})
    line = "| 7 | one of two instances killed: failed GETs, doubled POSTs | 0, 0 | 0 of 10, 0 | 1,000 of 2,000, 0 |"
    assert line in page
    assert verdict.held({"rows": rows})
    assert not verdict.held({"rows": {"7": [{"case": "killed", **killed, "doubled_posts": 1}]}})
    dead = {"peer": "graylb", "fault": "disk", "lives": False, "failed": 0, "recovered_s": None}
    assert "exits, 0 failed; back after never" in measured("22", "disk", dead)[0]
