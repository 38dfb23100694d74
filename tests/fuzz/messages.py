"""Laws of HTTP/1 and PROXY parsing that hold for any bytes: each fails by an AssertionError, or a sanitizer's report.

Oracles: llhttp, h11, the strict reading of `wire`, an obvious PROXY reader, and the same bytes cut otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h11

from graylb import _http1, _proxy
from graylb._gate import Gate
from graylb.errors import KINDS
from tests.fuzz import peers
from tests.integration import wire
from tests.proxy_reader import obvious

FRAMING_LINE = re.compile(rb"(?i)\n(content-length|transfer-encoding):")
"""In a trailer it is nothing to us, but h11 validates it."""
LONG_SIZE = re.compile(rb"[0-9a-fA-F]{21}")
"""Leading zeros of a length or size: h11 takes 20 digits, we as many as a line may have, and write the number anew."""
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def cuts(data: bytes) -> Iterator[int]:
    """Where to cut: everywhere in short inputs, at some 64 places in long ones."""
    yield from range(0, len(data), 1 + len(data) // 64 if len(data) > 400 else 1)


def lower_case(headers: list[tuple[bytes, bytes, bool]]) -> peers.Headers:
    return peers.plain([(name, value) for name, value, _ in headers])


# ---- heads


def scan(data: bytes) -> None:
    """Every cut waits or is refused for good; what we accept, h11 and (where it does) llhttp read alike."""
    found = _http1.parse_request(data)
    refused = False
    for size in cuts(data[: found["used"]] if isinstance(found, dict) else data):
        part = _http1.parse_request(data[:size])
        assert part is None or (isinstance(part, int) and part < len(KINDS)), (size, part)
        assert part is not None or not refused, "refused, then not"
        refused = part is not None
    if not isinstance(found, dict):
        assert found is not None or not refused
        assert found is None or found < len(KINDS)
        return
    assert not refused
    head = data[: found["used"]]
    assert _http1.parse_request(head) == found, "bytes behind the head changed it"
    assert head.count(b"\n") == head.count(b"\r\n") == head.count(b"\r"), "a bare CR or LF was taken"
    body = bool(found["chunked"] or found["content_length"])
    if not any(name == b"content-length" and len(value) > 20 for name, value in lower_case(found["headers"])):
        same_head(found, head, peers.h11_request(head), "h11", body)
    reading = peers.llhttp(head)
    if reading is not None:
        same_head(found, head, reading, "llhttp", body)


def same_head(found: dict[str, Any], head: bytes, reading: peers.Reading | None, name: str, body: bool) -> None:
    assert reading is not None, f"{name} refuses it"
    assert (reading.heads, reading.method, reading.version) == (1, found["method"], f"1.{found['minor']}"), name
    assert reading.target == head.split(b" ")[1], name
    assert peers.plain(reading.headers) == lower_case(found["headers"]), name
    assert reading.ended == (not body), name


def scan_response(data: bytes) -> None:
    found = _http1.parse_response(data)
    refused = False
    for size in cuts(data[: found["used"]] if isinstance(found, dict) else data):
        part = _http1.parse_response(data[:size])
        assert part in (None, -1), (size, part)
        assert part is not None or not refused, "refused, then not"
        refused = part is not None
    if not isinstance(found, dict):
        assert found == -1 or (found is None and not refused)
        return
    assert not refused
    head = data[: found["used"]]
    assert _http1.parse_response(head) == found, "bytes behind the head changed it"
    wide = any(name == b"content-length" and len(value) > 20 for name, value in lower_case(found["headers"]))
    if found["status"] >= 200 and not wide:
        reading = peers.h11_response(head)
        assert reading is not None, "h11 refuses it"
        assert reading.status == found["status"]
        assert peers.plain(reading.headers) == lower_case(found["headers"])
        bodiless = found["status"] in (204, 304) or (found["content_length"] == 0 and not found["chunked"])
        assert reading.ended == bodiless


def gate(data: bytes) -> None:
    """One gate for all heads says of each what a new one says, and no more than llhttp itself."""
    shared = Gate()
    heads = re.split(rb"(?<=\r\n\r\n)", data)[:20]
    for head in (*heads, *heads):
        verdict = shared.check(head)
        assert verdict == Gate().check(head), (head, "an earlier head coloured it")
        if verdict:
            reading = peers.llhttp(head)
            assert reading is not None
            assert reading.heads == 1


# ---- bodies


def decoded(data: bytes, step: int) -> tuple[bool, bool, bytes, int]:
    """(malformed, done, body, bytes used) of a chunked body that arrives `step` bytes at a time."""
    decoder, out, used = _http1.BodyDecoder("chunked"), b"", 0
    for at in range(0, len(data), step):
        try:
            out += decoder.feed(data[at : at + step])
        except ValueError:
            return True, False, b"", 0
        used += decoder.used
        if decoder.done:
            break
    return False, decoder.done, out, used


def body(data: bytes) -> None:
    """However it is cut, the same; what we take, h11 reads alike, and llhttp where it takes it."""
    results = [decoded(data, step) for step in (max(1, len(data)), 1, 1 + (data[0] if data else 0) % 7)]
    assert results[0] == results[1] == results[2], results
    malformed, done, out, used = results[0]
    if malformed:
        return
    for name, peer in (("h11", peers.h11_request), ("llhttp", peers.llhttp)):
        reading = peer(HEAD + data[:used])
        # of extensions and trailers llhttp refuses some bytes that it need not; h11 reads framing even in trailers
        if reading is None and name == "llhttp" and (b";" in data or b"\r\n0" in b"\r\n" + data):
            continue
        if reading is None and name == "h11" and (FRAMING_LINE.search(data) or LONG_SIZE.search(data)):
            continue
        assert reading is not None, name
        assert (reading.body, reading.ended) == (out, done), name


# ---- what goes on


def rewrite(data: bytes) -> None:
    """What goes out is canonical to a strict reader, is accepted again, and changes no more when it is rewritten."""
    found = _http1.parse_request(data)
    if isinstance(found, dict) and Gate().check(data):  # which takes fewer methods
        for mode in ("append", "replace"):
            canonical(found, _http1.rewrite_request(data, "::1", mode, mode, via=True))
        plain = _http1.rewrite_request(data, x_forwarded="off")
        canonical(found, plain)
        if found["host"]:
            again = _http1.rewrite_request(plain, x_forwarded="off")
            assert sorted(again.split(b"\r\n")) == sorted(plain.split(b"\r\n"))
    answer = _http1.parse_response(data)
    if isinstance(answer, dict):
        out = _http1.rewrite_response(data, connection=len(data) % 3, via=True, extra=b"x-graylb-rule: r\r\n")
        wire.parse_head(out)
        # what graylb adds does not count towards the limit of 100 lines
        again = _http1.parse_response(out, 256)
        assert isinstance(again, dict), out
        for key in ("status", "reason", "chunked", "content_length", "websocket"):
            assert again[key] == answer[key] or (key == "websocket" and len(data) % 3), key


def canonical(found: dict[str, Any], out: bytes) -> None:
    if not found["host"]:
        return  # HTTP/1.0 without one: routed as the empty host, if at all
    method, target, headers = wire.parse_request_head(out)
    assert method.encode() == found["method"]
    query = b"" if found["query"] is None else b"?" + found["query"]
    assert target.encode("latin-1") in (found["path"] + query, b"/" + found["path"] + query)
    assert [host.lower() for host in wire.values(headers, "host")] == [found["host"].decode().lower()]
    length = None if found["chunked"] else found["content_length"] or 0
    assert wire.body_framing(headers) == length
    again = _http1.parse_request(out, 256)
    assert isinstance(again, dict), out
    for key in ("method", "path", "query", "chunked", "content_length", "websocket", "grpc"):
        assert again[key] == found[key], key
    assert peers.h11_request(out) is not None, "h11 refuses it"


@dataclass(frozen=True)
class Message:
    method: bytes
    target: bytes
    body: bytes


def stream(data: bytes) -> None:
    """A client's bytes as the engine would forward them: a strict reader finds in them the requests that we saw.

    h11, which reads the client's bytes itself, sees the same ones, up to what it alone refuses (below).
    """
    seen, sent = forwarded(data)
    assert list(strictly(sent)) == seen
    for ours, theirs in zip(seen, h11_stream(data, len(seen)), strict=False):
        assert (ours.method, ours.body) == (theirs.method, theirs.body)
        if theirs.target.startswith(b"/"):
            assert ours.target == theirs.target


def forwarded(data: bytes) -> tuple[list[Message], bytes]:
    """Whole requests until one is refused, cut, or the last of its connection; and what the upstream gets."""
    seen: list[Message] = []
    sent = b""
    while True:
        found = _http1.parse_request(data)
        if not isinstance(found, dict) or not Gate().check(data) or not found["host"]:
            return seen, sent
        out, rest, content = _http1.rewrite_request(data), data[found["used"] :], b""
        if found["chunked"]:
            malformed, done, content, used = decoded(rest, 1 + len(rest) % 5)
            if malformed or not done:
                return seen, sent
            rest = rest[used:]
            coded = (_http1.encode_chunk(content) if content else b"") + b"0\r\n\r\n"
        else:
            length = found["content_length"] or 0
            if len(rest) < length:
                return seen, sent
            coded, rest = rest[:length], rest[length:]
            content = coded
        target = found["path"] + (b"" if found["query"] is None else b"?" + found["query"])
        seen.append(Message(found["method"], target, content))
        sent += out + coded
        if found["close"] or not found["minor"] or found["websocket"]:
            return seen, sent
        data = rest


def strictly(sent: bytes) -> Iterator[Message]:
    while sent:
        head, blank, sent = sent.partition(b"\r\n\r\n")
        method, target, headers = wire.parse_request_head(head + blank)
        length = wire.body_framing(headers)
        if length is None:
            content, _, sent = wire.parse_chunked(sent)
        else:
            content, sent = sent[:length], sent[length:]
            assert len(content) == length
        yield Message(method.encode(), target.encode("latin-1"), content)


def h11_stream(data: bytes, most: int) -> Iterator[Message]:
    """The first `most` requests of a connection, each answered at once."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    try:
        for _ in range(most):
            yield h11_request_of(connection)
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
                connection.start_next_cycle()
    except h11.RemoteProtocolError:
        if not (FRAMING_LINE.search(data) or LONG_SIZE.search(data)):
            raise


