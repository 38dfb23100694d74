"""Heads and trailers of HTTP/2 as HTTP/1.1 text: another implementation agrees; nothing unlawful becomes a line."""

from __future__ import annotations

import string
from collections.abc import Callable

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import InformationalResponseReceived, RequestReceived, ResponseReceived, TrailersReceived
from hypothesis import given
from hypothesis import strategies as st

from graylb import _http1
from graylb._h2 import Probe
from tests.h2_frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    RST_STREAM,
    Coder,
    Fields,
    frame,
    frames,
    of_kind,
    request,
    reset,
    settings,
)

LOOSE = H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
NAMES = st.text(string.ascii_lowercase + string.digits + "-!#$%&'*+.^_`|~", min_size=1, max_size=12).filter(
    lambda name: name not in {"te", "host", "cookie", "connection", "upgrade", "keep-alive"}
)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\t"), max_size=40).map(str.strip)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def met(**limits: int) -> tuple[H2Connection, Probe]:
    """A client of another implementation and our server that know each other's settings."""
    client, server = H2Connection(LOOSE), Probe(True, **limits)
    client.initiate_connection()
    exchange(client, server)
    return client, server


def exchange(peer: H2Connection, probe: Probe) -> list[object]:
    """Everything that either has to say; the peer's events."""
    events: list[object] = []
    while True:
        out, answer = peer.data_to_send(), probe.produce()
        if not out and not answer:
            return events
        if out:
            probe.receive(out)
        if answer:
            events += peer.receive_data(answer)


def told(fields: Fields, **limits: int) -> tuple[Probe, list[object]]:
    """What one request of these fields does; straight from HPACK, for `h2` would not send some of them."""
    server = Probe(True, **limits)
    server.receive(PREFACE + settings() + Coder().headers(1, fields))
    return server, server.events


def lines(text: bytes) -> list[tuple[str, str]]:
    """Field lines of a head."""
    assert text.endswith(b"\r\n\r\n")
    pairs = (line.split(": ", 1) for line in text[:-4].decode("latin-1").split("\r\n")[1:])
    return [(name, value) for name, value in pairs]


def authority(text: str) -> tuple[str, str]:
    return ":authority", text


# ---- requests


def test_a_request_is_told_as_text() -> None:
    client, server = met()
    client.send_headers(1, request(("x-a", "b"), method="POST", path="/a?b"))
    exchange(client, server)
    text = b"POST /a?b HTTP/1.1\r\nhost: a.test\r\nx-a: b\r\ntransfer-encoding: chunked\r\n\r\n"
    assert server.events == [("request", 1, text, False)]
    assert server.bound == [1]


@pytest.mark.parametrize(
    ("fields", "end", "framing"),
    [
        ([], True, []),
        ([], False, [("transfer-encoding", "chunked")]),
        ([("content-length", "5")], False, [("content-length", "5")]),
        ([("content-length", "0")], True, [("content-length", "0")]),
    ],
)
def test_framing_is_what_http1_needs(fields: list[tuple[str, str]], end: bool, framing: list[tuple[str, str]]) -> None:
    client, server = met()
    client.send_headers(1, request(*fields, method="POST"), end_stream=end)
    exchange(client, server)
    ((_, _, text, ended),) = server.events
    assert ended is end
    assert lines(text) == [("host", "a.test"), *framing]


def test_cookies_are_joined_and_stay_with_their_request() -> None:
    client, server = met()
    client.send_headers(
        1, request(("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")), end_stream=True
    )
    client.send_headers(3, request(("x", "z")), end_stream=True)
    exchange(client, server)
    assert [lines(event[2]) for event in server.events] == [
        [("host", "a.test"), ("x", "y"), ("cookie", "a=1; b=2; c=3")],
        [("host", "a.test"), ("x", "z")],
    ]


