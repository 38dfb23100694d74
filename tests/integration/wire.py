"""HTTP/1.1 as it must stand on the wire between graylb and an upstream: a strict reading, independent of graylb's own.

`Fault` says what is not canonical. Used by the scripted upstream on every byte that it is sent, and by tests on
what clients receive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
TARGET = re.compile(rb"(?:/[\x21\x22\x24-\x7e\x80-\xff]*|\*)\Z")
VALUE = re.compile(rb"[\x20-\x7e\t\x80-\xff]*\Z")
LENGTH = re.compile(rb"(?:0|[1-9][0-9]{0,17})\Z")
CHUNK_SIZE = re.compile(rb"(?:0|[1-9a-fA-F][0-9a-fA-F]{0,14})\Z")
HOP_BY_HOP = {"keep-alive", "proxy-connection", "upgrade", "http2-settings", "trailer", "te", "proxy-authenticate"}
MOST_HEAD = 1 << 20


class Fault(Exception):
    """What arrived is not a canonical message."""


Headers = list[tuple[str, str]]


def values(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    """Every value of `name` (lower case), in order."""
    return [value for key, value in headers if key == name]


def parse_fields(lines: list[bytes]) -> Headers:
    """Header lines to (lower-case name, value) pairs."""
    fields: Headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.match(name):
            raise Fault(f"not a header line: {line!r}")
        if not VALUE.match(value):
            raise Fault(f"a control character in {line!r}")
        if value and (not value.startswith(b" ") or value[1:].strip(b" \t") != value[1:]):
            raise Fault(f"white space around the value of {line!r}")
        fields.append((name.decode().lower(), value[1:].decode("latin-1")))
    return fields


def parse_head(head: bytes) -> tuple[bytes, Headers]:
    """A head, blank line included, to its first line and fields; bare CR and LF are faults."""
    if not head.endswith(b"\r\n\r\n"):
        raise Fault("the head has no end")
    lines = head[:-4].split(b"\r\n")
    for line in lines:
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise Fault(f"a bare CR, LF or NUL in {line!r}")
    return lines[0], parse_fields(lines[1:])


def parse_request_head(head: bytes) -> tuple[str, str, Headers]:
    """A canonical request head to method, target and fields."""
    first, fields = parse_head(head)
    parts = first.split(b" ")
    if len(parts) != 3 or not TOKEN.match(parts[0]) or not TARGET.match(parts[1]) or parts[2] != b"HTTP/1.1":
        raise Fault(f"not a canonical request line: {first!r}")
    if parts[1] == b"*" and parts[0] != b"OPTIONS":
        raise Fault(f"* is for OPTIONS only: {first!r}")
    if len(values(fields, "host")) != 1:
        raise Fault(f"{len(values(fields, 'host'))} Host headers")
    tunnel = (values(fields, "connection"), values(fields, "upgrade")) == (["upgrade"], ["websocket"])
    for name, value in fields:
        if name in HOP_BY_HOP and not (name == "te" and value == "trailers") and not (name == "upgrade" and tunnel):
            raise Fault(f"hop-by-hop header {name}: {value}")
        if "_" in name:
            raise Fault(f"an underscore in the header name {name}")
    for value in values(fields, "connection"):
        if value.lower() not in ("keep-alive", "close", "te") and not tunnel:
            raise Fault(f"connection: {value}")
    body_framing(fields)
    return parts[0].decode(), parts[1].decode("latin-1"), fields


def body_framing(fields: Headers) -> int | None:
    """Length of a request's body in bytes, or None for chunked."""
    lengths, codings = values(fields, "content-length"), values(fields, "transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise Fault(f"content-length {lengths} beside transfer-encoding {codings}")
    if codings:
        if codings[0] != "chunked":
            raise Fault(f"transfer-encoding: {codings[0]}")
        return None
    if lengths and not LENGTH.match(lengths[0].encode("latin-1")):
        raise Fault(f"content-length: {lengths[0]!r} is not canonical")
    return int(lengths[0]) if lengths else 0


def parse_chunk_line(line: bytes) -> int:
    """A chunk's size line without its CRLF; extensions and leading zeros are faults."""
    if not CHUNK_SIZE.match(line):
        raise Fault(f"chunk size {line[:80]!r}")
    return int(line, 16)


def parse_chunked(raw: bytes) -> tuple[bytes, int, bytes]:
    """A whole canonical chunked body to (data, number of data chunks, bytes after it); trailers are faults."""
    data, chunks, at = bytearray(), 0, 0
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            raise Fault("a chunk size line has no end")
        size = parse_chunk_line(raw[at:end])
        at = end + 2
        if raw[at + size : at + size + 2] != b"\r\n":
            raise Fault(f"the chunk of {size} bytes does not end in CRLF, or trailers follow it")
        if not size:
            return bytes(data), chunks, raw[at + 2 :]
        data += raw[at : at + size]
        at += size + 2
        chunks += 1
