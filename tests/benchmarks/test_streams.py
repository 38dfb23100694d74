"""Slow, idle and hostile clients of the HTTP/2 benchmarks, against the benchmark's upstream and small servers."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import programs, report, stamp
from benchmarks.failure import BenchError
from benchmarks.h2 import frames, scene, streams
from benchmarks.h2.bystander import ask
from benchmarks.h2.frames import Attacker, Frames, batches, frame
from benchmarks.keep import PAGES, TITLES
from benchmarks.load.peers import Peer
from benchmarks.load.stage import Cores

CORES = frozenset(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    """The HTTP/2 upstream, which knows no limits, in a proxy's place."""
    if not programs.has_header("nghttp2/nghttp2.h"):
        pytest.skip("libnghttp2-dev is not installed")
    with scene.scene(Cores(CORES, CORES)) as on:
        yield on.to["h2"].v1


# -- frames -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40))),
    st.integers(1, 30),
)
def test_frames_come_apart_as_they_were_put_together(sent: list[tuple[int, int, int, bytes]], piece: int) -> None:
    whole = b"".join(frame(*each) for each in sent)
    split = Frames()
    got = [found for at in range(0, len(whole), piece) for found in split.feed(whole[at : at + piece])]
    assert got == sent


def test_chunks_are_the_same_bytes() -> None:
    pieces = [b"a" * 10, b"b" * 100, b"c"]
    assert [len(each) for each in batches(pieces, 50)] == [110, 1]
    assert b"".join(batches(pieces, 50)) == b"".join(pieces)


def test_requests_of_an_attacker_are_lawful() -> None:
    """Those of a rapid reset: the law they break is one of numbers."""
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    events = server.receive_data(b"".join((frames.opening(), *frames.rapid_reset(3))))
    asked = [event.stream_id for event in events if isinstance(event, h2.events.RequestReceived)]
    reset = [event.error_code for event in events if isinstance(event, h2.events.StreamReset)]
    assert (asked, reset) == ([1, 3, 5], [8, 8, 8])


def test_a_bomb_is_24_megabytes_a_block() -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 30)
    first, second = (next(Frames().feed(each))[3] for each in frames.hpack_bomb(2))
    decoder.decode(first)
    assert len(second) < 9000
    assert sum(len(value) for _, value in decoder.decode(second)) >= 24_000_000


