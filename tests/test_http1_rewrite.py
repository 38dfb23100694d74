"""Rewritten heads: canonical, one framing, nothing that belongs to one hop, all else as it came and in its order."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _http1
from tests.fuzz import grammar, peers

Fields = list[tuple[bytes, bytes]]

HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"http2-settings", b"trailer", b"te", b"transfer-encoding",
    b"upgrade",
}  # fmt: skip
PROBES = {b"x-graylb-probe", b"x-graylb-trail"}
PROTECTED = {b"host", b"content-length", b"forwarded", b"via", b"x-service-version", b"baggage", b"expect"}
"""What Connection cannot remove; and every x-forwarded-*."""
LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ((?:[^\x00-\x08\x0a-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?)"
)
PLAIN: dict[str, Any] = {"x_forwarded": "off"}


def request(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a.test") -> bytes:
    return b"\r\n".join([first, host, *lines, b"", b""])


def response(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def read(head: bytes) -> tuple[bytes, Fields]:
    """First line and field lines of a canonical head; fails on one that is not: the slow, obvious reader."""
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    fields = []
    for line in lines:
        found = LINE.fullmatch(line)
        assert found, line
        fields.append((found[1], found[2]))
    return first, fields


def received(head: bytes) -> Fields:
    """Field lines as they came, without the white space around values."""
    lines = (line.partition(b":") for line in head[:-4].split(b"\r\n")[1:])
    return [(name, value.strip(b" \t")) for name, _, value in lines]


def kept(fields: Fields, *, request: bool = True) -> Fields:
    """What goes on to the next hop, by the law in words (RFC 9110 7.6.1, hazards 9, 11, and 13 of requests)."""
    named = {
        token.lower()
        for name, value in fields
        if name.lower() == b"connection"
        for token in re.split(rb"[ \t,]+", value)
    }
    return [
        (name, value)
        for name, value in fields
        if name.lower() not in HOP
        and not (request and (b"_" in name or name.lower().startswith(b"x-graylb-")) and name.lower() not in PROBES)
        and (name.lower() not in named or name.lower() in PROTECTED or name.lower().startswith(b"x-forwarded-"))
        and not (name.lower() == b"content-length" and value.startswith(b"0") and value != b"0")
    ]


def websocket(first: bytes, fields: Fields) -> bool:
    """A lawful handshake (RFC 6455 section 4.1): the only upgrade that goes on."""
    offers = [value.lower() for name, value in fields if name.lower() == b"upgrade"]
    named = [
        token.lower()
        for name, value in fields
        if name.lower() == b"connection"
        for token in re.split(rb"[ \t,]+", value)
    ]
    lawful = first.startswith((b"GET ", b"HTTP/1.1 101 ")) and b"HTTP/1.1" in first
    return lawful and offers == [b"websocket"] and b"upgrade" in named


def added(fields: Fields, *, trailers: bool, tunnel: bool = False) -> Fields:
    """Lines that graylb writes itself behind those it keeps."""
    names = {name.lower(): value for name, value in fields}
    out: Fields = []
    if (
        trailers
        and not tunnel
        and any(name.lower() == b"te" and value.lower() == b"trailers" for name, value in fields)
    ):
        out += [(b"te", b"trailers"), (b"connection", b"te")]
    if tunnel:
        out += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
    if b"transfer-encoding" in names:
        out.append((b"transfer-encoding", b"chunked"))
    length = names.get(b"content-length", b"")
    if length.startswith(b"0") and length != b"0":
        out.append((b"content-length", b"%d" % int(length)))
    return out


# ---- requests --------------------------------------------------------------------------------------------------------


def assert_canonical_request(head: bytes) -> None:
    fields = received(head)
    out = _http1.rewrite_request(head, **PLAIN)
    first, got = read(out)
    method, target, version = head.split(b"\r\n")[0].split(b" ")
    host = re.match(rb"(?i)https?://([^/?]*)", target)
    origin = target[host.end() :] if host else target
    assert first == b"%b %b HTTP/1.1" % (method, origin if origin[:1] in (b"/", b"*") else b"/" + origin)
    wanted = kept(fields)
    if version == b"HTTP/1.0":
        wanted = [(name, value) for name, value in wanted if name.lower() != b"expect"]
    if not any(name.lower() == b"host" for name, _ in fields):
        wanted.insert(0, (b"host", host[1] if host else b""))
    tunnel = websocket(head.split(b"\r\n")[0], fields)
    assert got == wanted + added(fields, trailers=True, tunnel=tunnel)
    framings = [name.lower() for name, _ in got if name.lower() in (b"content-length", b"transfer-encoding")]
    assert len(framings) <= 1
    if host or any(name.lower() == b"host" for name, _ in fields):
        assert_same_again(out, got)


def assert_same_again(out: bytes, got: Fields) -> None:
    """Our scanner and both peers accept it; rewriting it once more changes nothing."""
    assert isinstance(_http1.parse_request(out), dict), out
    for peer in (peers.llhttp, peers.h11_request):
        reading = peer(out)
        assert reading is not None, out
        assert peers.plain(reading.headers) == peers.plain(got)
    again = read(_http1.rewrite_request(out, **PLAIN))[1]
    assert sorted(again) == sorted(got)


@settings(max_examples=150, deadline=None)
@given(grammar.requests())
def test_lawful_requests(head: bytes) -> None:
    assert_canonical_request(head)


@settings(max_examples=150, deadline=None)
@given(grammar.damaged(grammar.requests()))
def test_whatever_is_accepted_goes_on_canonically(head: bytes) -> None:
    found = _http1.parse_request(head)
    if isinstance(found, dict) and found["method"] in peers.METHODS:
        assert_canonical_request(head[: found["used"]])
    elif not isinstance(found, dict):
        with pytest.raises(ValueError, match="not a request head"):
            _http1.rewrite_request(head)


def test_a_request_in_full() -> None:
    head = request(
        b"Connection: X-Gone, content-length, host, x-forwarded-port, close", b"X-Gone: 1", b"Keep-Alive: 5",
        b"TE: gzip",
        b"te: Trailers", b"Upgrade-Insecure-Requests: 1", b"X-Forwarded-Port:  80", b"Cookie:a=b ", b"Under_score: 1",
        b"Trailer: x", b"Proxy-Connection: x", b"Content-Length: 0010", first=b"POST http://a.test?q HTTP/1.1",
    )  # fmt: skip
    assert _http1.rewrite_request(head, address="1.2.3.4", via=True) == (
        b"POST /?q HTTP/1.1\r\nHost: a.test\r\nUpgrade-Insecure-Requests: 1\r\nX-Forwarded-Port: 80\r\nCookie: a=b\r\n"
        b"te: trailers\r\nconnection: te\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: http\r\n"
        b"x-forwarded-host: a.test\r\n"
        b"via: 1.1 graylb\r\ncontent-length: 10\r\n\r\n"
    )


def test_connection_cannot_remove_any_x_forwarded_header() -> None:
    """Hazard 11. Once only those that graylb writes itself were safe."""
    for name in (b"X-Forwarded-Port", b"x-forwarded-prefix", b"X-Forwarded-For", b"X-Forwarded-Server"):
        out = _http1.rewrite_request(request(b"Connection: " + name, name + b": 1"), **PLAIN)
        assert read(out)[1] == [(b"Host", b"a.test"), (name, b"1")]
    near = _http1.rewrite_request(request(b"Connection: x-forwarded-", b"X-Forwarded-: 1"), **PLAIN)
    assert read(near)[1] == [(b"Host", b"a.test")]


@pytest.mark.parametrize(
    "name", [b"X_Y", b"_", b"Content_Length", b"Transfer_Encoding", b"x-graylb-a_b", b"X-Graylb-_"]
)
def test_names_with_underscores_go_nowhere(name: bytes) -> None:
    """Hazard 13. Once those that begin like graylb's own went on."""
    assert read(_http1.rewrite_request(request(name + b": 1"), **PLAIN))[1] == [(b"Host", b"a.test")]


