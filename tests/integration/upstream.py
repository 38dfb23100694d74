"""A scripted HTTP/1 upstream: a thread per connection, handlers by path, every byte that arrives checked and kept."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.integration import wire

KEPT = 4 << 20
"""Bytes of one connection and of one body that are kept for a test to look at."""
PATIENCE = 15.0
"""Seconds until a wait in a test is given up."""


@dataclass
class Request:
    """One request as it arrived. `body` is decoded and, with `wire_body`, complete once the handler has read it."""

    connection: int
    head: bytes
    method: str
    target: str
    headers: wire.Headers
    body: bytearray = field(default_factory=bytearray)
    body_size: int = 0
    complete: bool = False

    def get(self, name: str) -> str | None:
        """The only value of `name`, None if absent."""
        found = wire.values(self.headers, name)
        assert len(found) <= 1, f"{name} is repeated: {found}"
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return wire.values(self.headers, name)


class Gone(Exception):
    """The peer closed or reset, or the upstream is being stopped."""


class Connection:
    """One accepted connection. `raw` is what arrived on it, at most KEPT bytes."""

    def __init__(self, sock: socket.socket, peer: tuple[str, int], number: int) -> None:
        self.sock, self.peer, self.number = sock, peer, number
        self.raw = bytearray()
        self.buffer = bytearray()
        self.closed = threading.Event()
        self.end = ""  # who ended it: "peer closed", "peer reset", "closed", "fault"
        self.between = True  # no request is under way

    def receive(self) -> bool:
        """One recv into the buffer; False at end of stream."""
        try:
            piece = self.sock.recv(65536)
        except ConnectionResetError as error:
            self.end = "peer reset"
            raise Gone from error
        except OSError as error:
            raise Gone from error
        if len(self.raw) < KEPT:
            self.raw += piece
        self.buffer += piece
        return bool(piece)

    def until(self, mark: bytes, most: int = wire.MOST_HEAD) -> bytes:
        """Bytes up to and including `mark`. Gone at an end of stream between messages, Fault within one."""
        start = 0
        while (at := self.buffer.find(mark, start)) < 0:
            if len(self.buffer) > most:
                raise wire.Fault(f"no {mark!r} within {most} bytes")
            start = max(0, len(self.buffer) - len(mark))
            if not self.receive():
                self.end = "peer closed"
                raise Gone
        return self.take(at + len(mark))

    def take(self, size: int) -> bytes:
        piece = bytes(self.buffer[:size])
        del self.buffer[:size]
        return piece

    def some(self, most: int) -> bytes:
        """At least one byte, at most `most`."""
        if not self.buffer and not self.receive():
            self.end = "peer closed"
            raise Gone
        return self.take(min(most, len(self.buffer)))

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            self.end = self.end or "peer reset"
            raise Gone from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.end = self.end or "closed"
        self.closed.set()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.end = "closed"
        self.closed.set()

    def wait_closed(self, seconds: float = PATIENCE) -> None:
        """Until the connection's thread has seen its end."""
        assert self.closed.wait(seconds), f"connection {self.number} is still open after {seconds} s"


class Call:
    """What a handler works with: the request, its body to be read, and an answer to be sent as the test likes."""

    def __init__(self, upstream: Upstream, connection: Connection, request: Request) -> None:
        self.upstream, self.connection, self.request = upstream, connection, request
        self._left: int | None = wire.body_framing(request.headers)
        self._chunk = 0
        self.keep = True

    def read(self, most: int = 65536) -> bytes:
        """A piece of the decoded body; b"" at its end."""
        piece = self._read_chunked(most) if self._left is None else self._read_counted(most)
        self.request.body_size += len(piece)
        if len(self.request.body) < KEPT:
            self.request.body += piece
        if not piece:
            self.request.complete = True
        return piece

    def _read_counted(self, most: int) -> bytes:
        if not self._left:
            return b""
        piece = self.connection.some(min(most, self._left))
        self._left -= len(piece)
        return piece

    def _read_chunked(self, most: int) -> bytes:
        if not self._chunk:
            self._chunk = wire.parse_chunk_line(self.connection.until(b"\r\n", 100)[:-2])
            if not self._chunk:
                if self.connection.until(b"\r\n", 1000) != b"\r\n":
                    raise wire.Fault("a trailer reached the upstream")
                self._left = 0
                return b""
        piece = self.connection.some(min(most, self._chunk))
        self._chunk -= len(piece)
        if not self._chunk and self.connection.until(b"\r\n", 100) != b"\r\n":
            raise wire.Fault("a chunk does not end in CRLF")
        return piece

    def body(self) -> bytes:
        """The whole body; only for bodies below KEPT."""
        while self.read():
            pass
        return bytes(self.request.body)

    def send(self, *pieces: bytes) -> None:
        """Each piece by a send of its own."""
        for piece in pieces:
            self.connection.send(piece)

    def answer(self, status: int = 200, body: bytes = b"", *lines: str) -> None:
        """A whole answer with Content-Length; `lines` are further header lines."""
        head = "\r\n".join([f"HTTP/1.1 {status} Status", f"content-length: {len(body)}", *lines, "", ""])
        self.connection.send(head.encode("latin-1") + (b"" if self.request.method == "HEAD" else body))

    def close(self) -> None:
        """After the handler, close instead of waiting for another request."""
        self.keep = False

    def reset(self) -> None:
        self.connection.reset()
        raise Gone

    def wait_gone(self, seconds: float = PATIENCE) -> bool:
        """Whether graylb closes the connection within `seconds`; what arrives meanwhile is thrown away."""
        poller = select.poll()
        poller.register(self.connection.sock, select.POLLIN | select.POLLRDHUP)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not poller.poll(min(left, 0.2) * 1000):
                if self.upstream.stopping.is_set():
                    break
                continue
            try:
                if not self.connection.receive():
                    self.connection.end = "peer closed"
                    return True
            except Gone:
                return True
        return False


