"""The load generators of our own, against the benchmark's upstream."""

from __future__ import annotations

import itertools
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
from benchmarks.load.process import running
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


@contextmanager
def queue(native: Path, slots: int, time_us: int) -> Iterator[int]:
    command = [str(native / "queue"), "v1", str(slots), str(time_us)]
    with running("queue", command, CORES, native / "queue.log", tells=True) as process:
        yield peers.told_port(process, "queue")


def test_a_queue_serves_so_many_at_once_and_clients_give_up(native: Path) -> None:
    """Two at once, 50 ms each: 40 a second, whoever waits; a line of more than 300 ms is too long."""
    peers.compile_native(native, ("queue", "surge"))
    with queue(native, 2, 50_000) as port:
        found = drive_native(native, "surge", port, "/", 4, 0, 1.5, 0.5, 10_000)
        assert found["good"] == found["offered"]
        assert 20 <= found["good"] <= 44
        assert found["p50_us"] >= 95_000  # four clients: each waits for one before it
    with queue(native, 2, 50_000) as port:
        found = drive_native(native, "surge", port, "/", 200, 400, 1.5, 1.0, 300)
        assert found["offered"] == found["late"] + found["good"] + found["unsent"]
        assert found["good"] <= 22
        assert found["late"] > 100
        assert found["refused"] == 0


def test_refusals_are_counted_apart(native: Path) -> None:
    peers.compile_native(native, ("surge",))
    with refusing_server(5) as port:
        found = drive_native(native, "surge", port, "/", 1, 10, 1, 0, 5_000)
    assert (found["offered"], found["good"], found["refused"], found["late"]) == (10, 5, 5, 0)
    assert 0 < found["refused_p50_us"] <= found["refused_p99_us"]


@contextmanager
def refusing_server(good: int) -> Iterator[int]:
    """One connection; so many answers of 200, then 503."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                for number in itertools.count():
                    if not client.recv(4096):
                        return
                    status = "200 OK" if number < good else "503 Busy"
                    client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok".encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