def h11_request_of(connection: h11.Connection) -> Message:
    request = connection.next_event()
    assert isinstance(request, h11.Request), request
    content = b""
    while isinstance(event := connection.next_event(), h11.Data):
        content += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage), event
    return Message(request.method, request.target, content)


# ---- the PROXY protocol


def proxy(data: bytes) -> None:
    """Every cut waits or is refused for good; the obvious reader agrees; what was read is written and read again."""
    found = _proxy.read(data)
    expected = obvious(data)
    if not isinstance(found, dict):
        assert expected == -1
        assert found == -1 or len(data) < _proxy.MAX_BYTES, "it waits for more than it would read"
    else:
        told = {"source": bytes(16), "source_port": 0, "destination": bytes(16), "destination_port": 0}
        if not isinstance(expected, int) and expected.ends is not None:
            told = dict(zip(told, expected.ends, strict=True))
        assert not isinstance(expected, int)
        assert (found["used"], found["version"], found["local"]) == (
            expected.used,
            expected.version,
            expected.ends is None,
        )
        assert {key: found[key] for key in told} == told
        for key in ("alpn", "authority", "unique_id", "ssl"):
            assert found[key] == getattr(expected, key)
    refused = False
    for size in cuts(data[: found["used"]] if isinstance(found, dict) else data):
        part = _proxy.read(data[:size])
        assert part in (None, -1)
        assert part is not None or not refused, "refused, then not"
        refused = part is not None
    assert not (refused and isinstance(found, dict))
