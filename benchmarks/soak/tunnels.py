"""Many WebSockets through the proxy while its configuration changes: none may be cut, no request may fail."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.failure import BenchError
from benchmarks.load import wrk
from benchmarks.load.cases import CASES
from benchmarks.load.stage import Stage, end, spawn
from benchmarks.soak.proxy import Proxy, until

KEY = base64.b64encode(b"0123456789abcdef")
OFFER = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
UNDER = next(case for case in CASES if case.name == "get-128")
PATIENCE = 20.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def accept_key(key: bytes) -> bytes:
    """Sec-WebSocket-Accept: RFC 6455, section 4.2.2."""
    return base64.b64encode(hashlib.sha1(key + MAGIC).digest())


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The instance's end: the handshake, then every byte back."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        key = next(value for name, value in fields.items() if name.lower() == b"sec-websocket-key")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + accept_key(key) + b"\r\n\r\n")
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the proxy went away
    finally:
        await leave((reader, writer))


async def leave(streams: Streams) -> None:
    streams[1].close()
    with suppress(ConnectionError):
        await streams[1].wait_closed()


@contextmanager
def echo() -> Iterator[int]:
    """An echo server for tunnels, on an event loop of its own; yields its port."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with await asyncio.start_server(talk, "127.0.0.1", 0, backlog=2048) as server:
            started.set_result((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    loop, stop, port = started.result(PATIENCE)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)


def frame(text: bytes) -> bytes:
    """A masked text frame of up to 125 bytes (RFC 6455, section 5.2), with a mask of zeros."""
    return bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text


async def open_one(port: int) -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(OFFER)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    if not head.startswith(b"HTTP/1.1 101") or accept_key(KEY) not in head:
        raise BenchError(f"a WebSocket handshake got {head[:100]!r}")
    return reader, writer


async def echoes(streams: Streams, text: bytes) -> bool:
    """Whether what is sent comes back."""
    reader, writer = streams
    try:
        writer.write(frame(text))
        await writer.drain()
        return await asyncio.wait_for(reader.readexactly(len(frame(text))), PATIENCE) == frame(text)
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return False


async def hold(proxy: Proxy, count: int, changes: int) -> tuple[int, int]:
    """(tunnels opened, tunnels cut) over so many changes of the configuration. Some speak after every change, all at
    the end."""
    loop = asyncio.get_running_loop()
    tunnels = [await open_one(proxy.port) for _ in range(count)]
    cut: set[int] = set()
    try:
        for number in range(1, changes + 1):
            await loop.run_in_executor(None, proxy.change, number % 50, number)
            some = range(number % 10, count, 10)
            answers = await asyncio.gather(*(echoes(tunnels[each], b"change %d" % number) for each in some))
            cut |= {each for each, came in zip(some, answers, strict=True) if not came}
            if number % 20 == 0 or number == changes:
                print(f"change {number} of {changes}: {len(cut)} of {count} WebSockets cut", flush=True)
        answers = await asyncio.gather(*(echoes(each, b"the last word") for each in tunnels))
        cut |= {each for each, came in enumerate(answers) if not came}
    finally:
        await asyncio.gather(*map(leave, tunnels))
    return len(tunnels), len(cut)


def run(on: Stage, proxy: Proxy, count: int, changes: int) -> dict[str, Any]:
    """The raw result. Raises BenchError when a change is never applied or a tunnel cannot be opened."""
    opened = cut = requests = failed = 0
    command = wrk.command(UNDER, proxy.port, 3600)
    load = spawn(command, on.cores.load)
    try:
        opened, cut = asyncio.run(hold(proxy, count, changes))
        if load.poll() is not None:
            raise BenchError("the load ended during the changes")
        load.send_signal(signal.SIGINT)  # wrk ends its run and tells its figures
        output, _ = load.communicate(timeout=30)
        requests, failed = wrk.count(output, "the load during changes")
    finally:
        end(load)
    until(lambda: proxy.worker_stats()["tunnels"] == 0, "all tunnels gone")
    return {"opened": opened, "cut": cut, "changes": changes, "requests": requests, "failed": failed}
