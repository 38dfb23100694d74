"""Clients that misbehave, one after the other, beside the load: what they leave behind is what a soak looks for."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from types import TracebackType

HOST = b"Host: x\r\n"
LINGER_NONE = struct.pack("ii", 1, 0)
"""Closing with this resets the connection."""

# name -> (what is sent, bytes to read before leaving, leave by a reset, statuses that may come)
KINDS: dict[str, tuple[bytes, int, bool, tuple[bytes, ...]]] = {
    "nothing": (b"", 0, False, ()),
    "half a head": (b"GET /128 HTTP/1.1\r\nHos", 0, False, ()),
    "reset after the request": (b"GET /128 HTTP/1.1\r\n" + HOST + b"\r\n", 0, True, ()),
    "a tenth of the answer": (b"GET /1048576 HTTP/1.1\r\n" + HOST + b"\r\n", 100_000, True, (b"200",)),
    "a tenth of the request": (
        b"POST /128 HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n" + b"b" * 10_000, 0, True, (),
    ),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 4096, False, (b"400",)),
    "two lengths": (
        b"POST /128 HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 4096, False, (b"400",),
    ),
    "a head too large": (
        b"GET /128 HTTP/1.1\r\n" + HOST + b"X-Large: " + b"x" * 100_000 + b"\r\n\r\n", 4096, False, (b"431",),
    ),
    "an instance that is down": (
        b"GET /128 HTTP/1.1\r\n" + HOST + b"X-Service-Version: broken\r\n\r\n", 4096, False, (b"502", b"503", b"504"),
    ),
    "HTTP/1.0": (b"GET /128 HTTP/1.0\r\n" + HOST + b"\r\n", 4096, False, (b"200",)),
}  # fmt: skip


def misbehave(port: int, name: str) -> str | None:
    """Does one of KINDS; a text when the answer was not one of those expected."""
    sent, read, reset, statuses = KINDS[name]
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        received = b""
        try:
            client.sendall(sent)
            while len(received) < read:
                piece = client.recv(65536)
                if not piece:
                    break
                received += piece
                if read == 4096 and b"\r\n\r\n" in received:
                    break
        except ConnectionError:
            pass  # it refused before it had read everything
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
    if statuses and received and received[9:12] not in statuses:
        return f"{name}: {received[:80]!r}"
    if statuses and not received and name != "a head too large":  # whose answer the reset may overtake
        return f"{name}: no answer"
    return None


class Trouble:
    """A thread that goes round KINDS until the block ends."""

    def __init__(self, port: int, pause: float = 0.005) -> None:
        self.port, self.pause = port, pause
        self.done: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            for name in KINDS:
                if self._end.wait(self.pause):
                    return
                try:
                    odd = misbehave(self.port, name)
                except OSError as error:
                    odd = f"{name}: {error}"
                self.done[name] += 1
                if odd:
                    self.unexpected.append(odd)
