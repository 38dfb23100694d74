"""`python -m benchmarks.faults.origin NAME PORT LEDGER`: an HTTP/1.1 upstream to be killed, frozen and made ill.

GET /N: N bytes; /late/MS: an answer after so many milliseconds; /never: none; /health: 200, or 503 while it is ill;
/work/MS: after so much work, which it does for WORKERS at a time, the others wait; /count: how many it got.
The value of x-id is appended to LEDGER, which outlives a SIGKILL, before a POST is answered; POST /sink reads 64 KiB in
each 50 ms. SIGUSR1 makes it ill (every answer is 503), SIGUSR2 well. Answers carry x-origin: NAME. Prints its port.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable

import uvloop

PIECE = b"x" * 262_144
WORKERS = 4
SINK = 0.05
"""Seconds between two reads of a sink, which takes what fits into the socket's buffer of 64 KiB."""


class State:
    def __init__(self, name: str, ledger: str) -> None:
        self.name = name
        self.ill = False
        self.count = 0
        self.working = 0
        self.waiting: deque[Callable[[], None]] = deque()
        self.ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


class Connection(asyncio.Protocol):
    """One request after the other; a body is counted and dropped."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = bytearray()
        self.left = 0  # of the request's body
        self.more = 0  # of the answer's
        self.free = True
        self.line: list[str] = []
        self.id = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.more = 0

    def data_received(self, data: bytes) -> None:
        if self.left:
            taken = min(self.left, len(data))
            self.left -= taken
            if self.line[1].startswith("/sink"):
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(SINK, self._resume)
            if self.left:
                return
            data = data[taken:]
            self.finish()
        self.buffer += data
        while not self.left and (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end])
            del self.buffer[: end + 4]
            self.begin(head)

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def begin(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        self.line = lines[0].decode("latin-1").split(" ")
        self.id = b""
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            lower = name.lower()
            if lower == b"content-length":
                length = int(value)
            elif lower == b"x-id":
                self.id = value.strip()
        taken = min(length, len(self.buffer))
        del self.buffer[:taken]
        self.left = length - taken
        if not self.left:
            self.finish()

    def finish(self) -> None:
        method, target, _ = self.line
        if method == "POST" and self.id:
            os.write(self.state.ledger, self.id + b"\n")
        loop = asyncio.get_running_loop()
        if target.startswith("/count"):
            self.text(str(self.state.count))
            return
        self.state.count += not target.startswith("/health")
        if target.startswith("/never"):
            return
        if target.startswith("/work/"):
            self.work(int(target[6:]) / 1000)
            return
        if target.startswith("/late/"):
            loop.call_later(int(target[6:]) / 1000, self.answer, 16)
        else:
            size = target[1:].partition("?")[0]
            self.answer(int(size) if size.isdigit() and method == "GET" else 16)

    def work(self, seconds: float) -> None:
        """One of WORKERS does it, first come, first served; who has gone by then is done for nothing."""
        state = self.state
        if state.working >= WORKERS:
            state.waiting.append(lambda: self.work(seconds))
            return
        state.working += 1
        asyncio.get_running_loop().call_later(seconds, self.worked)

    def worked(self) -> None:
        self.state.working -= 1
        self.answer(16)
        if self.state.waiting:
            self.state.waiting.popleft()()

    def text(self, said: str) -> None:
        self.transport.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(said)}\r\n\r\n{said}".encode())

    def answer(self, size: int) -> None:
        if self.transport.is_closing():
            return
        status = "503 Service Unavailable" if self.state.ill else "200 OK"
        head = f"HTTP/1.1 {status}\r\nx-origin: {self.state.name}\r\ncontent-length: {size}\r\n\r\n".encode()
        if size <= len(PIECE):
            self.transport.write(head + PIECE[:size])
            return
        self.transport.write(head)
        self.more = size
        self.pump()

    def pump(self) -> None:
        while self.more and self.free:
            size = min(self.more, len(PIECE))
            self.more -= size
            self.transport.write(PIECE[:size])

    def pause_writing(self) -> None:
        self.free = False

    def resume_writing(self) -> None:
        self.free = True
        asyncio.get_running_loop().call_soon(self.pump)


async def serve(state: State, port: int) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, setattr, state, "ill", True)
    loop.add_signal_handler(signal.SIGUSR2, setattr, state, "ill", False)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    server = await loop.create_server(lambda: Connection(state), sock=listener)
    print(listener.getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(State(sys.argv[1], sys.argv[3]), int(sys.argv[2])))