def test_cookies_of_a_request_that_broke_off_do_not_reach_the_next() -> None:
    server, coder = Probe(True), Coder()
    server.receive(PREFACE + settings() + coder.headers(1, request(("cookie", "secret=1"), ("X-Bad", "name"))))
    server.receive(coder.headers(3, request()))
    assert server.events == [("rejected", 400), ("request", 3, b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", True)]


@given(fields=FIELDS, path=st.text(string.ascii_letters + "/%?&=.:@!$'()*+,;[]~-_", max_size=30))
def test_our_scanner_reads_the_text_as_the_client_meant_it(fields: list[tuple[str, str]], path: str) -> None:
    client, server = met()
    fields = [(name, value) for name, value in fields if name not in {"content-length", "transfer-encoding", "expect"}]
    client.send_headers(1, request(*fields, path="/" + path), end_stream=True)
    exchange(client, server)
    ((_, _, text, _),) = server.events
    found = _http1.parse_request(text)
    assert isinstance(found, dict)
    assert found["used"] == len(text)
    assert (found["method"], found["host"]) == (b"GET", b"a.test")
    target = found["path"] + (b"?" + found["query"] if found["query"] is not None else b"")
    assert target.decode() == "/" + path
    assert [(name.decode(), value.decode()) for name, value, _ in found["headers"]] == [("host", "a.test"), *fields]


UNLAWFUL = {
    "line feed in a value": request(("x", "a\nb")),
    "carriage return in a value": request(("x", "a\rb: c")),
    "NUL in a value": request(("x", "a\0")),
    "DEL in a value": request(("x", "a\x7f")),
    "white space around a value": request(("x", " a ")),
    "upper case in a name": request(("X", "a")),
    "space in a name": request(("x y", "a")),
    "colon in a name": request(("x:y", "a")),
    "line feed in a name": request(("x\ny", "a")),
    "an empty name": request(("", "a")),
    "connection": request(("connection", "close")),
    "transfer-encoding": request(("transfer-encoding", "chunked")),
    "keep-alive": request(("keep-alive", "x")),
    "proxy-connection": request(("proxy-connection", "x")),
    "upgrade": request(("upgrade", "websocket")),
    "http2-settings": request(("http2-settings", "x")),
    "te of more than trailers": request(("te", "gzip, trailers")),
    "another host": request(("host", "b.test")),
    "two lengths": request(("content-length", "0"), ("content-length", "0")),
    "a length that is none": request(("content-length", "+1")),
    "a length beyond any": request(("content-length", "9" * 20)),
    "a length and no body": request(("content-length", "1")),
    "a host twice": [*request()[:2], request()[3], ("host", "a.test"), ("host", "a.test")],
    "a long name with a capital": request(("x-name-of-more-than-sixteeN", "a")),
    "a control byte in a long value": request(("x", "a" * 20 + "\x01")),
    "a space in the path": request(path="/a b"),
    "a line in the path": request(path="/ HTTP/1.1\r\nx: y"),
    "a path without a slash": request(path="a"),
    "an absolute path": request(path="http://b.test/"),
    "an empty path": request(path=""),
    "the asterisk without OPTIONS": request(path="*"),
    "a space in the method": request(method="GET /x"),
    "another scheme": [(":method", "GET"), (":scheme", "ftp"), (":authority", "a.test"), (":path", "/")],
    "no scheme": [(":method", "GET"), (":authority", "a.test"), (":path", "/")],
    "no method": [(":scheme", "http"), (":authority", "a.test"), (":path", "/")],
    "no path": [(":method", "GET"), (":scheme", "http"), (":authority", "a.test")],
    "no authority": [(":method", "GET"), (":scheme", "http"), (":path", "/")],
    "a line in the authority": [(":method", "GET"), (":scheme", "http"), (":authority", "a\r\nx: y"), (":path", "/")],
    "a pseudo-header field twice": [*request(), (":path", "/x")],
    "one that nobody knows": [(":method", "GET"), (":unknown", "x"), *request()[1:]],
    "one behind a field": [*request()[:3], ("x", "y"), (":path", "/")],
    "a response's": [(":status", "200"), *request()],
    "CONNECT": [(":method", "CONNECT"), (":authority", "a.test:443")],
    "extended CONNECT": [(":method", "CONNECT"), (":protocol", "websocket"), *request()[1:]],
}


@pytest.mark.parametrize("fields", UNLAWFUL.values(), ids=UNLAWFUL.keys())
def test_unlawful_requests_are_answered_or_reset_without_the_engine(fields: Fields) -> None:
    server, events = told(fields)
    ((name, status),) = events
    assert (name, status) in (("rejected", 400), ("rejected", 405))
    answer = server.produce()
    assert of_kind(answer, HEADERS) or [each.error for each in of_kind(answer, RST_STREAM)] == [PROTOCOL_ERROR]
    assert not of_kind(answer, GOAWAY)
    assert server.n_streams == 0


def test_connect_is_405() -> None:
    assert told(UNLAWFUL["CONNECT"])[1] == [("rejected", 405)]


LAWFUL = {
    "the same host": (request(("host", "A.test")), b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"),
    "host alone": (
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "b.test")],
        b"GET / HTTP/1.1\r\nhost: b.test\r\n\r\n",
    ),
    "te: trailers": (request(("te", "trailers")), b"GET / HTTP/1.1\r\nhost: a.test\r\nte: trailers\r\n\r\n"),
    "OPTIONS *": (request(method="OPTIONS", path="*"), b"OPTIONS * HTTP/1.1\r\nhost: a.test\r\n\r\n"),
    "an empty value": (request(("x", "")), b"GET / HTTP/1.1\r\nhost: a.test\r\nx: \r\n\r\n"),
    "bytes beyond ASCII": (request(("x", "é")), "GET / HTTP/1.1\r\nhost: a.test\r\nx: é\r\n\r\n".encode()),
}


@pytest.mark.parametrize(("fields", "text"), LAWFUL.values(), ids=LAWFUL.keys())
def test_lawful_requests_that_look_odd(fields: Fields, text: bytes) -> None:
    assert told(fields)[1] == [("request", 1, text, True)]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 40])