@pytest.mark.parametrize("value", [b"trailers", b"Trailers"])
def test_only_te_trailers_survives(value: bytes) -> None:
    wanted = [(b"Host", b"a.test"), (b"te", b"trailers"), (b"connection", b"te")]
    assert read(_http1.rewrite_request(request(b"TE: " + value, b"TE: trailers"), **PLAIN))[1] == wanted
    assert read(_http1.rewrite_request(request(b"TE: gzip, trailers"), **PLAIN))[1] == wanted[:1]


FORWARDED = (
    b"X-Forwarded-For: 9.9.9.9",
    b"x-forwarded-for: 8.8.8.8",
    b"X-Forwarded-Proto: https",
    b"X-Forwarded-Host: z",
    b"Forwarded: for=z",
)


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        ("off", [*FORWARDED]),
        (
            "append",
            [
                b"X-Forwarded-Proto: https", b"X-Forwarded-Host: z", b"Forwarded: for=z",
                b"x-forwarded-for: 9.9.9.9, 8.8.8.8, 1.2.3.4",
            ],
        ),
        (
            "replace",
            [
                b"Forwarded: for=z", b"x-forwarded-for: 1.2.3.4", b"x-forwarded-proto: http",
                b"x-forwarded-host: a.test",
            ],
        ),
    ],
)  # fmt: skip
def test_x_forwarded(mode: Any, lines: list[bytes]) -> None:
    out = _http1.rewrite_request(request(*FORWARDED), address="1.2.3.4", x_forwarded=mode)
    assert out == request(*lines)


@pytest.mark.parametrize(
    ("mode", "address", "line"),
    [
        ("append", "1.2.3.4", b'forwarded: for=z, for=1.2.3.4;host="a.test";proto=http'),
        ("replace", "1.2.3.4", b'forwarded: for=1.2.3.4;host="a.test";proto=http'),
        ("replace", "::1", b'forwarded: for="[::1]";host="a.test";proto=http'),
    ],
)
def test_forwarded(mode: Any, address: str, line: bytes) -> None:
    """RFC 7239."""
    out = _http1.rewrite_request(request(b"Forwarded: for=z"), address=address, x_forwarded="off", forwarded=mode)
    assert out == request(line)