Handler = Callable[[Call], object]
"""Its result is thrown away, so that a lambda may give a tuple of steps."""


def greet(call: Call) -> None:
    """The default: read the body, tell its size."""
    call.body()
    call.answer(200, b"hello", f"x-upstream: {call.upstream.name}", f"x-body-size: {call.request.body_size}")


class Upstream:
    """Listens on a port of its own at once; threads start with the first connection asked for by `start`.

    `faults` must be empty at the end: everything that graylb sent was canonical.
    """

    def __init__(self, name: str = "up", handler: Handler = greet) -> None:
        self.name, self.default = name, handler
        self.paths: dict[str, Handler] = {}
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.faults: list[str] = []
        self.stopping = threading.Event()
        self._gates: list[threading.Event] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def start(self) -> Upstream:
        self._spawn(self._accept)
        return self

    def on(self, path: str, handler: Handler) -> None:
        """`handler` for requests whose path, without the query, is `path`."""
        self.paths[path] = handler

    def gate(self) -> threading.Event:
        """An event for a handler to wait on that is set at the latest when the upstream stops."""
        event = threading.Event()
        self._gates.append(event)
        return event

    def wait(self, holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Until `holds()`; it is asked again after each request, piece of news or 50 ms."""
        with self._changed:
            end = time.monotonic() + seconds
            while not holds():
                assert time.monotonic() < end, f"{self.name}: {what}: not within {seconds} s"
                self._changed.wait(0.05)

    def wait_requests(self, count: int) -> list[Request]:
        """Until `count` request heads have arrived in all."""
        self.wait(lambda: len(self.requests) >= count, f"{count} requests")
        return self.requests

    def of(self, path: str) -> list[Request]:
        """Requests whose target begins with `path`."""
        return [request for request in self.requests if request.target.startswith(path)]

    def settle(self) -> None:
        """Until everything that graylb has sent is read, and every connection that it has closed is seen as closed.

        Connections are accepted in order: once one of our own is served, all earlier ones are known.
        """
        with socket.create_connection(self.listener.getsockname(), PATIENCE) as mine:
            name = mine.getsockname()
        self.wait(lambda: any(one.peer == name for one in list(self.connections)), "our own connection")
        self.wait(lambda: all(self._is_quiet(one) for one in list(self.connections)), "quiet connections")

    @staticmethod
    def _is_quiet(connection: Connection) -> bool:
        if connection.closed.is_set():
            return True
        poller = select.poll()
        try:
            poller.register(connection.sock, select.POLLIN | select.POLLRDHUP)
            return connection.between and not connection.buffer and not poller.poll(0)
        except (OSError, ValueError):  # closed just now
            return False

    @property
    def open_connections(self) -> list[Connection]:
        return [connection for connection in self.connections if not connection.closed.is_set()]

    def refuse(self) -> None:
        """Close the listening socket: from now on connections are refused."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def stop(self) -> None:
        self.stopping.set()
        for gate in self._gates:
            gate.set()
        self.refuse()
        for connection in list(self.connections):
            connection.close()
        for thread in list(self._threads):
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{self.name}: a handler does not end"

    def check(self) -> None:
        """Everything that graylb sent was canonical."""
        faults, self.faults = self.faults, []
        assert not faults, f"{self.name} was sent what is not canonical: {faults}"

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=f"{self.name}-{target.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, peer, len(self.connections) + 1)
            self.connections.append(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            while self._serve_one(connection):
                pass
        except Gone:
            if connection.buffer and connection.between and connection.end.startswith("peer"):
                self.faults.append(f"the connection ended within a head: {bytes(connection.buffer[:200])!r}")
        except wire.Fault as fault:
            connection.end = "fault"
            self.faults.append(f"{fault} in {bytes(connection.raw[:2000])!r}")
        except Exception as error:
            if not self.stopping.is_set():  # then its socket was closed under it
                self.faults.append(f"the handler failed: {error!r}")
        finally:
            if not connection.closed.is_set():
                connection.close()
            with self._changed:
                self._changed.notify_all()

    def _serve_one(self, connection: Connection) -> bool:
        connection.between = True
        head = connection.until(b"\r\n\r\n")
        connection.between = False
        method, target, headers = wire.parse_request_head(head)
        request = Request(connection.number, head, method, target, headers)
        call = Call(self, connection, request)
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        self.paths.get(target.partition("?")[0], self.default)(call)
        if call.keep and not connection.closed.is_set():
            while call.read():
                pass
            return True
        return False


@contextlib.contextmanager
def running(*names: str) -> Iterator[list[Upstream]]:
    """Upstreams of these names, stopped and checked at the end."""
    upstreams = [Upstream(name).start() for name in names]
    try:
        yield upstreams
    finally:
        for upstream in upstreams:
            upstream.stop()
    for upstream in upstreams:
        upstream.check()