def test_one_odd_byte_is_found_wherever_it_stands(size: int) -> None:
    def odd(with_text: Callable[[str], Fields], byte: str) -> list[object]:
        texts = ["a" * at + byte + "a" * (size - at - 1) for at in range(size)]
        return [text for text in texts if told(with_text(text))[1] != [("rejected", 400)]]

    plain = "a" * size
    assert [name for name, *_ in told(request((plain, plain), path="/" + plain))[1]] == ["request"]
    assert [name for name, *_ in told([*request()[:2], authority(plain), request()[3]])[1]] == ["request"]
    assert odd(lambda text: request((text, "x")), "A") == []
    assert odd(lambda text: request((text, "x")), "\x7f") == []
    assert odd(lambda text: request(("x", text)), "\x01") == []
    assert odd(lambda text: request(("x", text)), "\x7f") == []
    assert odd(lambda text: request(path="/" + text), " ") == []
    assert odd(lambda text: request(path="/" + text), "#") == []
    assert odd(lambda text: [*request()[:2], authority(text), request()[3]], "\xe9") == []


KNOWN = [
    ("accept", "*/*"), ("user-agent", "x"), ("via", "2 a"), ("forwarded", "for=1"), ("x-forwarded-for", "1"),
    ("x-forwarded-host", "b"), ("x-forwarded-proto", "http"), ("x-forwarded-client-cert", "c"), ("baggage", "a=b"),
    ("trailer", "t"), ("expect", "100-continue"), ("expect", "more"), ("te", "trailers"), ("cookie", "a=b"),
    ("content-type", "application/grpc+x"), ("content-type", "application/grpc-web"), ("content-type", "text/html"),
    ("content-length", "0"), ("content-length", "000"), ("grpc-timeout", "1S"), ("grpc-status", "0"), ("x-graylb-", ""),
    ("x-graylb-probe", "1"), ("x-service-version", "v2"), ("sec-ch-ua-mobile", "?1"), ("an_underscore", "x"),
    ("a_b_c_d_e_f_g_h_i_j_k", "x"), ("a+plus", "x"), ("x", ""),
]  # fmt: skip


@pytest.mark.parametrize("field", KNOWN, ids=lambda field: "=".join(field))
def test_a_field_is_told_as_the_scanner_would_find_it(field: tuple[str, str]) -> None:
    fields = [field, ("x", "y"), field] if field[0] != "content-length" else [field, ("x", "y")]
    assert [name for name, *_ in told(request(*fields))[1]] == ["request"]
    assert [name for name, *_ in replied([(":status", "200"), *fields], end=False).events] == ["response"]


