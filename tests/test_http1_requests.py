"""The request scanner: every rule of the law with its code, and its agreement with llhttp and h11."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graylb import _http1
from graylb._gate import Gate
from graylb.errors import BY_REASON
from tests.fuzz import grammar, peers
from tests.integration.payloads import PAYLOADS, Payload

CODES = {
    "BAD_REQUEST": "bad-request", "BAD_HOST": "bad-host", "BAD_FRAMING": "bad-framing", "BAD_TARGET": "bad-target",
    "CONNECT": "connect-refused", "URI_TOO_LONG": "uri-too-long", "EXPECTATION": "bad-expectation",
    "TOO_LARGE": "head-too-large", "CODING": "unknown-coding", "VERSION": "bad-version",
}  # fmt: skip
SCANNED = {BY_REASON[reason].code for reason in CODES.values()}


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes | None = b"a.test") -> bytes:
    hosts = [] if host is None else [b"Host: " + host]
    return b"\r\n".join([first, *hosts, *lines, b"", b""])


def parsed(head: bytes, **more: Any) -> dict[str, Any]:
    found = _http1.parse_request(head, **more)
    assert isinstance(found, dict), (head, found)
    return found


def assert_refused(head: bytes, reason: str) -> None:
    """Refused with the code of this reason."""
    assert _http1.parse_request(head) == BY_REASON[reason].code, head


def test_the_scanners_codes_are_those_of_errors() -> None:
    source = (Path(__file__).parents[1] / "graylb" / "_http1.pyx").read_text()
    found = {name: int(code) for name, code in re.findall(r"^    E_([A-Z_]+) = (\d+)$", source, re.MULTILINE)}
    assert found == {name: BY_REASON[reason].code for name, reason in CODES.items()}


# ---- what a head is --------------------------------------------------------------------------------------------------


def test_a_whole_head() -> None:
    lines = b"HOST: A.test:8080\r\nX-One:  1 \r\nContent-Length: 5\r\nConnection: close, x\r\n\r\n"
    head = b"POST /a/b?c=d HTTP/1.1\r\n" + lines
    found = parsed(head + b"hello")
    wanted = {
        "used": len(head), "minor": 1, "method": b"POST", "path": b"/a/b", "query": b"c=d", "host": b"A.test:8080",
        "headers": [
            (b"HOST", b"A.test:8080", True), (b"X-One", b"1", True), (b"Content-Length", b"5", True),
            (b"Connection", b"close, x", False),
        ],
        "chunked": False, "content_length": 5, "close": True, "keep_alive": False, "grpc": False,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        (b"/", b"/", None, b"a.test"),
        (b"/?", b"/", b"", b"a.test"),
        (b"/a?b?c", b"/a", b"b?c", b"a.test"),
        (b"//b.test/c", b"//b.test/c", None, b"a.test"),
        (b"http://a.test", b"/", None, b"a.test"),
        (b"http://A.test/x", b"/x", None, b"A.test"),
        (b"HTTPS://a.test?x=/y", b"/", b"x=/y", b"a.test"),
        (b"http://a.test//", b"//", None, b"a.test"),
    ],
)
def test_targets(target: bytes, path: bytes, query: bytes | None, host: bytes) -> None:
    found = parsed(get(first=b"GET " + target + b" HTTP/1.1"))
    assert (found["path"], found["query"], found["host"]) == (path, query, host)


def test_the_asterisk_is_for_options_only() -> None:
    assert parsed(get(first=b"OPTIONS * HTTP/1.1"))["path"] == b"*"
    assert_refused(get(first=b"GET * HTTP/1.1"), "bad-target")
    assert_refused(get(first=b"OPTIONS ** HTTP/1.1"), "bad-target")


@pytest.mark.parametrize(
    "target",
    [
        b"foo", b"?x", b"*", b"a.test:80", b"ftp://a.test/", b"http:/a.test/", b"http://", b"http:///x",
        b"http://u@a.test/",
        b"http://u:p@a.test/", b"http://a.test:x/", b"http://a.test:65536/", b"http://[::1/", b"javascript:x",
        b"http:a.test",
        b"https://", b"http://a%2etest/",
    ],
)  # fmt: skip
def test_targets_that_are_none(target: bytes) -> None:
    assert_refused(get(first=b"GET " + target + b" HTTP/1.1"), "bad-target")


@pytest.mark.parametrize(
    "target", [b"/#", b"/a#b", b"/\x00", b"/\x7f", b"/\x80", b"/a\tb", b"/\n", b"", b"/ /", b"/\r"]
)
def test_bytes_that_no_target_has(target: bytes) -> None:
    assert_refused(get(first=b"GET " + target + b" HTTP/1.1"), "bad-request")


def test_the_absolute_form_equals_the_host() -> None:
    """Hazard 4."""
    for host, target in (
        (b"a.test", b"http://b.test/"),
        (b"a.test", b"http://a.test:80/"),
        (b"a.test:80", b"http://a.test"),
    ):
        assert_refused(get(first=b"GET " + target + b" HTTP/1.1", host=host), "bad-host")
    assert_refused(get(first=b"GET http://a.test/ HTTP/1.1", host=None), "bad-host")
    assert parsed(get(first=b"GET http://a.test/ HTTP/1.0", host=None))["host"] == b"a.test"


@pytest.mark.parametrize("first", [b"CONNECT a.test:443 HTTP/1.1", b"CONNECT / HTTP/1.1", b"CONNECT * HTTP/1.0"])
def test_connect(first: bytes) -> None:
    """Hazard 1, with and without a body."""
    assert_refused(get(first=first), "connect-refused")
    assert_refused(get(b"Content-Length: 5", first=first), "connect-refused")


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3.1", b"HTTP/1.x"])
def test_versions(version: bytes) -> None:
    """Hazard 5."""
    assert_refused(get(first=b"GET / " + version), "bad-version")


@pytest.mark.parametrize(
    "first",
    [
        b"GET / RTSP/1.0", b"GET / ICE/1.0", b"GET / http/1.1", b"GET / HTTP/2", b"GET / HTTP/1.10", b"GET /", b"GET",
        b"GET / HTTP/1.1 ", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET\t/ HTTP/1.1", b" GET / HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"G\xc4T / HTTP/1.1", b"/ HTTP/1.1", b": / HTTP/1.1", b"\0GET / HTTP/1.1", b"HTTP/1.1 200 OK",
        b"M" * 33 + b" / HTTP/1.1",
        b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\n",
    ],
)  # fmt: skip
def test_request_lines_that_are_none(first: bytes) -> None:
    assert_refused(get(b"X: " + b"y" * 20, first=first), "bad-request")


# ---- host ------------------------------------------------------------------------------------------------------------


def test_one_host() -> None:
    """Hazard 3. HTTP/1.0 may leave it out; it routes as the empty host."""
    assert_refused(get(host=None), "bad-host")
    assert_refused(get(b"Host: a.test"), "bad-host")
    assert_refused(get(b"hOST: b.test", first=b"GET / HTTP/1.0"), "bad-host")
    assert parsed(get(first=b"GET / HTTP/1.0", host=None))["host"] == b""


@pytest.mark.parametrize(
    "host", [b"a", b"A-b.c_d.", b"1.2.3.4", b"a:", b"a:0", b"a:65535", b"[::1]", b"[::ffff:1.2.3.4]:80", b"x" * 255]
)
def test_hosts(host: bytes) -> None:
    assert parsed(get(host=host))["host"] == host


@pytest.mark.parametrize(
    "host",
    [
        b"", b"a b", b"a,b", b"u@a", b"a/", b"a?x", b"a#x", b"a\\", b"a:x", b"a:65536", b"a:000080", b"a:-1",
        b"a:1:2", b":80", b"::1",
        b"[]", b"[:]", b"[::1", b"[::1]x", b"[::g]", b"[::1%25eth0]", b"a%41", b"\xff", b'"a"', b"<a>", b"http://a",
        b"x" * 256,
    ],
)  # fmt: skip
def test_hosts_that_are_none(host: bytes) -> None:
    assert_refused(get(host=host), "bad-host")


# ---- field lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"X : y", b"X\t: y", b"X", b": y", b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X: a\0b",
        b"X: a\x01b", b"X: \x7f",
        b"X\0: y", b"X\xe4: y", b"X(: y", b"X Y: z", b"X: a\rb", b"X: y\r", b"X\r: y", b"X: a\nb", b"X: y\n",
        b"X\n: y", b"X: \x0b",
        b"X@: y", b'"X": y', b"X: " + b"y" * 40 + b"\n", b"X: " + b"y" * 17 + b"\x1f" + b"y" * 9,
    ],
)  # fmt: skip
def test_lines_that_are_none(line: bytes) -> None:
    assert_refused(get(line, b"Last: 1"), "bad-request")


@pytest.mark.parametrize("where", range(40))
def test_a_control_byte_anywhere_in_a_value(where: int) -> None:
    """The scan goes by 16 bytes at a time: every place of a block and of what is left behind the last one."""
    for byte in range(256):
        value = b"v" * where + bytes([byte]) + b"v" * (39 - where)
        found = _http1.parse_request(get(b"X: " + value, b"Y: z"))
        lawful = byte == 9 or (byte >= 32 and byte != 127)
        if lawful:
            assert isinstance(found, dict)
            assert found["headers"][1] == (b"X", value.strip(b" \t"), True)
        else:
            assert found == BY_REASON["bad-request"].code, byte


def test_every_byte_of_a_name() -> None:
    token = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for byte in set(range(256)) - {ord(":")}:
        found = _http1.parse_request(get(b"X" + bytes([byte]) + b"Y: z"))
        assert isinstance(found, dict) == (byte in token), byte


@pytest.mark.parametrize("limit", [1, 5, 100, 256])
def test_the_limit_counts_lines(limit: int) -> None:
    """Hazard 2."""
    lines = [b"X: y"] * (limit - 1)
    assert len(parsed(get(*lines), limit=limit)["headers"]) == limit
    assert _http1.parse_request(get(*lines, b"X: y"), limit=limit) == BY_REASON["head-too-large"].code


def test_no_limit_exceeds_the_compiled_one() -> None:
    assert _http1.parse_request(get(*[b"X: y"] * 256), limit=100000) == BY_REASON["head-too-large"].code


# ---- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length"), [(b"0", 0), (b"5", 5), (b"0005", 5), (b"0" * 60 + b"7", 7), (b"1" + b"0" * 17, 10**17)]
)
def test_lengths(value: bytes, length: int) -> None:
    assert parsed(get(b"Content-Length: " + value))["content_length"] == length


@pytest.mark.parametrize(
    "value",
    [
        b"", b"5, 5", b"5,6", b"+5", b"-5", b"0x5", b"5 5", b"5;", b"1e1", b"5.0", b"5_0", b"\xd9\xa5",
        b"9223372036854775808",
        b"18446744073709551621", b"9" * 40, b"5\xff",
    ],
)  # fmt: skip
def test_lengths_that_are_none(value: bytes) -> None:
    assert_refused(get(b"Content-Length: " + value), "bad-framing")


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 0", b"content-length: 5"),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
        (b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED"),
    ],
)
def test_two_framings(lines: tuple[bytes, ...]) -> None:
    assert_refused(get(*lines), "bad-framing")


@pytest.mark.parametrize(
    "value",
    [
        b"", b"gzip", b"identity", b"xchunked", b"chunkedx", b"chunked, chunked", b"gzip, chunked", b"chunked;q=1",
        b'"chunked"',
        b"chunked,", b",chunked", b"chunked\xa0", b"chu nked",
    ],
)  # fmt: skip
def test_codings_that_are_not_chunked(value: bytes) -> None:
    """Hazard 7."""
    assert_refused(get(b"Transfer-Encoding: " + value), "unknown-coding")


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"\tchunked \t"])
def test_chunked(value: bytes) -> None:
    found = parsed(get(b"Transfer-Encoding:" + value))
    assert found["chunked"]
    assert found["content_length"] is None


def test_no_coding_in_http_1_0() -> None:
    """Hazard 6."""
    assert_refused(get(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"), "bad-framing")


@pytest.mark.parametrize("body", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("lines", [(b"Connection: upgrade", b"Upgrade: websocket"), (b"Upgrade: h2c",)])
def test_an_upgrade_has_no_body(lines: tuple[bytes, ...], body: bytes) -> None:
    """Hazard 1."""
    assert_refused(get(*lines, body), "bad-framing")
    assert_refused(get(body, *lines), "bad-framing")
    assert not any(kept for name, _, kept in parsed(get(*lines))["headers"] if name != b"Host")


def test_expectations() -> None:
    """Hazard 12."""
    assert parsed(get(b"Expect: 100-Continue"))
    for value in (b"", b"200-ok", b"100-continue, x", b"100-continue;x", b"100-continue\xa0"):
        assert_refused(get(b"Expect: " + value), "bad-expectation")


@pytest.mark.parametrize(
    ("value", "close", "keep_alive"),
    [
        (b"close", True, False), (b"Keep-Alive", False, True), (b"x,\tclose ,keep-alive", True, True),
        (b"", False, False),
        (b",, ,", False, False), (b"closed", False, False), (b"clos", False, False), (b"xclose", False, False),
    ],
)  # fmt: skip
def test_connection_options(value: bytes, close: bool, keep_alive: bool) -> None:
    found = parsed(get(b"Connection: " + value))
    assert (found["close"], found["keep_alive"]) == (close, keep_alive)


@pytest.mark.parametrize(
    ("lines", "grpc"),
    [
        ((b"Content-Type: application/grpc",), True),
        ((b"Content-Type: Application/gRPC+proto",), True),
        ((b"Content-Type: application/json",), False),
        ((b"Content-Type: application/json", b"Content-Type: application/grpc"), False),
        ((), False),
    ],
)
def test_grpc(lines: tuple[bytes, ...], grpc: bool) -> None:
    assert parsed(get(*lines))["grpc"] is grpc


# ---- any bytes -------------------------------------------------------------------------------------------------------


def assert_lawful(data: bytes) -> None:
    """A dict, None or a code; every part of what is accepted is there to be seen in the bytes."""
    found = _http1.parse_request(data)
    if found is None or isinstance(found, int):
        assert found is None or found in SCANNED
        return
    head = data[: found["used"]]
    assert head.endswith(b"\r\n\r\n")
    assert head.startswith(found["method"] + b" ")
    assert _http1.parse_request(head) == found, "bytes behind the head changed it"
    for name, value, _ in found["headers"]:
        assert name in head
        assert value in head
    for end in range(len(head)):
        assert _http1.parse_request(head[:end]) is None, head[:end]


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert_lawful(data)


@settings(max_examples=150, deadline=None)
@given(grammar.damaged(grammar.requests()), st.binary(max_size=20))
def test_nearly_heads(head: bytes, more: bytes) -> None:
    assert_lawful(head + more)


@settings(max_examples=150, deadline=None)
@given(grammar.requests())
def test_lawful_heads_are_accepted(head: bytes) -> None:
    assert parsed(head)["used"] == len(head)


# ---- two peers -------------------------------------------------------------------------------------------------------

BODIES = {"none": b"", "chunked": b"5\r\nhello\r\n0\r\n\r\n"}


def body_of(found: dict[str, Any]) -> tuple[bytes, bytes]:
    """A body of the framing that we saw: as sent, and as meant."""
    if found["chunked"]:
        return BODIES["chunked"], b"hello"
    return (b"x" * found["content_length"],) * 2 if found["content_length"] else (b"", b"")


def assert_agrees(data: bytes) -> None:
    """What we accept, llhttp and h11 accept, and frame it the same way, to the byte.

    The scanner alone is laxer than llhttp, which every head must pass too, in the method (any token, where llhttp knows
    a list) and in a tab behind `chunked`. h11 is stricter in one that does not matter to us, for lengths are written
    anew: more than 20 digits.
    """
    found = _http1.parse_request(data)
    if not isinstance(found, dict) or found["method"] not in peers.METHODS:
        return
    head = data[: found["used"]]
    if (found["content_length"] or 0) > 100000 or re.search(rb"chunked *\t", head, re.IGNORECASE):
        return
    sent, meant = body_of(found)
    headers = peers.plain([(name, value) for name, value, _ in found["headers"]])
    wide = any(name == b"content-length" and len(value) > 20 for name, value in headers)
    for name, peer in (("llhttp", peers.llhttp), ("h11", peers.h11_request)):
        if name == "h11" and wide:
            continue
        reading = peer(head + sent)
        assert reading is not None, (name, head)
        assert (reading.heads, reading.method, reading.version) == (1, found["method"], f"1.{found['minor']}"), name
        assert reading.target == head.split(b" ")[1], name
        assert peers.plain(reading.headers) == headers, name
        assert (reading.body, reading.ended) == (meant, True), name
        if sent:
            cut = peer((head + sent)[:-1])
            assert cut is not None, name
            assert not cut.ended, (name, "ends sooner than we think")


@settings(max_examples=150, deadline=None)
@given(grammar.requests())
def test_peers_agree_on_lawful_heads(head: bytes) -> None:
    assert_agrees(head)


@settings(max_examples=150, deadline=None)
@given(grammar.damaged(grammar.requests()))
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0000000000000000000000005\r\n\r\n")
def test_peers_agree_on_what_we_accept(head: bytes) -> None:
    assert_agrees(head)


def test_methods_that_only_the_scanner_takes() -> None:
    """The engine's gate is llhttp: it refuses them there."""
    for method in (b"FOO", b"get", b"!"):
        head = get(first=method + b" / HTTP/1.1")
        assert parsed(head)["method"] == method
        assert peers.llhttp(head) is None


