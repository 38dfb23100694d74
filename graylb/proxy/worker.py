"""A worker process: the engine on an event loop of its own, told what to do through the channel.

`python -m graylb.proxy.worker --channel FD --listen FD[,FD…] --worker N`, started by the supervisor, whose descriptors
it inherits. It accepts clients once its first table is loaded, and ends when the supervisor does.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import resource
import signal
import socket
from typing import Final, cast

import uvloop

from graylb import _engine, _fast
from graylb.proxy import channel

RESOLVE_EVERY: Final = 30.0
RESOLVE_PATIENCE: Final = 2.0
"""Seconds that a new table waits for host names; an instance whose name is not known by then fails until it is."""
PR_SET_PDEATHSIG: Final = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class Worker(asyncio.Protocol):
    """The channel's worker end: frames in, engine calls out."""

    def __init__(self, engine: _engine.Engine, listeners: list[int]) -> None:
        self.engine = engine
        self.listeners = listeners
        self.done = asyncio.Event()
        self._decoder = channel.Decoder()
        self._transport: asyncio.Transport | None = None
        self._tables: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's
        self._start(self._load_tables())
        self._start(self._keep_resolving())

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()  # the supervisor is gone: nobody would tell us anything any more

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.type == channel.TABLE:
                self._tables.put_nowait(frame.payload)
            elif frame.type == channel.STATS:
                self._send(channel.encode_json(channel.STATS, self.engine.stats()))
            elif frame.type == channel.DRAIN:
                self._drain(float(frame.json()["seconds"]))

    def _start(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _load_tables(self) -> None:
        """One table after the other, in order, each acknowledged."""
        while True:
            image = await self._tables.get()
            try:
                table = _fast.Table(image)
            except (ValueError, MemoryError) as error:
                answer = {"revision": -1, "error": str(error) or "out of memory"}
            else:
                await self._swap(table)
                answer = {"revision": table.revision, "digest": table.digest}
            self._send(channel.encode_json(channel.ACK, answer))
            if not self._serving and "digest" in answer:
                self._serve()

    async def _swap(self, table: _fast.Table) -> None:
        self.engine.swap(table)
        fresh = [key for key, known in self.engine.upstream_names() if not known]
        if fresh:
            await asyncio.wait([asyncio.ensure_future(self._resolve(*key)) for key in fresh], timeout=RESOLVE_PATIENCE)

    def _serve(self) -> None:
        """The first table is in force: accept clients."""
        self._serving = True
        gc.collect()
        gc.freeze()  # what start-up made stays; collections need not look at it
        for fd in self.listeners:
            self.engine.listen(fd)
        self._send(channel.encode_json(channel.READY, {"pid": os.getpid()}))

    async def _keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(RESOLVE_EVERY)
            for key, _ in self.engine.upstream_names():
                await self._resolve(*key)

    async def _resolve(self, service: str, address: str) -> None:
        """The last good address stays when the name cannot be resolved."""
        host, _, port = address.rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError:
            return
        # IPv4 first: a name such as localhost often has an IPv6 address that nobody listens on
        best = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        self.engine.resolved(service, address, str(best[4][0]))

    def _drain(self, seconds: float) -> None:
        self.engine.drain(self.done.set)
        for fd in self.listeners:
            os.close(fd)  # while any process holds one open, the kernel goes on taking connections for it
        self.listeners.clear()
        asyncio.get_running_loop().call_later(seconds, self.done.set)


async def serve(options: argparse.Namespace) -> None:
    """Runs until drained or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    engine = _engine.Engine(loop, options.worker)
    worker = Worker(engine, [int(fd) for fd in options.listen.split(",")])
    # a signal that was meant for the supervisor must not cut requests off; it tells us to drain
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    transport, _ = await loop.create_connection(lambda: worker, sock=socket.socket(fileno=options.channel))
    try:
        await worker.done.wait()
    finally:
        engine.close()
        transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="graylb worker")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--worker", type=int, default=0)
    options = parser.parse_args()
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # what waits for a slow reader is some 256 KiB: as a mapping of its own it would cost page faults every time
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 8 << 20)
    if os.getppid() != parent:
        return  # it died before we asked to be told
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor is a connection here
    uvloop.run(serve(options))


if __name__ == "__main__":
    main()
