"""Bodies, windows, resets and the end of HTTP/2 connections, and the pitfalls of libnghttp2 there, by their numbers."""

from __future__ import annotations

import gc

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb._h2 import Probe
from tests.h2_frames import (
    CANCEL,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Coder,
    frame,
    frames,
    of_kind,
    request,
)
from tests.h2_frames import reset as reset_frame
from tests.h2_frames import settings as settings_frame
from tests.test_h2_heads import exchange, met

OK = b"HTTP/1.1 200 OK\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a.test\r\n\r\n"


def opened(method: str = "POST", *, end: bool = False, **limits: int) -> tuple[H2Connection, Probe]:
    """One request's head has come."""
    client, server = met(**limits)
    client.send_headers(1, request(method=method), end_stream=end)
    exchange(client, server)
    return client, server


def body(events: list[object]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, DataReceived))


def pair(**limits: int) -> tuple[Probe, Probe]:
    """A client and a server of ours that know each other's settings."""
    client, server = Probe(False, **limits), Probe(True, **limits)
    meet(client, server)
    return client, server


def meet(client: Probe, server: Probe) -> None:
    while True:
        out, answer = client.produce(), server.produce()
        if not out and not answer:
            return
        server.receive(out)
        client.receive(answer)


def data(probe: Probe, stream: int = 1) -> bytes:
    return b"".join(event[2] for event in probe.events if event[:2] == ("data", stream))


# ---- sending


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=40000), max_size=6),
    room=st.sampled_from([17408, 17500, 32768, 65536]),
    trailers=st.sampled_from([b"", b"a: b\r\n\r\n", b"\r\n"]),
)
def test_a_body_in_pieces_comes_out_whole(pieces: list[bytes], room: int, trailers: bytes) -> None:
    """Pitfall 9: one call of the library would emit many frames, whatever the room; what comes out is whole frames."""
    client, server = opened("GET", end=True)
    server.respond(1, OK)
    events: list[object] = []
    for piece in pieces:
        server.more(1, piece)
        out = server.produce(room, 1)
        assert len(out) <= room
        frames(out)
        events += client.receive_data(out)
        for event in events:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                client.acknowledge_received_data(event.flow_controlled_length, 1)
                event.flow_controlled_length = 0
        server.receive(client.data_to_send())
    server.more(1, eof=True, trailers=trailers)
    while out := server.produce(room):
        got = client.receive_data(out)
        for event in got:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                client.acknowledge_received_data(event.flow_controlled_length, 1)
        events += got
        server.receive(client.data_to_send())
    assert body(events) == b"".join(pieces)
    assert isinstance(events[-1], StreamEnded)
    assert server.events[-1] == ("closed", 1, NO_ERROR)


def test_a_stalled_body_goes_on_when_told() -> None:
    client, server = opened("GET", end=True)
    server.respond(1, OK)
    assert exchange(client, server)
    server.more(1, b"late", quiet=True)
    assert server.produce() == b"", "nobody has said that there is more"
    server.more(1)
    assert body(exchange(client, server)) == b"late"


def test_a_body_whose_end_is_known_has_no_empty_frame() -> None:
    _, server = opened("GET", end=True)
    server.respond(1, OK)
    server.more(1, b"abc", eof=True)
    kinds = [(each.kind, each.flags & END_STREAM) for each in frames(server.produce())]
    assert kinds == [(HEADERS, 0), (DATA, END_STREAM)]


def test_never_more_is_sent_than_the_window_holds() -> None:
    client, server = opened("GET", end=True)
    server.respond(1, OK)
    server.more(1, b"x" * 200_000, eof=True)
    out = server.produce()
    assert sum(len(each.payload) for each in of_kind(out, DATA)) == 65535
    assert server.pending(1) == 200_000 - 65535
    client.receive_data(out)
    client.increment_flow_control_window(10, 1)
    client.increment_flow_control_window(10)
    server.receive(client.data_to_send())
    assert sum(len(each.payload) for each in of_kind(server.produce(), DATA)) == 10
    assert server.pending(1) == 200_000 - 65545