def test_a_tab_behind_the_coding_passes_only_the_scanner() -> None:
    head = get(b"Transfer-Encoding: chunked\t")
    assert parsed(head)["chunked"]
    assert peers.llhttp(head) is None


# what llhttp accepts and we refuse: the hazards that its users must act on
STRICTER = {
    "upgrade with a body": get(b"Connection: upgrade", b"Upgrade: x", b"Content-Length: 5"),
    "no host": get(host=None),
    "two hosts": get(b"Host: b"),
    "a host that is none": get(host=b"u@a b"),
    "another authority": get(first=b"GET http://b.test/ HTTP/1.1"),
    "userinfo": get(first=b"GET http://u@a.test/ HTTP/1.1"),
    "CONNECT": get(first=b"CONNECT a.test:443 HTTP/1.1"),
    "HTTP/0.9": get(first=b"GET / HTTP/0.9"),
    "HTTP/2.0": get(first=b"GET / HTTP/2.0"),
    "a coding in HTTP/1.0": get(b"Transfer-Encoding: chunked", first=b"GET / HTTP/1.0"),
    "a fragment": get(first=b"GET /a#b HTTP/1.1"),
    "an asterisk": get(first=b"GET * HTTP/1.1"),
    "an expectation": get(b"Expect: x"),
    "300 headers": get(*[b"X: y"] * 300),
}


