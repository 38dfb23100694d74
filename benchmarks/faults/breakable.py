"""`python -m benchmarks.faults.breakable PORT`: a TCP proxy before 127.0.0.1:PORT that can be broken while it works.

It prints the port that it listens on. Each line on its standard input names what is wrong from then on, for connections
that are open and new ones, and is repeated on standard output once it is in force:

| line | what happens |
| --- | --- |
| `pass` | nothing is wrong |
| `refuse` | nobody listens: connections are refused, open ones are reset |
| `stall` | connections are taken, and nothing gets through in either direction |
| `reset` | whoever sends something is reset |
| `half` | half of the first piece of an answer, then the end |
| `garbage` | an answer is replaced by bytes that are no HTTP |
| `late MS` | every piece of an answer is MS milliseconds late |
| `lossy PERCENT` | so many of the pieces wait 200 ms, as after a lost segment |
| `drip` | an answer comes a byte at a time, one each millisecond |
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys

GARBAGE = bytes(range(128, 256)) * 4 + b"\r\n\r\n"
RETRANSMISSION = 0.2
"""Seconds until the kernel sends a lost segment again."""
MODES = ("pass", "refuse", "stall", "reset", "half", "garbage", "late", "lossy", "drip")


class Breakable:
    """`mode` and `value` are as the last line had them."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.mode, self.value = "pass", 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def set(self, line: str) -> None:
        """Raises ValueError for a line that means nothing."""
        mode, _, value = line.strip().partition(" ")
        if mode not in MODES:
            raise ValueError(f"{line!r}: expected one of {', '.join(MODES)}")
        self.mode, self.value = mode, int(value or 0)
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
            for each in list(self._open):
                _reset(each)
        elif mode != "refuse" and self._server is None:
            await self.listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            _reset(writer)
            self._open.discard(writer)
            return
        ways = [
            asyncio.create_task(self._pump(reader, back, writer, answer=False)),
            asyncio.create_task(self._pump(there, writer, writer, answer=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, back):
                end.close()
            self._open.discard(writer)

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, client: asyncio.StreamWriter, *, answer: bool
    ) -> None:
        """One direction, until its end or until the fault of the time ends the connection."""
        with contextlib.suppress(OSError):
            while piece := await source.read(65_536):
                while self.mode == "stall":
                    await self._changed.wait()
                if self.mode == "reset":
                    _reset(client)
                    return
                if not await self._forward(piece, to, answer=answer):
                    return

    async def _forward(self, piece: bytes, to: asyncio.StreamWriter, *, answer: bool) -> bool:
        """Whether the connection goes on."""
        if self.mode == "lossy" and random.random() * 100 < self.value:
            await asyncio.sleep(RETRANSMISSION)
        if answer and self.mode == "late":
            await asyncio.sleep(self.value / 1000)
        if answer and self.mode in ("half", "garbage"):
            to.write(piece[: len(piece) // 2] if self.mode == "half" else GARBAGE)
            await to.drain()
            return False
        if answer and self.mode == "drip":
            for at in range(len(piece)):
                to.write(piece[at : at + 1])
                await asyncio.sleep(0.001)
            return True
        to.write(piece)
        await to.drain()
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main() -> None:
    proxy = Breakable(int(sys.argv[1]))
    await proxy.listen()
    print(proxy.port, flush=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        await proxy.set(line.decode())
        print(line.decode().strip(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