def test_a_window_that_settings_shrink_below_what_is_out_waits() -> None:
    client, server = opened("GET", end=True)
    server.respond(1, OK)
    server.more(1, b"x" * 30_000)
    client.receive_data(server.produce())
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    server.receive(client.data_to_send())
    server.more(1, b"x" * 10)
    assert not of_kind(server.produce(), DATA)


def test_streams_take_turns() -> None:
    client, server = met()
    for stream in (1, 3):
        client.send_headers(stream, request(), end_stream=True)
    exchange(client, server)
    for stream in (1, 3):
        server.respond(stream, OK)
        server.more(stream, b"x" * 30_000, eof=True)
    order = [each.stream for each in of_kind(server.produce(), DATA)]
    assert set(order[:2]) == {1, 3}


# ---- receiving: windows (pitfall 10)


def test_a_stream_that_is_not_read_does_not_stall_the_others() -> None:
    client, server = met(window=65535, connection_window=65535)
    server.eager = False
    for stream in (1, 3):
        client.send_headers(stream, request(method="POST"))
    exchange(client, server)
    for _ in range(4):
        client.send_data(1, b"x" * 16383)
    exchange(client, server)
    assert server.owed(1) == 4 * 16383
    assert client.local_flow_control_window(1) < 10, "this stream's window is used up"
    assert client.local_flow_control_window(3) >= 65535 // 2, "and the connection's is not"
    client.send_data(3, b"y" * 16383)
    exchange(client, server)
    assert data(server, 3) == b"y" * 16383


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 16384), st.integers(0, 30000)), max_size=30), st.sampled_from([20000, 65536]))
def test_a_window_opens_as_far_as_its_bytes_are_used(steps: list[tuple[int, int]], window: int) -> None:
    client, server = opened(window=window)
    server.eager = False
    for size, used in steps:
        size = min(size, client.local_flow_control_window(1))
        if size:
            client.send_data(1, b"x" * size)
            exchange(client, server)
        server.consume(1, used)
        exchange(client, server)
        untold = window - client.local_flow_control_window(1) - server.owed(1)
        assert 0 <= untold <= window // 2 + 1, "used and not yet announced"
    server.consume(1, 1 << 40)
    exchange(client, server)
    assert server.owed(1) == 0
    assert client.local_flow_control_window(1) >= window // 2 - 1


def test_our_windows_are_those_of_the_configuration() -> None:
    client, server = met(window=100_000, connection_window=300_000, streams=7)
    assert client.remote_settings.initial_window_size == 100_000
    assert client.remote_settings.max_concurrent_streams == 7
    assert client.outbound_flow_control_window == 300_000
    probe = Probe(False, window=100_000, connection_window=300_000)
    (told,) = of_kind(probe.produce(), SETTINGS)
    assert bytes([0, 2, 0, 0, 0, 0]) in told.payload, "nothing is to be pushed"
    del server


def test_who_sends_more_than_the_window_holds_is_cut_off() -> None:
    _, server = opened(window=20000)
    server.eager = False
    for _ in range(2):
        server.receive(frame(DATA, 0, 1, b"x" * 16384))
    server.produce()
    assert server.events[-1] == ("closed", 1, 3)


# ---- lengths


@pytest.mark.parametrize(("sent", "error"), [(4, PROTOCOL_ERROR), (6, PROTOCOL_ERROR), (5, None)])
def test_a_body_is_as_long_as_it_says(sent: int, error: int | None) -> None:
    server = Probe(True)
    head = Coder().headers(1, request(("content-length", "5"), method="POST"), end=False)
    server.receive(PREFACE + settings_frame() + head + frame(DATA, END_STREAM, 1, b"x" * sent))
    server.produce()
    last = server.events[-1]
    assert last == (("end", 1, b"") if error is None else ("closed", 1, error))


@pytest.mark.parametrize(("sent", "error"), [(4, PROTOCOL_ERROR), (6, PROTOCOL_ERROR), (5, NO_ERROR)])
def test_a_response_is_as_long_as_it_says(sent: int, error: int) -> None:
    client = Probe(False)
    client.ask(GET, end=True)
    client.produce()
    head = Coder().headers(1, [(":status", "200"), ("content-length", "5")], end=False)
    client.receive(settings_frame() + head + frame(DATA, END_STREAM, 1, b"x" * sent))
    client.produce()
    assert client.events[-1] == ("closed", 1, error)