@pytest.mark.parametrize("name", STRICTER)
def test_where_we_are_stricter_than_llhttp(name: str) -> None:
    assert peers.llhttp(STRICTER[name]) is not None
    assert isinstance(_http1.parse_request(STRICTER[name]), int)


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_the_payloads_of_the_proxy(payload: Payload) -> None:
    """The same payloads that the integration tests send, without a proxy: scanner, then llhttp as the engine's gate."""
    data = payload.for_host("a.test")
    found = _http1.parse_request(data)
    if payload.hazard == "2" and len(data) > 5000:
        return  # bytes are counted by the engine
    admitted = isinstance(found, dict) and peers.llhttp(data[: found["used"]]) is not None
    if payload.verdict == "refuse":
        statuses = {kind.status for kind in BY_REASON.values() if kind.code == found}
        if found is None:
            assert payload.unfinished or b"\r\n\r\n" not in data
        elif admitted:
            # the one refusal that the head cannot know: nobody is routed for this name
            assert 404 in payload.statuses
        elif payload.statuses and isinstance(found, int):
            assert statuses <= set(payload.statuses), found
    elif payload.verdict in ("accept", "cut"):
        assert admitted, found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_second_parser_says_of_what_it_remembers_what_a_new_one_says(data: st.DataObject) -> None:
    """Heads that come again, and ones that differ from them in a byte or by a line."""
    shared = Gate()
    heads = [get(b"X-A: " + b"a" * n, b"User-Agent: graylb-tests") for n in (0, 1, 40, 440, 460, 600)]
    heads += [
        get(b"Content-Length: 5", first=b"POST /x HTTP/1.1"),
        get(b"Connection: close"),
        get(first=b"GET / HTTP/1.0"),
    ]
    heads += [get(b"Upgrade: websocket", b"Connection: Upgrade")]
    for _ in range(30):
        head = data.draw(st.sampled_from(heads))
        if data.draw(st.booleans()):
            at, byte = data.draw(st.integers(0, len(head) - 1)), data.draw(st.sampled_from(b" \r\n:aX\x00\xff"))
            head = head[:at] + bytes([byte]) + head[at + 1 :]
            heads.append(head)
        assert shared.check(head) == Gate().check(head)
