"""HTTP/2 by hand, for what no client does: frames made and taken apart, requests that are not lawful."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
NO_ERROR, PROTOCOL_ERROR, STREAM_CLOSED, CANCEL, REFUSED_STREAM, CALM = 0, 1, 5, 8, 7, 11

Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> int:
        """Of RST_STREAM and GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == RST_STREAM else self.payload[4:8])


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, payload=b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in pairs))


def reset(stream: int, error: int = CANCEL) -> bytes:
    return frame(RST_STREAM, stream=stream, payload=error.to_bytes(4))


def frames(data: bytes) -> list[Frame]:
    """Whole frames only; a client's preface is left out."""
    out = []
    data = data.removeprefix(PREFACE)
    while data:
        size = 9 + int.from_bytes(data[:3])
        assert len(data) >= size, "a frame is not whole"
        out.append(Frame(data[3], data[4], int.from_bytes(data[5:9]), data[9:size]))
        data = data[size:]
    return out


def of_kind(data: bytes, kind: int) -> list[Frame]:
    return [each for each in frames(data) if each.kind == kind]


def request(*more: tuple[str, str], method: str = "GET", path: str = "/") -> list[tuple[str, str]]:
    return [(":method", method), (":scheme", "http"), (":authority", "a.test"), (":path", path), *more]


class Coder:
    """Header blocks of one direction of one connection."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def block(self, fields: Fields) -> bytes:
        return self.encoder.encode(list(fields))

    def headers(self, stream: int, fields: Fields, *, end: bool = True, pieces: int = 1) -> bytes:
        """HEADERS, and CONTINUATION for the pieces behind the first."""
        block = self.block(fields)
        cut = -(-len(block) // pieces)
        parts = [block[i * cut : (i + 1) * cut] for i in range(pieces)]
        out = b""
        for i, part in enumerate(parts):
            flags = END_HEADERS * (i == pieces - 1) + END_STREAM * (end and i == 0)
            out += frame(CONTINUATION if i else HEADERS, flags, stream, part)
        return out