# -- attackers ----------------------------------------------------------------------------------------------------


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serves one connection in a thread, then closes it."""

    def run() -> None:
        client, _ = listener.accept()
        with client:
            serve(client)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def attacked(port: int, chunks: list[bytes], **more: Any) -> frames.Outcome:
    attacker = Attacker(port, **more)
    try:
        return attacker.flood(chunks)
    finally:
        attacker.close()


def test_a_goaway_and_a_close_are_seen() -> None:
    def serve(client: socket.socket) -> None:
        client.recv(5, socket.MSG_WAITALL)
        client.sendall(frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x0b") + frame(7, 0, 0, struct.pack(">II", 41, 11)))

    with server(serve) as port:
        found = attacked(port, [b"12345"])
    assert (found.closed, found.goaway, found.last_stream, found.error, found.resets) == (True, True, 41, 11, 1)


def test_one_who_reads_no_more_is_told_from_one_who_takes_all() -> None:
    done = threading.Event()

    def deaf(client: socket.socket) -> None:
        done.wait(30)

    with server(deaf) as port:
        found = attacked(port, [b"x" * (64 << 20)], patience=0.3)
        assert (found.stalled, found.closed) == (True, False)
        done.set()

    def patient(client: socket.socket) -> None:
        while client.recv(1 << 16):
            pass

    with server(patient) as port:
        found = attacked(port, [b"x" * 100_000], patience=0.3)
    assert asdict(found) == {**asdict(frames.Outcome()), "sent": 100_000}


def test_a_slow_reader_gets_all_of_it(upstream: int) -> None:
    for window in streams.SLOW.values():
        assert streams.read_slowly(upstream, 5 << 20, window) == 5 << 20


def test_held_streams_have_their_heads(upstream: int) -> None:
    with ExitStack() as stack:
        streams.hold(upstream, stack, 100)


def test_a_stream_that_is_refused_is_none_that_is_held() -> None:
    def refuse(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x07"))
        client.recv(1 << 16)

    with server(refuse) as port, ExitStack() as stack, pytest.raises(BenchError, match="0 of 5 streams"):
        streams.hold(port, stack, 5)


def test_a_bystander_counts_what_fails() -> None:
    with socket.socket() as nobody:  # bound, so that nobody else gets the port, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        assert ask(nobody.getsockname()[1], 3, 1000) == ([], 3)


def test_a_flood_is_measured(upstream: int) -> None:
    kind = next(each for each in streams.ATTACKS if each.name == "ping")
    found = streams.attack(Peer("upstream", upstream, os.getpid()), kind, streams.Size(frames=10))
    assert found["asked"] == 10
    assert streams.ending(found) == "open"


# -- the page -----------------------------------------------------------------------------------------------------


def rows(name: str, **changes: dict[str, Any]) -> list[dict[str, Any]]:
    outcome = {**asdict(frames.Outcome()), "closed": True, "streams": 500, "asked": 1, "cpu_s": 0.1, "grown_mib": 1.0}
    found: dict[str, dict[str, Any]] = {
        **{case: {"grown_mib": 1.0, "cpu_us_mib": 10.0} for case in streams.SLOW},
        "idle": {"streams": 10, "each": 5000.0},
        **{kind.name: dict(outcome) for kind in streams.ATTACKS},
        "bystander": {"alone_p99_us": 1000.0, "p99_us": 1500.0, "failed": 0, "connections": 9},
    }
    for case, figures in changes.items():
        found[case.replace("_", "-")].update(figures)
    return [{"round": 1, "peer": name, "case": case, **figures} for case, figures in found.items()]


def page(*runs: list[dict[str, Any]]) -> str:
    settings = {"peers": [each[0]["peer"] for each in runs], "size": asdict(streams.Size())}
    result = {"stamp": stamp.environment(()), "settings": settings, "runs": [row for each in runs for row in each]}
    return report.page({"streams": result}, PAGES, TITLES)


def test_what_holds_is_said_to_hold() -> None:
    text = page(rows("graylb"), rows("nginx"))
    assert "**broken**" not in text
    assert "| rapid reset: streams before the close | 500 | ≤ 1,000 | holds |" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"slow_tcp": {"grown_mib": 4.0}}, "| a slow reader, TCP holds it back: MiB | 4.0 | < 4 | **broken** |"),
        ({"idle": {"each": 10_240.0}}, "| an idle stream: bytes | 10,240 | < 10,240 | **broken** |"),
        (
            {"rapid_reset": {"streams": 1001}},
            "| rapid reset: streams before the close | 1,001 | ≤ 1,000 | **broken** |",
        ),
        ({"rapid_reset": {"streams": None}}, "| rapid reset: streams before the close | – | ≤ 1,000 | **broken** |"),
        ({"bystander": {"p99_us": 2100.0}}, "| a bystander's p99 beside it, to alone | 2.10 | ≤ 2.00 | **broken** |"),
        ({"bystander": {"failed": 1}}, "| a bystander's requests that fail | 1 | 0 | **broken** |"),
        (
            {"ping": {"closed": False}},
            "| PING, answers unread: connection, MiB | open, 1.0 | closed, ≤ 10 | **broken** |",
        ),
        (
            {"settings": {"grown_mib": 11.0}},
            "| SETTINGS, answers unread: connection, MiB | closed, 11.0 | closed, ≤ 10 | **broken** |",
        ),
    ],
)
def test_what_does_not_hold_is_said_to_be_broken(changes: dict[str, Any], line: str) -> None:
    text = page(rows("graylb", **changes))
    assert line in text
    assert text.count("**broken**") == 1
