"""What a peer may make us do on one HTTP/2 connection: each abuse ends it, early in a large read; honest use never."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import hpack
import pytest
from h2.events import DataReceived

from graylb._h2 import Probe, turn_clock
from tests.h2_frames import (
    ACK,
    CALM,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Coder,
    frame,
    frames,
    of_kind,
    request,
    reset,
    settings,
)
from tests.test_h2_bodies import OK
from tests.test_h2_heads import exchange, met


def begun(**limits: int) -> tuple[Probe, Coder]:
    server = Probe(True, **limits)
    server.receive(PREFACE + settings())
    server.produce()
    return server, Coder()


def ended(server: Probe, error: int = CALM) -> bool:
    """Whether the connection is over, as its peer is told; nothing more is taken from it."""
    if not server.broken:
        return False
    assert [each.error for each in of_kind(server.produce(), GOAWAY)] == [error]
    assert "finished" in server.state
    assert server.receive(frame(PING, payload=bytes(8))) == -1
    return True


def requests(server: Probe) -> int:
    return sum(event[0] == "request" for event in server.events)


# ---- resets


def test_rapid_reset_in_one_read() -> None:
    """Pitfall 1, CVE-2023-44487: the library queues a GOAWAY and parses on; we stop."""
    server, coder = begun(resets=50)
    server.receive(b"".join(coder.headers(n, request()) + reset(n) for n in range(1, 10001, 2)))
    assert requests(server) == 51
    assert ended(server)


def test_rapid_reset_with_answers_that_nobody_reads() -> None:
    server, coder = begun(resets=500)
    server.react = lambda event: event[0] == "request" and server.respond(event[1], OK)
    server.receive(b"".join(coder.headers(n, request()) + reset(n) for n in range(1, 10001, 2)))
    assert server.queued < 1200
    assert ended(server)


def test_resets_that_we_are_provoked_to_send() -> None:
    """CVE-2025-8671, "made you reset": each request is unlawful, so we reset it."""
    server, coder = begun(resets=50)
    for n in range(1, 2001, 2):
        server.receive(coder.headers(n, request(("Bad", "name"))))
        server.produce()
        if server.receive(b"") < 0:
            break
    assert 50 <= len(server.events) <= 52
    assert "finished" in server.state


def test_provoked_resets_in_one_read() -> None:
    server, coder = begun(streams=20)
    server.receive(b"".join(coder.headers(n, request(("Bad", "name"))) for n in range(1, 10001, 2)))
    assert len(server.events) <= 20
    out = server.produce()
    assert of_kind(out, GOAWAY)
    assert len(out) < 1000
    assert "finished" in server.state


def test_streams_over_the_limit_before_our_settings_are_acknowledged() -> None:
    server, coder = begun(streams=20, resets=50)
    server.receive(b"".join(coder.headers(n, request()) for n in range(1, 10001, 2)))
    assert requests(server) == 20
    assert ended(server)


def test_a_client_may_reset_as_many_streams_as_it_lets_end() -> None:
    server, coder = begun(resets=20)
    for n in range(1, 2001, 4):
        assert server.receive(coder.headers(n, request()) + coder.headers(n + 2, request())) == 0
        server.respond(n, OK, end=True)
        server.produce()
        assert server.receive(reset(n + 2)) == 0
    for n in range(2001, 2101, 2):
        server.receive(coder.headers(n, request()) + reset(n))
    assert ended(server)


def test_resets_are_forgiven_in_ten_seconds() -> None:
    server, coder = begun(resets=50)
    for first in range(1, 1001, 100):
        assert (
            server.receive(b"".join(coder.headers(n, request()) + reset(n) for n in range(first, first + 100, 2))) == 0
        )
        turn_clock(10_000)


def test_an_instance_resets_as_it_likes() -> None:
    client = Probe(False, resets=5)
    client.receive(settings())
    for n in range(1, 100, 2):
        assert client.ask(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", end=True) == n
        client.produce()
        assert client.receive(reset(n)) == 0


# ---- frames that move nothing


def floods() -> dict[str, Callable[[Coder], Iterator[bytes]]]:
    def each(one: bytes, *, opened: bool = False) -> Callable[[Coder], Iterator[bytes]]:
        def make(coder: Coder) -> Iterator[bytes]:
            if opened:
                yield coder.headers(1, request(method="POST"), end=False)
            while True:
                yield one

        return make

    return {
        "PING": each(frame(PING, payload=bytes(8))),
        "SETTINGS": each(settings((4, 65535))),
        "empty SETTINGS": each(settings()),
        "PRIORITY": each(frame(PRIORITY, stream=3, payload=bytes(4) + b"\x10")),
        "WINDOW_UPDATE of the connection": each(frame(WINDOW_UPDATE, payload=(1).to_bytes(4))),
        "WINDOW_UPDATE of a stream": each(frame(WINDOW_UPDATE, stream=1, payload=(1).to_bytes(4)), opened=True),
        "empty DATA": each(frame(DATA, stream=1), opened=True),
        "DATA of padding": each(frame(DATA, 8, 1, b"\x03" + bytes(3)), opened=True),
        "unknown frames": each(frame(0xBE, payload=b"x")),
        "ALTSVC": each(frame(10, payload=bytes(2) + b"x")),
    }


@pytest.mark.parametrize("name", floods())
def test_a_flood_in_one_read_ends_the_connection(name: str) -> None:
    server, coder = begun(control=100)
    make = floods()[name](coder)
    server.receive(b"".join(next(make) for _ in range(5000)))
    assert ended(server)
    assert server.queued == 0


@pytest.mark.parametrize("name", floods())
def test_the_same_frames_at_an_honest_rate_do_not(name: str) -> None:
    server, coder = begun(control=100)
    make = floods()[name](coder)
    for _ in range(20):
        turn_clock(1000)
        assert server.receive(b"".join(next(make) for _ in range(90))) == 0
        server.produce()


def test_who_makes_us_answer_must_read() -> None:
    """At an honest rate, for hours, without reading: the answers that wait are bounded."""
    for one in (frame(PING, payload=bytes(8)), settings()):
        server, _ = begun(control=100)
        for _ in range(200):
            turn_clock(1000)
            if server.receive(one * 90) < 0:
                break
        assert server.queued <= 1100
        assert server.broken


def test_a_download_earns_its_window_updates() -> None:
    """As gRPC does: two updates and a PING for every DATA frame, far more than the burst in no time at all."""
    client, server = met(control=10)
    client.send_headers(1, request(), end_stream=True)
    exchange(client, server)
    server.respond(1, OK)
    for _ in range(300):
        server.more(1, b"x" * 16000)
        for event in client.receive_data(server.produce()):
            if isinstance(event, DataReceived):
                client.increment_flow_control_window(event.flow_controlled_length)
                client.increment_flow_control_window(event.flow_controlled_length, 1)
                client.ping(b"12345678")
        assert server.receive(client.data_to_send()) == 0


def test_many_streams_earn_what_belongs_to_each() -> None:
    server, coder = begun(control=10, streams=1000)
    for n in range(1, 2001, 2):
        update = frame(WINDOW_UPDATE, stream=n, payload=(1000).to_bytes(4))
        assert server.receive(coder.headers(n, request()) + update) == 0


# ---- header blocks


def test_continuation_without_end() -> None:
    """CVE-2024-27316 and others of its kind."""
    server, coder = begun()
    block = coder.block(request(("x", "y" * 40)))
    server.receive(frame(HEADERS, 1, 1, block) + frame(CONTINUATION, 0, 1, coder.block([("x", "y")])) * 5000)
    assert server.broken
    assert of_kind(server.produce(), GOAWAY)
    assert "finished" in server.state
    assert server.events == []


def test_empty_continuations_without_end() -> None:
    server, coder = begun()
    server.receive(frame(HEADERS, 1, 1, coder.block(request())) + frame(CONTINUATION, 0, 1) * 5000)
    assert server.broken


def test_a_few_continuations_are_fine() -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request(("x", "y" * 200)), pieces=60))
    assert requests(server) == 1


def bomb(stream: int, times: int) -> bytes:
    """A header block of few bytes that says a field of 4,000 bytes so many times: an entry of the dynamic table."""
    return frame(HEADERS, 1 | END_HEADERS, stream, plain() + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * times)


def plain() -> bytes:
    """A request that leaves the table as it is."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in request()])


