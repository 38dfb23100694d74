"""The response scanner: every rule of the law, and its agreement with two peers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _http1
from tests.fuzz import grammar, peers

REFUSED = -1


def answer(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def parsed(head: bytes, **more: Any) -> dict[str, Any]:
    found = _http1.parse_response(head, **more)
    assert isinstance(found, dict), (head, found)
    return found


def test_a_whole_head() -> None:
    head = answer(b"X-One:\t1 ", b"Content-Length: 007", b"Connection: Keep-Alive", first=b"HTTP/1.0 404 Not Found")
    found = parsed(head + b"a body")
    wanted = {
        "used": len(head), "minor": 0, "status": 404, "reason": b"Not Found",
        "headers": [
            (b"X-One", b"1", True), (b"Content-Length", b"007", False), (b"Connection", b"Keep-Alive", False),
        ],
        "chunked": False, "content_length": 7, "close": False, "keep_alive": True,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("first", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, b"OK"),
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.0 599 \xe4 b\tc", 599, b"\xe4 b\tc"),
        (b"HTTP/1.1 100 Continue", 100, b"Continue"),
        (b"HTTP/1.1 101 Switching", 101, b"Switching"),
    ],
)
def test_status_lines(first: bytes, status: int, reason: bytes) -> None:
    found = parsed(answer(first=first))
    assert (found["status"], found["reason"]) == (status, reason)


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b"ICY 200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 099 No", b"HTTP/1.1 600 No", b"HTTP/1.1 999 No",
        b"HTTP/1.1 000 No",
        b"HTTP/1.1 2x0 OK", b"HTTP/1.1 -20 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.1 200\tOK", b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 O\nK", b"HTTP/1.1 200 O\rK", b" HTTP/1.1 200 OK", b"GET / HTTP/1.1", b"\r\nHTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\x7fK",
    ],
)  # fmt: skip
def test_status_lines_that_are_none(first: bytes) -> None:
    """Hazard 15: odd statuses are nobody's to pass on."""
    assert _http1.parse_response(answer(b"X: y", first=first)) == REFUSED


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: ",),
        (b"Content-Length: -5",),
        (b"Content-Length: 9223372036854775808",),
        (b"Transfer-Encoding: gzip",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: ",),
    ],
)
def test_framings_that_are_none(lines: tuple[bytes, ...]) -> None:
    """Stricter than RFC 9112 6.3, which reads some of them to the end of the connection."""
    assert _http1.parse_response(answer(*lines)) == REFUSED


def test_no_coding_in_http_1_0() -> None:
    assert _http1.parse_response(answer(b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK")) == REFUSED


@pytest.mark.parametrize(
    "line", [b"X : y", b"X", b": y", b" X: y", b"X: y\r\n z", b"X: a\0b", b"X: a\rb", b"X: a\nb", b"X: y\n", b"X(: y"]
)
def test_lines_that_are_none(line: bytes) -> None:
    assert _http1.parse_response(answer(line, b"Last: 1")) == REFUSED


def test_the_limit_counts_lines() -> None:
    assert len(parsed(answer(*[b"X: y"] * 256), limit=256)["headers"]) == 256
    assert _http1.parse_response(answer(*[b"X: y"] * 257), limit=1000) == REFUSED


def assert_lawful(data: bytes) -> None:
    found = _http1.parse_response(data)
    if not isinstance(found, dict):
        assert found in (None, REFUSED)
        return
    head = data[: found["used"]]
    assert head.endswith(b"\r\n\r\n")
    assert 100 <= found["status"] <= 599
    assert _http1.parse_response(head) == found, "bytes behind the head changed it"
    for end in range(len(head)):
        assert _http1.parse_response(head[:end]) is None, head[:end]


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert_lawful(data)


@settings(max_examples=150, deadline=None)
@given(grammar.damaged(grammar.responses()), st.binary(max_size=20))
def test_nearly_heads(head: bytes, more: bytes) -> None:
    assert_lawful(head + more)


@settings(max_examples=150, deadline=None)
@given(grammar.responses())
def test_lawful_heads_are_accepted(head: bytes) -> None:
    assert parsed(head)["used"] == len(head)


@settings(max_examples=150, deadline=None)
@given(grammar.damaged(grammar.responses()))
def test_peers_agree_on_what_we_accept(data: bytes) -> None:
    """Status, headers, and the body's end to the byte, for answers that have one (RFC 9112 6.3)."""
    found = _http1.parse_response(data)
    if not isinstance(found, dict) or found["status"] < 200 or (found["content_length"] or 0) > 1000:
        return
    head = data[: found["used"]]
    headers = peers.plain([(name, value) for name, value, _ in found["headers"]])
    bodiless = found["status"] in (204, 304)
    sent = meant = b"x" * (found["content_length"] or 0)
    if found["chunked"]:
        sent, meant = b"5\r\nhello\r\n0\r\n\r\n", b"hello"
    if bodiless:
        sent = meant = b""
    framed = bodiless or found["chunked"] or found["content_length"] is not None
    readings = {"h11": peers.h11_response(head + sent)}
    if not bodiless and b"\t\r\n" not in head:  # llhttp refuses a tab behind `chunked`
        readings["llhttp"] = peers.llhttp(head + sent, response=True)
    for name, reading in readings.items():
        assert reading is not None, (name, head)
        assert (reading.heads, reading.status, reading.version) == (1, found["status"], f"1.{found['minor']}"), name
        assert peers.plain(reading.headers) == headers, name
        assert (reading.body, reading.ended) == (meant, framed), name
