"""HTTP/2 ends over real sockets, by the package h2: a client that may say what is not lawful, and a small upstream."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

PATIENCE = 15.0
Fields = list[tuple[str, str]]


def fields(*more: tuple[str, str], method: str = "GET", path: str = "/", host: str = "graylb.test") -> Fields:
    """Of a lawful request."""
    return [(":method", method), (":scheme", "http"), (":authority", host), (":path", path), *more]


def text(pairs: Iterable[tuple[bytes | str, bytes | str]]) -> Fields:
    return [(_text(name), _text(value)) for name, value in pairs]


def _text(part: bytes | str) -> str:
    return part if isinstance(part, str) else part.decode("latin-1")


@dataclass
class Answer:
    """`reset`: the code of the reset that ended it, if one did."""

    status: int = 0
    headers: Fields = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: str) -> str | None:
        found = self.all(name)
        assert len(found) <= 1, f"{name} is repeated: {found}"
        return found[0] if found else None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class H2Client:
    """One connection to `address`. It sends heads as they are given, lawful or not."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), PATIENCE)
        config = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = H2Connection(config)
        self.answers: dict[int, Answer] = {}
        self.gone: int | None = None  # the code of its GOAWAY
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.sock.close()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def begin(self, head: Fields, *, end: bool = False) -> int:
        """Sends a head; the number of its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, head, end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """As far as windows allow; reads until they do. Stops when the answer is over."""
        while data and not self.answers[stream].over:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                assert self.receive(), "the connection ended"
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
        if end and not self.answers[stream].over:
            self.h2.end_stream(stream)
            self.flush()

    def trail(self, stream: int, trailers: Fields) -> None:
        self.h2.send_headers(stream, trailers, end_stream=True)
        self.flush()

    def receive(self) -> bool:
        """One piece of what has arrived; False at the connection's end."""
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            data = b""
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self._take(event)
        with contextlib.suppress(OSError):
            self.flush()
        return True

    def answer(self, stream: int) -> Answer:
        """The whole of it, or what came until the connection ended."""
        while not self.answers[stream].over and self.gone is None and self.receive():
            pass
        return self.answers[stream]

    def ask(self, head: Fields, body: bytes = b"", trailers: Fields | None = None) -> Answer:
        stream = self.begin(head, end=not body and trailers is None)
        if body or trailers is not None:
            self.send(stream, body, end=trailers is None)
        if trailers is not None:
            self.trail(stream, trailers)
        return self.answer(stream)

    def ask_at_once(self, heads: list[Fields], bodies: list[bytes], *, heads_first: bool) -> list[Answer]:
        """Requests that leave in one piece, each body behind its head or all behind all heads."""
        first = self.h2.get_next_available_stream_id()
        streams = range(first, first + 2 * len(heads), 2)
        for stream, head, body in zip(streams, heads, bodies, strict=True):
            self.answers[stream] = Answer()
            self.h2.send_headers(stream, head)
            if not heads_first:
                self.h2.send_data(stream, body, end_stream=True)
        for stream, body in zip(streams, bodies if heads_first else [], strict=False):
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return [self.answer(stream) for stream in streams]

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.gone = int(event.error_code or 0)
            return
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if answer is None:
            return
        if isinstance(event, InformationalResponseReceived):
            answer.interim.append(int(dict(text(event.headers))[":status"]))
        elif isinstance(event, ResponseReceived):
            answer.headers = text(event.headers)
            answer.status = int(dict(answer.headers)[":status"])
        elif isinstance(event, DataReceived):
            answer.body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, TrailersReceived):
            answer.trailers = text(event.headers)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)


@dataclass
class Asked:
    """One request as an upstream got it."""

    connection: int
    headers: Fields
    body: bytes = b""
    trailers: Fields = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class H2Upstream:
    """Answers by path: `/` the body, `/trailers` with trailers, `/N` N bytes, `/reset` not at all, `/hints` 103 first,
    `/empty` a bare head, `/refuse…` once a refusal, `/503` that. What ends in `Hang` gets no answer, in `Begin` an
    endless one. One that is not `failing` takes `/reset` and `/503` for any other path.
    """

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.failing = True
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.resets: list[int] = []
        self._connections = 0
        self._refused: set[str] = set()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for each in (self.listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self._sockets.append(sock)
                self._connections += 1
                thread = threading.Thread(target=self._serve, args=(sock, self._connections), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        link = H2Connection(H2Configuration(client_side=False))
        link.initiate_connection()
        asked: dict[int, Asked] = {}
        unsent: dict[int, tuple[bytes, Fields]] = {}
        with contextlib.suppress(OSError, ProtocolError):
            sock.sendall(link.data_to_send())
            while data := sock.recv(262144):
                for event in link.receive_data(data):
                    self._take(link, event, asked, unsent, number)
                for stream in list(unsent):
                    self._push(link, stream, unsent)
                sock.sendall(link.data_to_send())

    def _take(
        self,
        link: H2Connection,
        event: Event,
        asked: dict[int, Asked],
        unsent: dict[int, tuple[bytes, Fields]],
        number: int,
    ) -> None:
        if isinstance(event, RequestReceived):
            asked[event.stream_id] = Asked(number, text(event.headers))
        elif isinstance(event, DataReceived):
            asked[event.stream_id].body += event.data
            link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, TrailersReceived):
            asked[event.stream_id].trailers = text(event.headers)
        elif isinstance(event, StreamReset):
            unsent.pop(event.stream_id, None)
            self.resets.append(int(event.error_code))
        elif isinstance(event, StreamEnded):
            self.requests.append(asked[event.stream_id])
            self._answer(link, event.stream_id, asked[event.stream_id], unsent)

    def _answer(self, link: H2Connection, stream: int, request: Asked, unsent: dict[int, tuple[bytes, Fields]]) -> None:
        path = dict(request.headers)[":path"]
        head: Fields = [(":status", "200"), ("x-upstream", "h2")]
        if path == "/reset" and self.failing:
            link.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
        elif path == "/503" and self.failing:
            link.send_headers(stream, [(":status", "503")])
            unsent[stream] = b"sorry", []
        elif path.startswith("/refuse") and path not in self._refused:
            self._refused.add(path)
            link.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        elif path.endswith("Hang"):
            pass
        elif path.endswith("Begin"):
            link.send_headers(stream, head)
            link.send_data(stream, request.body)
        elif path == "/empty":
            link.send_headers(stream, [(":status", "204")], end_stream=True)
        else:
            if path == "/hints":
                link.send_headers(stream, [(":status", "103"), ("link", "</a>")])
            size = path[1:]
            body = b"x" * int(size) if size.isdigit() else request.body
            if not size.isdigit():
                head.append(("content-length", str(len(body))))
            if request.all(":method") == ["HEAD"]:
                link.send_headers(stream, head, end_stream=True)
                return
            link.send_headers(stream, head)
            unsent[stream] = body, [("x-end", "yes")] if path == "/trailers" else []

    @staticmethod
    def _push(link: H2Connection, stream: int, unsent: dict[int, tuple[bytes, Fields]]) -> None:
        body, trailers = unsent[stream]
        while body:
            room = min(link.local_flow_control_window(stream), link.max_outbound_frame_size)
            if room == 0:
                unsent[stream] = body, trailers
                return
            link.send_data(stream, body[:room])
            body = body[room:]
        del unsent[stream]
        if trailers:
            link.send_headers(stream, trailers, end_stream=True)
        else:
            link.end_stream(stream)
