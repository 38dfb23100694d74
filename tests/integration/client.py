"""A raw HTTP/1 client: sends any bytes in any pieces, reads answers with h11, which is not graylb's parser."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType

import h11

from tests.integration import wire

PATIENCE = 15.0
KEPT = 4 << 20


@dataclass
class Response:
    """`head` is the final head as received; `interim` has the statuses of the 1xx before it."""

    status: int
    reason: str
    version: str
    headers: wire.Headers
    head: bytes
    interim: list[int] = field(default_factory=list)
    body: bytes = b""
    size: int = 0
    wire_body: bytes = b""
    trailers: wire.Headers = field(default_factory=list)

    def get(self, name: str) -> str | None:
        found = wire.values(self.headers, name)
        assert len(found) <= 1, f"{name} is repeated: {found}"
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return wire.values(self.headers, name)

    @property
    def error(self) -> str | None:
        return self.get("x-graylb-error")

    @property
    def framing(self) -> str:
        """How the body is framed: length, chunked or close."""
        if self.all("transfer-encoding"):
            return "chunked"
        return "length" if self.all("content-length") else "close"


def request(
    method: str = "GET",
    target: str = "/",
    host: str = "graylb.test",
    headers: Iterable[str] = (),
    body: bytes | None = None,
    version: str = "1.1",
) -> bytes:
    """A request's bytes; a body gets a Content-Length."""
    lines = [f"{method} {target} HTTP/{version}", f"Host: {host}", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(pieces: Iterable[bytes]) -> bytes:
    """Pieces, none empty, as a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Client:
    """One connection to `address` ("host:port" or "unix:/path")."""

    def __init__(self, address: str, *, receive_buffer: int = 0, patience: float = PATIENCE) -> None:
        unix = address.startswith("unix:")
        host, _, port = address.rpartition(":")
        family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family)
        if receive_buffer:  # before connecting, or the window is already announced
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(patience)
        self.sock.connect(address[5:] if unix else (host.strip("[]"), int(port)))
        if not unix:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pending = b""
        self.ended = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, *pieces: bytes) -> Client:
        """Each piece by a send of its own."""
        for piece in pieces:
            self.sock.sendall(piece)
        return self

    def drip(self, data: bytes, step: int = 1) -> Client:
        return self.send(*(data[at : at + step] for at in range(0, len(data), step)))

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def ask(self, method: str = "GET", target: str = "/", **more: object) -> Response:
        """One request and its answer."""
        return self.send(request(method, target, **more)).response(method)  # type: ignore[arg-type]

    def response(self, method: str = "GET", sink: Callable[[bytes], object] | None = None) -> Response:
        """The next final answer, read as the answer to `method`; body pieces go to `sink` or are kept."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=wire.MOST_HEAD)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        raw = bytearray()
        if self.pending:
            self._feed(parser, raw, self.pending)
        self.pending = b""
        interim: list[int] = []
        head: Response | None = None
        start, pieces = 0, list[bytes]()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                self._feed(parser, raw, self.sock.recv(262144))
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
                start = self._check_head(raw, start)
            elif isinstance(event, h11.Response):
                end = self._check_head(raw, start)
                head = self._start(event, bytes(raw[start:end]), interim)
                start = end
            elif isinstance(event, h11.Data):
                assert head is not None
                head.size += len(event.data)
                (sink or pieces.append)(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                self.pending = parser.trailing_data[0]
                head.trailers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                head.body = b"".join(pieces)
                head.wire_body = bytes(raw[start : len(raw) - len(self.pending)]) if len(raw) < KEPT else b""
                return head
            else:
                raise AssertionError(f"the connection ended before an answer: {event!r} after {bytes(raw[:300])!r}")

    def _feed(self, parser: h11.Connection, raw: bytearray, piece: bytes) -> None:
        self.ended = not piece
        if len(raw) < KEPT:
            raw += piece
        parser.receive_data(piece)

    @staticmethod
    def _check_head(raw: bytearray, start: int) -> int:
        """h11 lets bare LF pass: the head is read once more, strictly. Returns its end."""
        end = raw.find(b"\r\n\r\n", start) + 4
        assert end > 3, f"a head without CRLF CRLF: {bytes(raw[start : start + 300])!r}"
        wire.parse_head(bytes(raw[start:end]))
        return end

    @staticmethod
    def _start(event: h11.Response, head: bytes, interim: list[int]) -> Response:
        headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
        version = event.http_version.decode()
        return Response(event.status_code, event.reason.decode("latin-1"), version, headers, head, interim)

    def rest(self) -> bytes:
        """Everything until the other side closes; a reset counts as its end."""
        pieces = [self.pending]
        self.pending = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.sock.recv(65536):
                pieces.append(piece)
        return b"".join(pieces)

    def closed(self) -> bool:
        """Whether the other side closes without a further byte; waits for it."""
        return self.rest() == b""