def test_a_request_of_http_1_0() -> None:
    """No Expect goes on (RFC 9110 10.1.1), `via` tells the version, and a missing host is said to be empty."""
    head = b"GET /x HTTP/1.0\r\nExpect: 100-continue\r\nX: y\r\n\r\n"
    assert _http1.rewrite_request(head, x_forwarded="off", via=True) == (
        b"GET /x HTTP/1.1\r\nhost: \r\nX: y\r\nvia: 1.0 graylb\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("path", "strip", "prefix", "wanted"),
    [
        (b"/api/x?q", b"/api", b"", b"/x?q"),
        (b"/api", b"/api", b"", b"/"),
        (b"/api?q", b"/api", b"/", b"/?q"),
        (b"/api/x", b"/api", b"/", b"/x"),
        (b"/api/x", b"/api", b"/v2", b"/v2/x"),
        (b"/api/x", b"/api/", b"/v2/", b"/v2/x"),
        (b"/api//x", b"/api", b"", b"//x"),
        (b"/x", b"", b"/v2", b"/v2/x"),
        (b"/", b"/", b"/v2", b"/v2"),
        (b"http://a.test", b"/", b"/v2", b"/v2"),
    ],
)
def test_a_routes_rewrite(path: bytes, strip: bytes, prefix: bytes, wanted: bytes) -> None:
    head = request(first=b"GET " + path + b" HTTP/1.1")
    assert _http1.rewrite_request(head, strip=strip, prefix=prefix, **PLAIN) == request(
        first=b"GET " + wanted + b" HTTP/1.1"
    )


def test_no_more_than_the_path_is_stripped() -> None:
    with pytest.raises(ValueError, match="longer than the path"):
        _http1.rewrite_request(request(), strip=b"/a")


# ---- responses -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(grammar.damaged(grammar.responses()), st.integers(0, 2))
def test_responses(data: bytes, connection: int) -> None:
    found = _http1.parse_response(data)
    if not isinstance(found, dict):
        with pytest.raises(ValueError, match="not a response head"):
            _http1.rewrite_response(data)
        return
    head = data[: found["used"]]
    fields = received(head)
    out = _http1.rewrite_response(head, connection=connection)
    first, _, rest = out.partition(b"\r\n")
    _, got = read(b"\r\n" + rest)
    assert first == b"HTTP/1.1 %d %b" % (found["status"], found["reason"])
    said = [[], [(b"connection", b"close")], [(b"connection", b"keep-alive")]][connection]
    assert got == kept(fields, request=False) + said + added(fields, trailers=False)
    assert isinstance(_http1.parse_response(out), dict), out
    if found["status"] >= 200:
        reading = peers.h11_response(out)
        assert reading is not None, out
        assert peers.plain(reading.headers) == peers.plain(got)


def test_a_websocket_handshake_has_one_connection_line() -> None:
    """Beside `TE: trailers` it had two, `te` and `upgrade`, and a server that reads one of them saw no handshake."""
    head = (
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: TE, Upgrade\r\n"
        b"TE: trailers\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
    )
    out = _http1.rewrite_request(head, x_forwarded="off")
    assert out.endswith(b"Sec-WebSocket-Key: k\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    assert out.lower().count(b"connection:") == 1
    assert b"te: " not in out


def test_a_response_in_full() -> None:
    head = response(
        b"Connection: X-Gone, keep-alive", b"X-Gone: 1", b"Keep-Alive: 5", b"Set-Cookie:a", b"Set-Cookie: b ",
        b"Content-Length: 007",
        b"X-Graylb-Rule: theirs", b"Upgrade: h2c", first=b"HTTP/1.0 404",
    )  # fmt: skip
    assert _http1.rewrite_response(head, connection=1, via=True, extra=b"x-graylb-rule: ours\r\n") == (
        b"HTTP/1.1 404 \r\nSet-Cookie: a\r\nSet-Cookie: b\r\nvia: 1.0 graylb\r\nx-graylb-rule: ours\r\n"
        b"connection: close\r\ncontent-length: 7\r\n\r\n"
    )
    assert b"X-Graylb-Rule: theirs\r\n" in _http1.rewrite_response(head)


def test_probes_and_their_trails_go_through() -> None:
    """They were dropped with what else calls itself graylb's, so `graylb doctor` saw no service behind a graylb."""
    head = response(b"X-Graylb-Trail: 0;users;v2", b"X-Graylb-Train: theirs", b"Content-Length: 0")
    out = _http1.rewrite_response(head, extra=b"x-graylb-rule: ours\r\n")
    assert b"\r\nX-Graylb-Trail: 0;users;v2\r\n" in out
    assert b"theirs" not in out
    out = _http1.rewrite_request(b"GET / HTTP/1.1\r\nHost: a\r\nX-Graylb-Probe: 1\r\nX-Graylb-Prose: theirs\r\n\r\n")
    assert b"\r\nX-Graylb-Probe: 1\r\n" in out
    assert b"theirs" not in out
