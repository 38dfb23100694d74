"""What is fuzzed: scanner, body decoder, rewriting and table loader, each with a corpus and the law that must hold.

A target takes any bytes and fails by an AssertionError, by an exception nobody promised, or by a sanitizer's report.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from graylb import _fast, _http1, table
from graylb.errors import KINDS
from tests.fuzz import peers
from tests.integration.payloads import PAYLOADS
from tests.strategies import random_cases

Target = Callable[[bytes], None]
CHUNKS = (
    b'5;a="b c"\r\nhello\r\n0\r\nx: y\r\n\r\nGET',
    b"A\r\n0123456789\r\n00\r\n\r\n",
    b"1\r\n\r\r\n1\r\n\n\r\n0;\r\nContent-Length: 5\r\nHost:\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 005\r\nConnection: x, close\r\nX: y\r\n\r\nhello",
    b"HTTP/1.0 404\r\nKeep-Alive:  a \r\nSet-Cookie:b\r\n\r\n",
    b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nX-Graylb-Rule: z\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
)
HANDSHAKE = (
    b"GET /chat?a HTTP/1.1\r\nHost: a.test\r\n"
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\n\r\n"
)


def requests() -> list[bytes]:
    return [*{payload.for_host("a.test") for payload in PAYLOADS}, HANDSHAKE]


def scan(data: bytes) -> None:
    """A dict, None or a code; no head is whole one byte sooner; what llhttp also takes, it frames alike."""
    found = _http1.parse_request(data)
    if not isinstance(found, dict):
        assert found is None or found < len(KINDS)
        return
    head = data[: found["used"]]
    assert _http1.parse_request(head) == found
    assert _http1.parse_request(head[:-1]) is None
    reading = peers.llhttp(head)
    if reading is not None:
        assert reading.ended == (not found["chunked"] and not found["content_length"])


def scan_response(data: bytes) -> None:
    found = _http1.parse_response(data)
    assert found in (None, -1) or (isinstance(found, dict) and _http1.parse_response(data[: found["used"] - 1]) is None)


def body(data: bytes) -> None:
    """Whole and byte by byte the same; the first byte says how the input is cut."""
    results = []
    for step in (max(1, len(data)), 1, 1 + (data[0] if data else 0) % 7):
        decoder = _http1.BodyDecoder("chunked")
        out, used, bad = b"", 0, False
        try:
            for at in range(0, len(data), step):
                out += decoder.feed(data[at : at + step])
                used += decoder.used
                if decoder.done:
                    break
        except ValueError:
            bad = True
        results.append((bad, decoder.done) if bad else (bad, decoder.done, out, used))
    assert results[0] == results[1] == results[2], results


def rewrite(data: bytes) -> None:
    """What goes out is canonical: it is accepted again, and rewriting it changes no more than the order."""
    found = _http1.parse_request(data)
    if isinstance(found, dict):
        for mode in ("append", "replace"):
            out = _http1.rewrite_request(data, "::1", mode, mode, via=True)
            # what graylb adds does not count towards the limit of 100 lines
            assert found["host"] == b"" or isinstance(_http1.parse_request(out, 256), dict), out
        plain = _http1.rewrite_request(data, x_forwarded="off")
        if found["host"]:
            again = _http1.rewrite_request(plain, x_forwarded="off")
            assert sorted(again.split(b"\r\n")) == sorted(plain.split(b"\r\n"))
    if isinstance(_http1.parse_response(data), dict):
        out = _http1.rewrite_response(data, connection=len(data) % 3, via=True, extra=b"x-graylb-rule: r\r\n")
        assert isinstance(_http1.parse_response(out, 256), dict), out


@functools.cache
def images() -> tuple[bytes, ...]:
    return tuple(table.compile(snapshot) for snapshot, _ in random_cases(1, 5, 1))


def load(data: bytes) -> None:
    """An image is intact or it is refused: nothing else may come of bytes that the checksum does not vouch for."""
    try:
        loaded = _fast.Table(data)
    except ValueError:
        assert data not in images()
        return
    assert data in images()
    assert loaded.image == data


@functools.cache
def tables() -> tuple[_fast.Table, ...]:
    return tuple(map(_fast.Table, images()))


def decide(data: bytes) -> None:
    """Any whole head gets a decision, by every table."""
    if isinstance(_http1.parse_request(data, 256), dict):
        for number, loaded in enumerate(tables()):
            found = loaded.decide(data, "::1", draw=len(data), pick=number)
            assert found["outcome"] in ("decided", "no-route", "no-instance", "redirect"), found


@dataclass(frozen=True)
class Fuzzed:
    run: Target
    corpus: Callable[[], list[bytes]]


TARGETS = {
    "scan": Fuzzed(scan, requests),
    "scan-response": Fuzzed(scan_response, lambda: list(RESPONSES)),
    "body": Fuzzed(body, lambda: list(CHUNKS)),
    "rewrite": Fuzzed(rewrite, lambda: requests() + list(RESPONSES)),
    "load": Fuzzed(load, lambda: list(images())),
    "decide": Fuzzed(decide, requests),
}
SPLICES = (
    b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"5", b"f", b"\x7f", b"\xff", b"_", b"#",
    b"@", b"[", b"]",
    b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: b\r\n", b"Connection: x\r\n",
    b"HTTP/1.1",
    b"X: y\r\n" * 100, b"\r\n\r\n", b"http://a.test",
)  # fmt: skip


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One to four small changes: bytes flipped, cut, doubled, spliced in, or the tail of another input."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(out))
        kind = chance.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.randint(1, 8)]
        elif kind == 2:
            out[at:at] = out[at : at + chance.randint(1, 40)]
        elif kind == 3:
            out[at:] = other[chance.randint(0, len(other)) :]
        elif kind == 4:
            del out[at:]
        else:
            out[at:at] = chance.choice(SPLICES)
    return bytes(out)