def test_a_header_bomb_ends_the_connection_with_little_held() -> None:
    server, _ = begun()
    server.receive(bomb(1, 10000))
    assert ended(server)
    assert server.held <= 131072
    assert server.events == []


def test_header_blocks_over_the_limit_time_and_again_end_the_connection() -> None:
    server, _ = begun(resets=50)
    server.receive(bomb(1, 20))
    assert server.events == [("rejected", 431)]
    server.produce()
    for n in range(3, 2001, 2):
        server.receive(frame(HEADERS, 1 | END_HEADERS, n, plain() + b"\xbe" * 20))
        server.produce()
        if server.broken:
            break
    assert server.broken
    assert server.events == [("rejected", 431)] * 50


def test_cookies_in_crumbs_count_too() -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request(*[("cookie", "a=b")] * 101)))
    assert server.events == [("rejected", 431)]


def test_a_table_that_the_peer_may_size_is_not_larger_for_it() -> None:
    """SETTINGS_HEADER_TABLE_SIZE of 1 GiB: we still keep 4 KiB for what we send."""
    server = Probe(True)
    server.receive(PREFACE + settings((1, 1 << 30)))
    server.produce()
    coder = Coder()
    heads = []
    for n in range(1, 400, 2):
        server.receive(coder.headers(n, request()))
        server.respond(n, OK[:-2] + b"x-%d: %s\r\n\r\n" % (n, b"v" * 500), end=True)
        heads += of_kind(server.produce(), HEADERS)
    assert server.deflater_bytes <= 4096
    assert len(heads) == 200


