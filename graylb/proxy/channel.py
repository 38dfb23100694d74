"""Frames between the supervisor and a worker, without I/O: `u32 length (big endian) | u8 type | payload`.

The length counts the payload only. Both sides feed whatever bytes arrive and get whole frames back.
"""

from __future__ import annotations

import signal
import struct
from typing import Any, Final, NamedTuple

import orjson

SOCKETS: Final = "F"  # → worker, before its role: empty; with it come descriptors, which the role counts as "fd"
ROLE: Final = "W"  # → worker, first: JSON {"worker", "workers", "cpu": int | null, "listeners": [], "pipes": [int]}
CERTIFICATES: Final = "C"  # → worker, before the table that needs them: JSON, see control.certificates.told
TABLE: Final = "T"  # → worker: a table image
LISTEN: Final = "L"  # → worker: empty; accept clients as soon as a table is loaded
PING: Final = "P"  # → worker: empty; ← worker: empty
STATS: Final = "S"  # → worker: empty; ← worker: JSON of counters
HEALTH: Final = "H"  # → worker: JSON [[service, address]] of the instances that are ill; all others are well
VIEWS: Final = "V"  # → worker: JSON [{"service", "version", "rule": str | null, "status": [low, high]}] of live views
# → worker: JSON {"service", "seconds", "requests"}: both answers to so many mirrored requests are wanted;
# ← worker: JSON {"service", "line", "dropped", "answers": [answer of the primary, of the mirror]}, see worker.answer
MIRROR: Final = "M"
DRAIN: Final = "D"  # → worker: JSON {"seconds": float, "keep_idle": bool}
EJECTED: Final = "E"  # ← worker: JSON, all that are ejected now, whenever that has changed: Engine.ejected
READY: Final = "R"  # ← worker: JSON {"pid": int}, when it accepts
ACK: Final = "A"  # ← worker: JSON {"revision": int, "digest": hex} or {"revision": int, "error": text}
TYPES: Final = frozenset(
    (SOCKETS, ROLE, CERTIFICATES, TABLE, LISTEN, PING, STATS, HEALTH, VIEWS, MIRROR, DRAIN, EJECTED, READY, ACK)
)

STACK_SIGNAL: Final = signal.SIGRTMIN + 7
"""On which a worker writes its Python stack to stderr, whatever it is doing."""
SOCKETS_AT_ONCE: Final = 250  # the kernel takes 253 with one message
MAX_PAYLOAD: Final = 1 << 30
"""Bytes. An image larger than this is a mistake; without a bound a corrupt length would eat all memory."""

_HEAD = struct.Struct(">IB")


class ChannelError(ValueError):
    """The bytes are not frames; the channel cannot be used any further."""


class Frame(NamedTuple):
    type: str
    payload: bytes

    def json(self) -> Any:
        """The payload as JSON. Raises ChannelError when it is not."""
        try:
            return orjson.loads(self.payload)
        except orjson.JSONDecodeError as error:
            raise ChannelError(f"frame {self.type}: payload is not JSON: {error}") from None


def encode(kind: str, payload: bytes = b"", *, limit: int = MAX_PAYLOAD) -> bytes:
    """One frame. Raises ChannelError on an unknown type or a payload over `limit` bytes."""
    if kind not in TYPES:
        raise ChannelError(f"unknown frame type {kind!r}: expected one of {', '.join(sorted(TYPES))}")
    if len(payload) > limit:
        raise ChannelError(f"frame {kind}: payload of {len(payload)} bytes is over the limit of {limit}")
    return _HEAD.pack(len(payload), ord(kind)) + payload


def encode_json(kind: str, value: object) -> bytes:
    """One frame with a JSON payload."""
    return encode(kind, orjson.dumps(value))


class Decoder:
    """Bytes in, frames out. After a ChannelError it refuses everything: where the next frame begins is unknown."""

    __slots__ = ("_broken", "_buffer", "_limit")

    def __init__(self, *, limit: int = MAX_PAYLOAD) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._broken: str | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes, in order. Raises ChannelError on an unknown type or an excessive length."""
        if self._broken is not None:
            raise ChannelError(self._broken)
        self._buffer += data
        frames: list[Frame] = []
        offset = 0
        while len(self._buffer) - offset >= _HEAD.size:
            length, code = _HEAD.unpack_from(self._buffer, offset)
            kind = chr(code)
            if kind not in TYPES:
                self._fail(f"unknown frame type {kind!r}: expected one of {', '.join(sorted(TYPES))}")
            if length > self._limit:
                self._fail(f"frame {kind}: length of {length} bytes is over the limit of {self._limit}")
            end = offset + _HEAD.size + length
            if end > len(self._buffer):
                break
            frames.append(Frame(kind, bytes(memoryview(self._buffer)[offset + _HEAD.size : end])))
            offset = end
        if offset:
            del self._buffer[:offset]
        return frames

    def eof(self) -> None:
        """The peer closed. Raises ChannelError when that cut a frame in two."""
        if self._buffer:
            self._fail(f"channel closed within a frame ({len(self._buffer)} bytes of it had arrived)")

    def _fail(self, message: str) -> None:
        self._broken = message
        self._buffer.clear()
        raise ChannelError(message)