def test_heads_are_told_with_their_own_lines_however_many_come_at_once() -> None:
    server, coder = Probe(True), Coder()
    asked = [request(*((f"x{number}-{i}", "v" * number) for i in range(number))) for number in range(40)]
    server.receive(PREFACE + settings() + b"".join(coder.headers(2 * n + 1, each) for n, each in enumerate(asked)))
    assert [name for name, *_ in server.events] == ["request"] * 40
    assert [lines(event[2])[1:] for event in server.events] == [each[4:] for each in asked]


# ---- pitfall 3: libnghttp2 does not hold a peer to MAX_HEADER_LIST_SIZE


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ([("x", "a" * 850)], "request"),
        ([("x", "a" * 1100)], "rejected"),
        ([(f"x{i}", "") for i in range(20)], "request"),
        ([(f"x{i}", "") for i in range(21)], "rejected"),
    ],
)
def test_heads_over_the_limit_are_431(more: list[tuple[str, str]], verdict: str) -> None:
    server, events = told(request(*more), head_bytes=1024, headers=20)
    assert events[0][0] == verdict
    if verdict == "rejected":
        assert events == [("rejected", 431)]
        (answer,) = of_kind(server.produce(), HEADERS)
        assert hpack.Decoder().decode(answer.payload) == [(":status", "431")]
        server.receive(frame(HEADERS, 5, 3, Coder().block(request())))
        assert server.events[-1][0] == "request", "the connection goes on"


def test_trailers_over_the_limit_end_their_stream() -> None:
    server, coder = Probe(True, head_bytes=1024), Coder()
    server.receive(PREFACE + settings() + coder.headers(1, request(method="POST"), end=False))
    server.receive(coder.headers(1, [("x", "a" * 2000)]))
    assert [each.error for each in of_kind(server.produce(), RST_STREAM)] == [PROTOCOL_ERROR]
    assert server.events[1:] == [("closed", 1, PROTOCOL_ERROR)]


# ---- requests of one receive


def test_requests_of_one_receive_are_told_in_order_with_their_bodies() -> None:
    """More than are told at once; one is refused, one reset, one has two pieces of body, one says too little."""
    server, coder = Probe(True), Coder()
    out = PREFACE + settings()
    told: list[tuple[str, int]] = []
    for stream in range(1, 81, 2):
        fields = [("content-length", "3")] if stream == 9 else [("Bad", "name")] if stream == 11 else []
        out += coder.headers(stream, request(*fields, method="POST"), end=False)
        pieces = [b"ab", b"cd"] if stream == 7 else [b"abcd"] if stream == 9 else [b"b%d" % stream]
        for i, piece in enumerate(pieces):
            out += frame(DATA, END_STREAM if i == len(pieces) - 1 else 0, stream, piece)
        if stream == 21:
            out += reset(21)
        told += [("rejected", 0)] if stream == 11 else [("request", stream)]
        if stream not in (9, 11):
            told += [("data", stream)] * len(pieces) + [("end", stream)]
        if stream == 21:
            told += [("closed", 21)]
    server.receive(out)
    seen = [(event[0], 0 if event[0] == "rejected" else event[1]) for event in server.events]
    assert seen == told
    assert {event[2] for event in server.events if event[0] == "data" and event[1] == 79} == {b"b79"}
    server.produce()
    assert server.events[-1] == ("closed", 9, PROTOCOL_ERROR)
    assert server.held == 0


# ---- responses


def answered(*texts: bytes, end: bool = True) -> list[object]:
    client, server = met()
    client.send_headers(1, request(), end_stream=True)
    exchange(client, server)
    for text in texts[:-1]:
        assert server.inform(1, text) == 0
    assert server.respond(1, texts[-1], end) == 0
    return exchange(client, server)


@given(fields=FIELDS, status=st.integers(200, 599))
def test_a_response_reaches_the_client_as_meant(fields: list[tuple[str, str]], status: int) -> None:
    text = (
        f"HTTP/1.1 {status} What Ever\r\n" + "".join(f"{name.title()}: {value}\r\n" for name, value in fields) + "\r\n"
    )
    fields = [(name, value) for name, value in fields if name not in {"transfer-encoding", "proxy-connection"}]
    events = [each for each in answered(text.encode()) if isinstance(each, ResponseReceived)]
    want = [(":status", str(status)), *fields]
    assert [(name.decode(), value.decode()) for name, value in events[0].headers] == want