def test_settings_of_many_entries_end_the_connection() -> None:
    server, _ = begun()
    server.receive(settings(*[(0x99, 1)] * 2000))
    server.produce()
    assert "finished" in server.state
    assert SETTINGS in [each.kind for each in frames(Probe(True).produce())]


# ---- streams out of turn (RFC 9113 section 5.1)


def test_a_stream_that_was_passed_over_cannot_be_used() -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request()) + coder.headers(9, request()))
    assert server.receive(coder.headers(5, request())) == -1
    assert requests(server) == 2
    assert ended(server, PROTOCOL_ERROR)


def test_streams_may_be_passed_over() -> None:
    server, coder = begun()
    for stream in (5, 7, 101, 103):
        assert server.receive(coder.headers(stream, request())) == 0
    assert requests(server) == 4


LATE = [frame(DATA, stream=1, payload=b"late"), Coder().headers(1, request())]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_a_client_cannot_go_on_with_a_stream_that_it_has_ended(late: bytes, piece: int) -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request()))
    server.respond(1, OK, True)
    server.produce()
    received = frame(PING, ACK, payload=bytes(8)) + late
    for at in range(0, len(received), piece):
        server.receive(received[at : at + piece])
    assert [each.error for each in of_kind(server.produce(), GOAWAY)] == [STREAM_CLOSED]
    assert "finished" in server.state


@pytest.mark.parametrize("late", LATE)
def test_a_client_cannot_go_on_with_a_stream_that_it_has_reset(late: bytes) -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request(method="POST"), end=False) + reset(1) + late + coder.headers(3, request()))
    assert requests(server) == 1
    assert ended(server, STREAM_CLOSED)


def test_a_body_that_was_under_way_when_its_stream_was_reset_here_is_nothing() -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request(method="POST"), end=False))
    server.reset(1, CANCEL)
    server.produce()
    late = frame(DATA, stream=1, payload=b"late") + frame(DATA, END_STREAM, stream=1)
    assert server.receive(late + coder.headers(3, request())) == 0
    assert requests(server) == 2


def test_a_body_that_was_under_way_when_its_answer_was_complete_is_nothing() -> None:
    server, coder = begun()
    server.receive(coder.headers(1, request(method="POST"), end=False))
    server.respond(1, OK, True)
    server.produce()
    assert server.receive(frame(DATA, stream=1, payload=b"late") + coder.headers(3, request())) == 0
    assert requests(server) == 2