def test_the_answer_to_head_says_a_length_and_has_no_body() -> None:
    client, server = pair()
    client.ask(b"HEAD / HTTP/1.1\r\nhost: a.test\r\n\r\n", end=True)
    meet(client, server)
    server.respond(1, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", end=True)
    meet(client, server)
    assert client.events == [
        ("response", 1, b"HTTP/1.1 200 \r\ncontent-length: 100\r\n\r\n", True),
        ("closed", 1, NO_ERROR),
    ]


# ---- resets (pitfall 5)


def test_an_early_answer_is_sent_whole_before_the_request_is_stopped() -> None:
    _, server = opened()
    server.respond(1, b"HTTP/1.1 413 Too Large\r\n\r\n")
    server.more(1, b"x" * 40000, eof=True)
    out = frames(server.produce())
    assert sum(len(each.payload) for each in out if each.kind == DATA) == 40000
    assert (out[-1].kind, out[-1].error) == (RST_STREAM, NO_ERROR)
    assert out[-2].flags & END_STREAM
    assert server.events[-1] == ("closed", 1, NO_ERROR)
    server.receive(frame(DATA, 0, 1, b"late"))
    assert server.produce() == b""
    assert server.state == []


def test_no_reset_follows_an_answer_to_a_complete_request() -> None:
    client, server = opened("GET", end=True)
    server.respond(1, OK, end=True)
    assert not of_kind(server.produce(), RST_STREAM)
    del client


def test_a_reset_of_ours_tells_the_peer_and_not_the_engine() -> None:
    client, server = opened()
    server.reset(1, CANCEL)
    events = exchange(client, server)
    assert [event.error_code for event in events if isinstance(event, StreamReset)] == [CANCEL]
    assert [event[0] for event in server.events] == ["request"]
    assert server.bound == []


def test_a_reset_while_a_frame_waits_for_room_leaves_nothing_of_its_stream() -> None:
    _, server = opened("GET", end=True)
    server.respond(1, OK)
    server.more(1, b"x" * 60000)
    server.produce(17408, 2)
    server.reset(1, CANCEL)
    out = frames(server.produce(17408))
    assert [each.kind for each in out if each.stream == 1][-1] == RST_STREAM
    assert sum(len(each.payload) for each in out) < 20000


def test_a_peers_reset_is_told_with_its_error() -> None:
    _, server = opened()
    server.receive(reset_frame(1, CANCEL))
    assert server.events[-1] == ("closed", 1, CANCEL)
    assert server.n_streams == 0


def test_a_server_may_refuse_a_stream() -> None:
    client, server = met()
    server.refuses = REFUSED_STREAM
    client.send_headers(1, request(), end_stream=True)
    (event,) = [event for event in exchange(client, server) if isinstance(event, StreamReset)]
    assert event.error_code == REFUSED_STREAM
    assert server.n_streams == 0


# ---- from within hooks (pitfall 4: the library's callbacks may submit, resume, consume and reset, on any session)


def test_hooks_submit_to_their_own_session_and_to_others() -> None:
    proxy, upstream = pair()
    client, front = H2Connection(H2Configuration(client_side=True)), Probe(True)
    client.initiate_connection()

    def ahead(event: tuple[object, ...]) -> None:
        name, stream, *rest = event
        if name == "request":
            proxy.ask(rest[0], end=rest[1])
        elif name == "data":
            proxy.more(stream, rest[0])
        elif name == "end":
            proxy.more(stream, eof=True)

    def back(event: tuple[object, ...]) -> None:
        name, stream, *rest = event
        if name == "response":
            front.respond(stream, rest[0])
        elif name == "data":
            front.more(stream, rest[0])
        elif name == "end":
            front.more(stream, eof=True, trailers=rest[0])

    def answer(event: tuple[object, ...]) -> None:
        if event[0] == "end":
            upstream.respond(event[1], OK)
            upstream.more(event[1], data(upstream, event[1]), eof=True, trailers=b"x: y\r\n\r\n")

    front.react, proxy.react, upstream.react = ahead, back, answer
    for stream in range(1, 21, 2):
        client.send_headers(stream, request(method="POST"))
        client.send_data(stream, b"%d" % stream * 100, end_stream=True)
    events: list[object] = []
    for _ in range(4):
        events += exchange(client, front)
        meet(proxy, upstream)
    for stream in range(1, 21, 2):
        assert body([e for e in events if getattr(e, "stream_id", 0) == stream]) == b"%d" % stream * 100
    assert front.n_streams == proxy.n_streams == upstream.n_streams == 0


@pytest.mark.parametrize("name", ["request", "data", "end", "drained"])
def test_a_stream_may_be_reset_in_any_hook(name: str) -> None:
    client, server = met()

    def react(event: tuple[object, ...]) -> None:
        if event[0] == "request" and name == "drained":
            server.respond(1, OK)
            server.more(1, b"abc", eof=True, trailers=b"x: y\r\n\r\n")
        if event[0] == name and server.n_streams:
            server.reset(1, CANCEL)

    server.react = react
    client.send_headers(1, request(method="POST"))
    client.send_data(1, b"abc", end_stream=True)
    exchange(client, server)
    assert name in [event[0] for event in server.events]
    assert server.n_streams == 0
    server.react = None
    client.send_headers(3, request(), end_stream=True)
    exchange(client, server)
    assert server.events[-1][:2] == ("request", 3)


# ---- how many streams (pitfall 11)


def test_a_peer_has_a_hundred_streams_until_it_says() -> None:
    client = Probe(False)
    assert client.max_streams == 100
    client.receive(settings_frame((3, 7)))
    assert client.max_streams == 7
    client.receive(settings_frame((3, 0xFFFFFFFF)))
    assert client.max_streams == 0x7FFFFFFF
    client.receive(settings_frame((4, 1000)))
    assert client.max_streams == 0x7FFFFFFF
    silent = Probe(False)
    silent.receive(settings_frame())
    assert silent.max_streams == 0x7FFFFFFF


def test_streams_are_counted_as_they_come_and_go() -> None:
    client, server = pair()
    for n in range(1, 6):
        client.ask(GET, end=True)
        assert client.n_streams == n
    meet(client, server)
    assert sorted(server.bound) == [1, 3, 5, 7, 9]
    client.reset(5, CANCEL)
    server.respond(1, OK, end=True)
    meet(client, server)
    assert sorted(client.bound) == sorted(server.bound) == [3, 7, 9]
    assert client.n_streams == 3


# ---- going away (pitfalls 12, 13, 14)


def test_was_sent_is_true_once_the_head_is_out() -> None:
    client = Probe(False)
    stream = client.ask(POST)
    assert not client.was_sent(stream)
    client.produce()
    assert client.was_sent(stream)


def test_streams_that_a_peer_did_not_process_are_told_as_refused() -> None:
    client = Probe(False)
    for _ in range(3):
        client.ask(GET, end=True)
    client.produce()
    late = client.ask(GET, end=True)
    assert not client.was_sent(late)
    client.receive(settings_frame() + frame(GOAWAY, payload=(3).to_bytes(4) + bytes(4)))
    client.produce()
    assert client.state == ["full"]
    assert sorted(client.events) == [("closed", 5, REFUSED_STREAM), ("closed", 7, REFUSED_STREAM), ("leaving",)]
    assert client.ask(GET, end=True) == -1
    coder = Coder()
    client.receive(coder.headers(1, [(":status", "204")]) + coder.headers(3, [(":status", "204")]))
    assert "finished" in client.state


def test_a_request_that_is_taken_back_before_it_left_never_leaves() -> None:
    client, server = pair()
    client.reset(client.ask(GET, end=True), CANCEL)
    meet(client, server)
    assert server.events == client.events == []
    assert client.n_streams == 0


def test_a_connection_whose_ids_are_used_up_takes_no_more() -> None:
    client = Probe(False)
    client.use_up_ids()
    assert client.ask(GET, end=True) == 0x7FFFFFFF
    assert client.state == ["dirty"]
    assert client.ask(GET, end=True) == -1
    assert "full" in client.state


def test_a_server_leaves_in_two_steps() -> None:
    client, server = pair()
    client.ask(GET, end=True)
    meet(client, server)
    server.go_away(False)
    server.ping()
    late = client.ask(GET, end=True)  # on its way when the first GOAWAY comes
    out, answer = client.produce(), server.produce()
    assert [int.from_bytes(each.payload[:4]) for each in of_kind(answer, GOAWAY)] == [0x7FFFFFFF]
    client.receive(answer)
    assert client.state == ["dirty", "full"] or "full" in client.state
    server.receive(out)
    assert server.events[-1][:2] == ("request", late), "a request that crossed with it is served"
    assert "acked" not in server.state
    meet(client, server)
    assert "acked" in server.state
    server.go_away(True)
    (last,) = of_kind(server.produce(), GOAWAY)
    assert (int.from_bytes(last.payload[:4]), last.error) == (late, NO_ERROR)
    for stream in (1, late):
        assert "finished" not in server.state
        server.respond(stream, OK, end=True)
        meet(client, server)
    assert "finished" in server.state


def test_a_connection_is_not_over_while_a_frame_waits_for_room() -> None:
    """Pitfall 13: neither reading nor writing, and yet bytes of ours are left."""
    _, server = opened("GET", end=True)
    server.go_away(True)
    server.respond(1, b"HTTP/1.1 200 OK\r\nx: %s\r\n\r\n" % (b"a~" * 12000), end=True)
    assert len(server.produce(17408, 1)) < 17408
    assert "finished" not in server.state
    server.produce(17408)
    assert "finished" in server.state


def test_a_session_is_freed_with_its_streams_open() -> None:
    """Pitfall 14: nobody is told of them."""
    _, server = opened()
    events = server.events
    before = list(events)
    del server
    gc.collect()
    assert events == before


def test_an_unlawful_frame_ends_the_connection_with_its_reason() -> None:
    _, server = opened()
    server.receive(frame(DATA, 0, 0, b"x"))
    assert [each.error for each in of_kind(server.produce(), GOAWAY)] == [PROTOCOL_ERROR]
    assert server.state == ["ending", "finished"]
    assert server.receive(frame(PING, payload=bytes(8))) == -1


def test_what_is_no_preface_ends_the_connection() -> None:
    server = Probe(True)
    assert server.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == -1
    assert [each.error for each in of_kind(server.produce(), GOAWAY)] == [PROTOCOL_ERROR]
    assert "finished" in server.state


# ---- the same bytes, cut otherwise


def conversation() -> bytes:
    coder = Coder()
    out = PREFACE + settings_frame((4, 70000))
    out += coder.headers(1, request(("cookie", "a"), ("cookie", "b")), pieces=3)
    out += coder.headers(3, request(("x", "y" * 300), method="POST"), end=False)
    out += frame(DATA, 8, 3, b"\x05" + b"hello" * 300 + bytes(5))
    out += frame(PING, payload=b"12345678") + frame(WINDOW_UPDATE, payload=(5).to_bytes(4))
    out += coder.headers(3, [("t", "1")], pieces=2)
    out += coder.headers(5, request(("Bad", "name")))
    out += coder.headers(7, request(method="POST"), end=False)
    out += reset_frame(7)
    return out + coder.headers(9, request(("x", "y" * 3000)), pieces=4)


def joined(events: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    out: list[tuple[object, ...]] = []
    for event in events:
        if event[0] == "data" and out and out[-1][:2] == event[:2]:
            out[-1] = (*event[:2], out[-1][2] + event[2])
        else:
            out.append(event)
    return out


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=60))
def test_bytes_cut_anywhere_say_the_same(cuts: list[int]) -> None:
    whole, cut = Probe(True), Probe(True)
    text = conversation()
    whole.receive(text)
    at = 0
    for size in cuts:
        cut.receive(text[at : at + size])
        at += size
    cut.receive(text[at:])
    assert joined(cut.events) == joined(whole.events)
    assert len(joined(whole.events)) == 8
    kinds = [(each.kind, each.stream) for each in frames(whole.produce())]
    assert [(each.kind, each.stream) for each in frames(cut.produce())] == kinds


def test_bytes_one_at_a_time_say_the_same() -> None:
    whole, cut = Probe(True), Probe(True)
    text = conversation()
    whole.receive(text)
    for i in range(len(text)):
        assert cut.receive(text[i : i + 1]) == 0
    assert joined(cut.events) == joined(whole.events)
