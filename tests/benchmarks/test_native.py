"""The load generators of our own, against the benchmark's upstream."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.failure import BenchError
from benchmarks.load import peers, verify
from benchmarks.load.stage import drive

CORES = frozenset(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("native")
    peers.compile_native(work)
    return work


@pytest.fixture
def upstream(native: Path) -> Iterator[int]:
    with peers.upstream("v1", native, CORES) as port:
        yield port


def drive_native(native: Path, name: str, *arguments: object) -> dict[str, Any]:
    return drive([str(native / name), *map(str, arguments)], CORES, 50, name)


@contextmanager
def stalling_server(answers: int, stall: float) -> Iterator[int]:
    """One connection; the first answer comes after `stall` seconds, all others at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                for number in range(answers):
                    if not client.recv(4096):
                        return
                    if number == 0:
                        threading.Event().wait(stall)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                client.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def test_a_constant_rate_is_kept_whatever_the_answers_do(native: Path, upstream: int) -> None:
    before = verify.count_at(upstream)
    found = drive_native(native, "pace", upstream, "/128", 4, 200, 1.5)
    assert (found["requests"], found["lost"]) == (300, 0)
    assert verify.count_at(upstream).since(before).requests == 300
    assert found["recorded"] == 200  # those due after the first half second
    assert 0 < found["p50_us"] <= found["p99_us"] <= found["p999_us"] <= found["max_us"]


def test_a_stall_is_felt_by_all_that_were_due_meanwhile(native: Path) -> None:
    """One connection at 10 requests a second, the first of 20 answers comes after 1 s: a closed loop would see one slow
    request, at a constant rate the backlog shows."""
    with stalling_server(20, 1.0) as port:
        found = drive_native(native, "pace", port, "/", 1, 10, 2)
    assert (found["requests"], found["recorded"]) == (20, 15)
    assert found["max_us"] >= 400_000  # the first one recorded was due at 0.5 s and could not be sent before 1.0


def test_a_closed_loop_goes_as_fast_as_answers_come(native: Path, upstream: int) -> None:
    found = drive_native(native, "pace", upstream, "/128", 4, 0, 0.6, "X-One: 1")
    assert found["requests"] > 10
    assert found["lost"] == 0


def test_anything_but_a_200_ends_a_run(native: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
                client.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(BenchError, match=r"pace: the load ended with status 1: not a 200: HTTP/1\.1 503"):
            drive_native(native, "pace", listener.getsockname()[1], "/", 1, 10, 1)
        thread.join(20)


@pytest.mark.parametrize(("size", "connections", "times"), [(100, 3, 5), (5 << 20, 2, 2), (100 << 20, 1, 1)])
def test_bodies_arrive_whole_both_ways(native: Path, upstream: int, size: int, connections: int, times: int) -> None:
    before = verify.count_at(upstream)
    down = drive_native(native, "transfer", upstream, f"/{size}", 0, connections, times)
    assert (down["transfers"], down["bytes"]) == (connections * times, connections * times * size)
    up = drive_native(native, "transfer", upstream, "/0", size, connections, times)
    assert (up["transfers"], up["bytes"]) == (connections * times, connections * times * size)
    assert verify.count_at(upstream).since(before).bodies == up["bytes"]
    assert down["seconds"] > 0
