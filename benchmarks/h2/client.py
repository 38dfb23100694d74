"""A plain HTTP/2 client, one request after the other, for looking at answers; never for load."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

import h2.connection
import h2.events
import h2.exceptions

from benchmarks.failure import BenchError

Fields = Iterable[tuple[str, str]]
WINDOW = 1 << 24


@dataclass(slots=True)
class Answer:
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)


class Client:
    """One connection to 127.0.0.1:`port`. With `context` it is TLS, and must have negotiated h2."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, seconds: float = 10) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), seconds)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.h2 = h2.connection.H2Connection()
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(WINDOW)
        self.h2.update_settings({4: WINDOW})
        self.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def receive(self) -> list[h2.events.Event]:
        """What has come, at least one read's worth. Raises BenchError at the end of the connection."""
        got = self.socket.recv(65536)
        if not got:
            raise BenchError("the HTTP/2 connection was closed")
        events: list[h2.events.Event] = self.h2.receive_data(got)
        self.flush()
        return events

    def begin(
        self, path: str, headers: Fields = (), method: str = "GET", authority: str = "bench", end: bool = True
    ) -> int:
        """Sends a request's head and returns the number of its stream."""
        stream: int = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path), *headers]
        self.h2.send_headers(stream, head, end_stream=end)
        self.flush()
        return stream

    def ask(
        self, path: str, headers: Fields = (), method: str = "GET", body: bytes = b"", authority: str = "bench"
    ) -> Answer:
        """One whole exchange. Raises BenchError unless it ends as it should, whatever its status."""
        try:
            stream = self.begin(path, headers, method, authority, end=not body)
            if body:
                self.h2.send_data(stream, body, end_stream=True)
                self.flush()
            return self.answer(stream)
        except (OSError, h2.exceptions.H2Error) as error:
            raise BenchError(f"{method} {path} over HTTP/2: {type(error).__name__}: {error}") from error

    def answer(self, stream: int) -> Answer:
        found = Answer()
        while True:
            for event in self.receive():
                if getattr(event, "stream_id", stream) not in (stream, 0):
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    found.fields = text_of(event.headers)
                    found.status = int(found.fields[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    found.body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.TrailersReceived):
                    found.trailers = text_of(event.headers)
                elif isinstance(event, h2.events.StreamReset):
                    raise BenchError(f"stream {stream} was reset with error {event.error_code}")
                elif isinstance(event, h2.events.ConnectionTerminated):
                    raise BenchError(f"the connection was ended with GOAWAY, error {event.error_code}")
                elif isinstance(event, h2.events.StreamEnded):
                    self.flush()
                    return found


def text_of(headers: Iterable[tuple[bytes, bytes]] | None) -> dict[str, str]:
    return {bytes(name).decode(): bytes(value).decode() for name, value in headers or ()}
