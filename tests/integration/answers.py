"""Hostile and odd answers of an upstream, each with its verdict.

Verdicts:
  refuse   the client gets 502, or 504 where an end was waited for
  cut      the head is good, the body is not: the client sees that the answer is not whole, or 502 before it began
  pass     the client gets `status` and `body`, and nothing else of what was sent
Whatever it was, the connection is not used again (but for `reused`), and no later request is answered by its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import h11

from tests.conftest import Site
from tests.integration.upstream import Call

OK = b"HTTP/1.1 200 OK\r\n"
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"


@dataclass(frozen=True)
class Answer:
    name: str
    data: bytes
    verdict: Literal["refuse", "cut", "pass"]
    status: int = 200
    body: bytes = b""
    method: str = "GET"
    close: bool = False  # the upstream closes behind it
    reused: bool = False  # the connection is as good as before
    interim: int = 0  # 1xx that the client gets


def text(data: bytes) -> str:
    return data[:60].decode("latin-1").encode("unicode_escape").decode()


def behind() -> Iterator[Answer]:
    """Bytes behind the end of the answer."""
    for extra in (b"X", b"\r\n", b"\0", EVIL, b"HTTP/1.1 103 Early Hints\r\n\r\n"):
        yield Answer(f"behind a length: {text(extra)}", OK + b"content-length: 2\r\n\r\nok" + extra, "pass", 200, b"ok")
        chunks = OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        yield Answer(f"behind chunks: {text(extra)}", chunks + extra, "pass", 200, b"ok")
        yield Answer(f"behind 204: {text(extra)}", b"HTTP/1.1 204 No Content\r\n\r\n" + extra, "pass", 204)
        yield Answer(f"behind 304: {text(extra)}", b"HTTP/1.1 304 Not Modified\r\n\r\n" + extra, "pass", 304)
        length = OK + b"content-length: 4\r\n\r\n"
        yield Answer(f"behind HEAD: {text(extra)}", length + extra, "pass", 200, b"", "HEAD")
        yield Answer(f"behind length 0: {text(extra)}", OK + b"content-length: 0\r\n\r\n" + extra, "pass", 200)
    yield Answer("204 with a length and a body", b"HTTP/1.1 204 No\r\ncontent-length: 4\r\n\r\nEVIL", "pass", 204)
    chunked = b"HTTP/1.1 304 No\r\ntransfer-encoding: chunked\r\n\r\n4\r\nEVIL\r\n0\r\n\r\n"
    yield Answer("304 with chunks", chunked, "pass", 304)
    yield Answer("two answers in one read", OK + b"content-length: 2\r\n\r\nok" + EVIL * 2, "pass", 200, b"ok")
    yield Answer("a good one", OK + b"content-length: 2\r\n\r\nok", "pass", 200, b"ok", reused=True)


def interim() -> Iterator[Answer]:
    end = OK + b"content-length: 2\r\n\r\nok"
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    yield Answer("100 unasked", b"HTTP/1.1 100 Continue\r\n\r\n" + end, "pass", 200, b"ok", reused=True, interim=1)
    yield Answer("a flood of 1xx", hint * 100 + end, "pass", 200, b"ok", reused=True, interim=100)
    yield Answer("101 unasked", b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + EVIL, "refuse")
    websocket = b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    yield Answer("101 to WebSocket unasked", websocket + EVIL, "refuse")
    yield Answer("101 without Upgrade", b"HTTP/1.1 101 Switching\r\n\r\n" + EVIL, "refuse")
    yield Answer("a 1xx and nonsense", b"HTTP/1.1 102 Processing\r\n\r\nnonsense\r\n\r\n", "refuse", interim=1)
    length = b"HTTP/1.1 103 Early Hints\r\ncontent-length: 38\r\n\r\n"
    yield Answer("a 1xx with a length", length + end, "pass", 200, b"ok", reused=True, interim=1)
    yield Answer("an end behind a 1xx", hint, "refuse", close=True, interim=1)


def framing() -> Iterator[Answer]:
    """Lengths and codings that disagree, repeat or hide."""
    cl, te = b"content-length: 4", b"transfer-encoding: chunked"
    body = b"4\r\nEVIL\r\n0\r\n\r\n"
    for lines in (
        (cl, te), (te, cl), (cl, cl), (cl, b"content-length: 5"), (te, te), (b"content-length: 0", te),
        (te, b"transfer-encoding: identity"),
    ):  # fmt: skip
        yield Answer(f"framing {text(b', '.join(lines))}", OK + b"\r\n".join(lines) + b"\r\n\r\n" + body, "refuse")
    for value in (b"4, 4", b"4,5", b"+4", b"-4", b"0x4", b"", b"4 4", b"4;", b"1e1", b"9" * 30, b"4\x0b", b"four"):
        data = OK + b"content-length: " + value + b"\r\n\r\nEVIL"
        yield Answer(f"length {text(value)}", data, "refuse")
    for value in (
        b"gzip",
        b"identity",
        b"gzip, chunked",
        b"chunked, gzip",
        b"xchunked",
        b"chunked;x",
        b"",
        b"chu nked",
    ):
        data = OK + b"transfer-encoding: " + value + b"\r\n\r\n" + body
        yield Answer(f"coding {text(value)}", data, "refuse")
    yield Answer("chunked in HTTP/1.0", b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body, "refuse")
    zeros = OK + b"content-length: 0002\r\n\r\nok"
    yield Answer("length with leading zeros", zeros, "pass", 200, b"ok", reused=True)


def heads() -> Iterator[Answer]:
    for line in (
        b"HTTP/1.1 099 X", b"HTTP/1.1 600 X", b"HTTP/1.1 1000 X", b"HTTP/1.1 20 X", b"HTTP/1.1 2OO X",
        b"HTTP/1.1 -200 X",
        b"HTTP/1.1  200 X", b"HTTP/1.1\t200 X", b"HTTP/2.0 200 X", b"HTTP/1.2 200 X", b"HTTP/0.9 200 X", b"ICY 200 OK",
        b"http/1.1 200 X", b"HTTP/1.1", b"HTTP/1.1 200X", b"200 OK", b"<html>", b"GET / HTTP/1.1", b"HTTP/1.1 +20 X",
        b"HTTP/1.1 200 a\x00b", b"HTTP/1.1 200 a\rb",
    ):  # fmt: skip
        yield Answer(f"line {text(line)}", line + b"\r\ncontent-length: 4\r\n\r\nEVIL", "refuse")
    for line in (
        b"X : y", b"X y", b": y", b" X: y", b"X: y\r\n z", b"X: a\x00b", b"X: a\x7fb", b"X\x00: y", b"X: a\rb",
        b"X: a\nb: c", b"X(: y", b"X Y: z", b"\xe4: y", b"X: y\n", b"X\r: y", b"Transfer-Encoding : chunked",
        b"Content-Length : 40",
    ):  # fmt: skip
        data = OK + line + b"\r\ncontent-length: 4\r\n\r\nEVIL"
        yield Answer(f"field {text(line)}", data, "refuse")
    yield Answer("all bare LF", b"HTTP/1.1 200 OK\ncontent-length: 4\n\nEVIL", "refuse", close=True)
    yield Answer("an empty line in front", b"\r\n" + EVIL, "refuse")
    yield Answer("a head of 300 KB", OK + b"x: " + b"y" * 300_000 + b"\r\n\r\n", "refuse")
    yield Answer("300 fields", OK + b"x: y\r\n" * 300 + b"\r\n", "refuse")
    yield Answer("nothing at all", b"", "refuse", close=True)
    yield Answer("half a head", OK + b"content-len", "refuse", close=True)
    yield Answer("no body of HTTP/0.9", b"hello", "refuse", close=True)


def bodies() -> Iterator[Answer]:
    """Bodies that end too soon or are no chunks."""
    yield Answer("half a body", OK + b"content-length: 8\r\n\r\nhalf", "cut", close=True)
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n"
    for raw in (
        b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n0\r\n\r",
        b"5\r\nhello\r\n0\r\nx: y\r\n", b"",
    ):  # fmt: skip
        yield Answer(f"chunks cut: {text(raw)}", chunked + raw, "cut", close=True)
    for raw in (
        b"g\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n", b"5\nhello\r\n",
        b"5\r\nhello0\r\n\r\n", b"4\r\nhello\r\n0\r\n\r\n",
        b"-1\r\n", b"ffffffffffffffff1\r\n", b"5\r\nhello\r\n0\r\nx y\r\n\r\n", b"5\r\nhello\r\n0\r\n x: y\r\n\r\n",
        b"5;a=\x00\r\nhello\r\n0\r\n\r\n", b"5;" + b"a" * 9000 + b"\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\rX",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
    ):  # fmt: skip
        yield Answer(f"chunks {text(raw)}", chunked + raw + EVIL, "cut")
    trailed = chunked + b"5\r\nhello\r\n0\r\ncontent-length: 9\r\nx-graylb-rule: x\r\n\r\n"
    yield Answer("trailers", trailed, "pass", 200, b"hello", reused=True)
    yield Answer("extensions", chunked + b"5;a=b\r\nhello\r\n0;c\r\n\r\n", "pass", 200, b"hello", reused=True)
    yield Answer("until the end", OK + b"\r\nhello", "pass", 200, b"hello", close=True)
    yield Answer("until the end, an answer in it", OK + b"\r\n" + EVIL, "pass", 200, EVIL, close=True)
    yield Answer("until the end in HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\n" + EVIL, "pass", 200, EVIL, close=True)


ANSWERS = [*behind(), *interim(), *framing(), *heads(), *bodies()]


def ask(site: Site, answer: Answer, number: int) -> None:
    """One request that is answered so, and the judgement of what the client and the next ones get."""

    def evil(call: Call) -> None:
        call.body()
        call.send(answer.data)
        if answer.close:
            call.close()

    site.on("/evil", evil)
    before = len(site.requests)
    with site.proxy.client() as client:
        client.send(site.request(answer.method, "/evil"))
        try:
            got = client.response(answer.method)
        except (h11.RemoteProtocolError, ConnectionResetError):
            whole = False
        else:
            whole = True
        assert whole or answer.verdict == "cut", "the answer was cut"
        if whole:
            # what is seen to be wrong before a byte of it has gone on can still be told
            wanted = (answer.status,) if answer.verdict == "pass" else (502, 504)
            assert got.status in wanted, got.status
            assert len(got.interim) == answer.interim, got.interim
            if answer.verdict == "pass":
                assert got.body == answer.body, got.body
            same = f"/same-{number}"
            following = client.send(site.request(target=same)).response()
            assert following.body == same.encode(), "this client's next request got somebody else's answer"
    fresh = f"/fresh-{number}"
    assert site.ask(target=fresh).body == fresh.encode(), "the next client got somebody else's answer"
    used = [request.connection for request in site.requests[before:]]
    evils = {request.connection for request in site.requests[before:] if request.target == "/evil"}
    others = {request.connection for request in site.requests[before:] if request.target != "/evil"}
    assert answer.reused == bool(evils & others), f"connections {used}"
