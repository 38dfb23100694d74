"""Ends that count exactly: an instance that counts what it is asked, callers that ask so many times and count answers.

Both on one uvloop, with fixed messages, so that a million requests are a matter of a minute.
"""

from __future__ import annotations

import asyncio
from collections import Counter

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Instance(asyncio.Protocol):
    """Requests without bodies, answered at once."""

    def __init__(self, counts: Counter[str], name: str) -> None:
        self.counts, self.name = counts, name
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        count = data.count(b"\r\n\r\n")
        self.rest = data.rpartition(b"\r\n\r\n")[2]
        self.counts[self.name] += count
        self.transport.write(ANSWER * count)


class Caller(asyncio.Protocol):
    """One connection that asks again when it is answered, as long as `left` of its crowd is not used up."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.data = b""
        self.waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.ask()

    def ask(self) -> None:
        if self.crowd.left == 0:
            self.crowd.idle(self)
            return
        self.crowd.left -= 1
        self.waits = True
        self.transport.write(self.crowd.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head = self.data.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self.data.index(b"content-length: ") + 16
        size = head + 4 + int(self.data[at : self.data.index(b"\r\n", at)])
        if len(self.data) < size:
            return
        assert len(self.data) == size
        self.crowd.statuses[int(self.data[9:12])] += 1
        self.data, self.waits = b"", False
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.gone(self)


class Crowd:
    """Callers that make so many requests in all; statuses: of the answers; lost: asked, and the connection went."""

    def __init__(self, address: str, callers: int = 16, request: bytes = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") -> None:
        self.host, _, port = address.rpartition(":")
        self.port, self.callers, self.request = int(port), callers, request
        self.left = 0
        self.lost = 0
        self.statuses: Counter[int] = Counter()
        self.done = asyncio.Event()
        self._open = 0
        self._idle: list[Caller] = []

    async def ask(self, requests: int, patience: float) -> None:
        """Over fresh connections, which are closed then."""
        loop = asyncio.get_running_loop()
        self.left = requests
        self.done.clear()
        self._open = self.callers
        try:
            for _ in range(self.callers):
                await loop.create_connection(lambda: Caller(self), self.host, self.port)
            await asyncio.wait_for(self.done.wait(), patience)
        finally:
            for each in self._idle:
                each.transport.close()
            self._idle.clear()

    def idle(self, caller: Caller) -> None:
        self._idle.append(caller)
        if len(self._idle) == self._open:
            self.done.set()

    def gone(self, caller: Caller) -> None:
        """A connection that ends with a question open has lost it; nobody asks it again."""
        self.lost += caller.waits
        if caller not in self._idle:
            self._open -= 1
            if len(self._idle) == self._open:
                self.done.set()