def test_fields_of_the_connection_stay_behind() -> None:
    gone = (
        b"Connection: close\r\nKeep-Alive: x\r\nProxy-Connection: x\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\n"
    )
    events = answered(b"HTTP/1.1 200 OK\r\n" + gone + b"Upgrade: h2c\r\nTE: a\r\nX:y\r\n\r\n")
    (event,) = [each for each in events if isinstance(each, ResponseReceived)]
    assert event.headers == [(b":status", b"200"), (b"x", b"y")]


def test_interim_responses_come_before_the_final_one() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    events = answered(b"HTTP/1.1 100 \r\n\r\n", hint, b"HTTP/1.1 204 \r\n\r\n")
    kinds = [type(event) for event in events[:3]]
    assert kinds == [InformationalResponseReceived, InformationalResponseReceived, ResponseReceived]


def test_a_text_that_is_no_response_is_not_sent() -> None:
    client, server = met()
    client.send_headers(1, request(), end_stream=True)
    exchange(client, server)
    assert server.respond(1, b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n") == -1
    assert server.respond(1, b"nonsense") == -1
    assert server.inform(1, b"nonsense") == -1
    many = b"".join(b"x: y\r\n" for _ in range(400))
    assert server.respond(1, b"HTTP/1.1 200 OK\r\n" + many + b"\r\n") == -1


# ---- asking, as a client


def asked(text: bytes, **options: bool) -> list[object]:
    server, client = H2Connection(H2Configuration(client_side=False)), Probe(False)
    server.initiate_connection()
    assert client.ask(text, **options) == 1
    return exchange(server, client)


@given(fields=FIELDS, path=st.text(string.ascii_letters + "/?&=*", max_size=20), https=st.booleans())
def test_a_request_reaches_the_server_as_meant(fields: list[tuple[str, str]], path: str, https: bool) -> None:
    head = "".join(f"{name.title()}: {value}\r\n" for name, value in fields)
    fields = [(name, value) for name, value in fields if name not in {"transfer-encoding", "proxy-connection"}]
    events = asked(f"PUT /{path} HTTP/1.1\r\n{head}Host: a.test:8080\r\n\r\n".encode(), end=True, https=https)
    (event,) = [event for event in events if isinstance(event, RequestReceived)]
    pseudo = [(":authority", "a.test:8080"), (":method", "PUT"), (":scheme", "https" if https else "http")]
    got = [(name.decode(), value.decode()) for name, value in event.headers]
    assert got == [*pseudo, (":path", "/" + path), *fields]
    assert event.stream_ended is not None


def test_a_text_that_is_no_request_is_not_sent() -> None:
    client = Probe(False)
    for text in (b"", b"GET", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
        assert client.ask(text) == -1
    assert client.n_streams == 0
    assert client.state == ["dirty"]


def replied(*heads: list[tuple[str, str]], end: bool = True) -> Probe:
    """A request of ours, and these header blocks as its response."""
    client, coder = Probe(False), Coder()
    assert client.ask(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", end=True) == 1
    client.produce()
    out = settings()
    for i, fields in enumerate(heads):
        out += coder.headers(1, fields, end=end and i == len(heads) - 1, pieces=9)
    client.receive(out)
    return client


def test_the_final_response_behind_a_1xx_is_no_trailers() -> None:
    """Pitfall 6: it comes in the category of trailers."""
    client = replied(
        [(":status", "100")], [(":status", "103"), ("link", "x")], [(":status", "200"), ("a", "b")], [("t", "1")]
    )
    assert client.events == [
        ("response", 1, b"HTTP/1.1 100 \r\n\r\n", False),
        ("response", 1, b"HTTP/1.1 103 \r\nlink: x\r\n\r\n", False),
        ("response", 1, b"HTTP/1.1 200 \r\na: b\r\ntransfer-encoding: chunked\r\n\r\n", False),
        ("end", 1, b"t: 1\r\n\r\n"),
        ("closed", 1, NO_ERROR),
    ]


def test_a_response_that_is_only_trailers() -> None:
    """Pitfall 7: what gRPC sends for an error; its one header block ends the stream."""
    client = replied([(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")])
    text = b"HTTP/1.1 200 \r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\n\r\n"
    assert client.events == [("response", 1, text, True), ("closed", 1, NO_ERROR)]


@pytest.mark.parametrize(
    "head",
    [
        [(":status", "101")],
        [(":status", "20")],
        [(":status", "2x0")],
        [("a", "b")],
        [(":status", "200"), ("a", "b\r\nc: d")],
        [(":status", "200"), ("connection", "close")],
        [(":status", "200"), ("A", "b")],
        [(":status", "200"), (":status", "200")],
        [("a", "b"), (":status", "200")],
        [(":status", "200"), ("te", "gzip")],
        [(":status", "200"), ("content-length", "1")],
        [(":status", "204"), ("content-length", "1")],
        [(":status", "103"), ("content-length", "0")],
        [(":status", "200"), *[("a", "b" * 60000)] * 3],
        [(":status", "200"), *[("a", "b")] * 255],
    ],
    ids=lambda head: repr(head)[:40],
)
def test_unlawful_responses_end_their_stream(head: list[tuple[str, str]]) -> None:
    client = replied(head)
    client.produce()
    assert client.events == [("closed", 1, PROTOCOL_ERROR)]
    assert client.n_streams == 0


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_are_not_chunked(status: int) -> None:
    client = replied([(":status", str(status))], end=False)
    assert client.events == [("response", 1, b"HTTP/1.1 %d \r\n\r\n" % status, False)]


# ---- trailers


def test_trailers_both_ways() -> None:
    client, server = met()
    client.send_headers(1, request(method="POST"))
    client.send_headers(1, [("x-sum", "1"), ("content-length", "0"), ("host", "b")], end_stream=True)
    exchange(client, server)
    assert server.events[1:] == [("end", 1, b"x-sum: 1\r\n\r\n")], "what frames or routes is no trailer"
    server.respond(1, b"HTTP/1.1 200 OK\r\n\r\n")
    server.more(1, b"abc", True, b"Grpc-Status: 0\r\nConnection: x\r\nGrpc-Message: \r\n\r\n")
    (event,) = [event for event in exchange(client, server) if isinstance(event, TrailersReceived)]
    assert event.headers == [(b"grpc-status", b"0"), (b"grpc-message", b"")]
    assert server.events[-1] == ("closed", 1, NO_ERROR)


def test_trailers_without_a_body_follow_the_head_at_once() -> None:
    """Pitfall 7."""
    client, server = met()
    client.send_headers(1, request(), end_stream=True)
    exchange(client, server)
    server.respond(1, b"HTTP/1.1 200 OK\r\n\r\n")
    server.more(1, eof=True, trailers=b"grpc-status: 0\r\n\r\n")
    assert [(each.kind, each.flags & END_STREAM) for each in frames(server.produce())] == [(HEADERS, 0), (HEADERS, 1)]


def test_trailers_with_pseudo_header_fields_end_their_stream() -> None:
    server, coder = Probe(True), Coder()
    server.receive(PREFACE + settings() + coder.headers(1, request(method="POST"), end=False))
    server.receive(coder.headers(1, [(":path", "/x")]))
    server.produce()
    assert server.events[1:] == [("closed", 1, PROTOCOL_ERROR)]


# ---- what passes here has room in the scanner


def test_an_instance_may_say_more_than_a_client() -> None:
    client = replied([(":status", "200"), *[("a", "b" * 100)] * 253, ("c", "d" * 60000)], end=False)
    ((name, _, text, _),) = client.events
    assert name == "response"
    assert isinstance(_http1.parse_response(text, 256), dict)
    assert len(text) > 80000


@pytest.mark.parametrize("end", [True, False])
def test_a_head_at_its_limits_is_one_for_the_scanner(end: bool) -> None:
    server, coder = Probe(True, headers=256, head_bytes=16384), Coder()
    fields = [*[("a", "b")] * 252, ("cookie", "x"), ("z", "")]
    size = 64 + sum(len(name) + len(value) + 4 for name, value in request(*fields))
    server.receive(PREFACE + settings() + coder.headers(1, request(*fields[:-1], ("z", "y" * (16384 - size))), end=end))
    ((name, _, text, _),) = server.events
    assert name == "request"
    assert 16384 - 128 < len(text) <= 16384
    assert isinstance(_http1.parse_request(text, 256), dict)
