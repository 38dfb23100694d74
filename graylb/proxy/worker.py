"""A worker process: the engine on an event loop of its own, told what to do through the channel.

`python -m graylb.proxy.worker --channel FD`, started by the supervisor. It is nobody in particular until it is given a
role: its number, and the sockets that are its own, which come as descriptors over the channel. Thus one can be started
in advance. It accepts clients once it is told to and its first table is loaded, and ends when the supervisor does.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ctypes
import faulthandler
import gc
import os
import resource
import signal
import socket
from collections.abc import Iterable
from typing import Any, Final, cast

import uvloop

from graylb import _engine, _fast
from graylb.proxy import channel

RESOLVE_EVERY: Final = 30.0
RESOLVE_PATIENCE: Final = 2.0
"""Seconds that a new table waits for host names; an instance whose name is not known by then fails until it is."""
MAX_PENDING: Final = 4 << 20
"""Bytes to the control process beyond which it does not get answers for comparison."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class Worker(asyncio.Protocol):
    """The channel's worker end: frames in, engine calls out.

    sockets: the descriptors to listen on, as they came. frames: what was read already, the role first of all; it is
    taken before anything that the transport reads, which it may do before whoever made it goes on.
    """

    def __init__(self, sockets: list[int], decoder: channel.Decoder, frames: Iterable[channel.Frame]) -> None:
        self.sockets = sockets
        self._frames = frames
        self.listeners: list[dict[str, Any]] = []
        self.done = asyncio.Event()
        self._engine: _engine.Engine | None = None
        self._decoder = decoder
        self._transport: asyncio.Transport | None = None
        self._tables: asyncio.Queue[channel.Frame] = asyncio.Queue()
        self._certificates: dict[str | None, Any] = {}  # a listener's key -> _tls.Certificates
        self._served: list[str | None] = []  # keys of the engine's listeners
        self._unusable = ""  # why the last certificates are
        self._tasks: set[asyncio.Task[None]] = set()
        self._loaded = False
        self._wanted = False
        self._serving = False
        self._dropped = 0  # pairs of answers that the control process did not take

    @property
    def engine(self) -> _engine.Engine:
        """Raises ChannelError before there is a role, without which nothing else may be told."""
        if self._engine is None:
            raise channel.ChannelError("told something before its role")
        return self._engine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's
        settle_memory()
        self.take(self._frames)

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()  # the supervisor is gone: nobody would tell us anything any more

    def data_received(self, data: bytes) -> None:
        self.take(self._decoder.feed(data))

    def take(self, frames: Iterable[channel.Frame]) -> None:
        for frame in frames:
            if frame.type == channel.ROLE:
                self._become(frame.json())
            elif frame.type in (channel.CERTIFICATES, channel.TABLE):
                self._tables.put_nowait(frame)
            elif frame.type == channel.LISTEN:
                self._wanted = True
                self._serve()
            elif frame.type == channel.PING:
                self._send(channel.encode(channel.PING))
            elif frame.type == channel.STATS:
                self._send(channel.encode_json(channel.STATS, self.engine.stats()))
            elif frame.type == channel.HEALTH:
                self.engine.set_down(frame.json())
            elif frame.type == channel.VIEWS:
                self.engine.watch(frame.json())
            elif frame.type == channel.MIRROR:
                told = frame.json()
                self.engine.watch_mirror(told["service"], told["seconds"], told["requests"], self._tell_pair)
            elif frame.type == channel.DRAIN:
                told = frame.json()
                self._drain(float(told["seconds"]), keep_idle=bool(told["keep_idle"]))

    def _tell_pair(self, service: str, pair: tuple[Any, ...]) -> None:
        """Both answers to a mirrored request, unless the control process does not keep up."""
        if self._transport is None or self._transport.get_write_buffer_size() > MAX_PENDING:
            self._dropped += 1
            return
        line, _, _, *answers = pair
        told = {"service": service, "line": line.decode("latin-1"), "dropped": self._dropped}
        self._dropped = 0
        self._send(channel.encode_json(channel.MIRROR, {**told, "answers": [answer(*each) for each in answers]}))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._transport is not None:
            self._transport.close()

    def _become(self, role: dict[str, Any]) -> None:
        number = role["worker"]
        self.listeners = [{**each, "fd": self.sockets[each["fd"]]} for each in role["listeners"]]
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"graylb-%d" % number)
        if role["cpu"] is not None:
            os.sched_setaffinity(0, {role["cpu"]})
        memory = -1 if role["memory"] is None else self.sockets.pop(role["memory"])  # the last one
        slab = -1 if role["slab"] is None else self.sockets.pop(role["slab"])  # behind those to listen on
        loop = asyncio.get_running_loop()
        self._engine = _engine.Engine(loop, number, slab, workers=role["workers"], memory=memory)
        self._engine.on_ejections = self._tell_ejected
        for fd in (slab, memory):
            if fd >= 0:
                os.close(fd)
        if role["pipes"]:
            ring, bell, events = (self.sockets[number] for number in role["pipes"])
            self._engine.open_logs(ring, bell, events)
            os.close(ring)
            del self.sockets[-len(role["pipes"]) :]  # they outlive a drain
        self._start(self._load_tables())
        self._start(self._keep_resolving())

    def _start(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _tell_ejected(self) -> None:
        self._send(channel.encode_json(channel.EJECTED, self.engine.ejected()))

    async def _load_tables(self) -> None:
        """One table after the other, in order, each acknowledged."""
        while True:
            frame = await self._tables.get()
            if frame.type == channel.CERTIFICATES:
                self._certify(frame.json())
                continue
            try:
                if self._unusable:
                    raise ValueError(self._unusable)
                table = _fast.Table(frame.payload)
            except (ValueError, MemoryError) as error:
                answer = {"revision": -1, "error": str(error) or "out of memory"}
            else:
                await self._swap(table)
                answer = {"revision": table.revision, "digest": table.digest}
                self._loaded = True
            self._send(channel.encode_json(channel.ACK, answer))
            self._serve()

    def _certify(self, told: dict[str, Any]) -> None:
        """Takes all of it, or nothing and refuses the next table."""
        files = {digest: text.encode() for digest, text in told["files"].items()}
        self._unusable = ""
        try:
            made = _usable(told, files)
        except (ValueError, KeyError, MemoryError) as error:
            self._unusable = f"certificates cannot be used: {error}"
            return
        self._certificates = made
        self.engine.certify([made.get(key) for key in self._served], files)

    async def _swap(self, table: _fast.Table) -> None:
        self.engine.swap(table)
        fresh = [key for key, known in self.engine.upstream_names() if not known]
        if fresh:
            await asyncio.wait([asyncio.ensure_future(self._resolve(*key)) for key in fresh], timeout=RESOLVE_PATIENCE)

    def _serve(self) -> None:
        """Accepts clients, when it is told to and has a table to serve them by."""
        if self._serving or not (self._wanted and self._loaded):
            return
        self._serving = True
        settle_memory()
        for listener in self.listeners:
            certificates = self._certificates.get(listener["tls"])
            if listener["tls"] is None or certificates is not None:  # else it would be served in the clear
                self.engine.listen(**{**listener, "tls": certificates})
                self._served.append(listener["tls"])
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

    def _drain(self, seconds: float, *, keep_idle: bool) -> None:
        self.engine.drain(self.done.set, keep_idle=keep_idle)
        for fd in self.sockets:
            os.close(fd)  # while any process holds one open, the kernel goes on taking connections for it
        self.sockets.clear()
        asyncio.get_running_loop().call_later(seconds, self.done.set)


def answer(status: int, head: bytes, body: bytes, size: int, trailers: bytes, complete: bool) -> dict[str, Any]:
    """An answer as the channel has it: its texts in base64."""
    texts = {"head": head, "body": body, "trailers": trailers}
    coded = {name: base64.b64encode(text).decode() for name, text in texts.items()}
    return {"status": status, "size": size, "complete": complete, **coded}


def _usable(told: dict[str, Any], files: dict[str, bytes]) -> dict[str | None, Any]:
    """The certificates of listeners by their keys. A build without TLS is told of the secret of marks alone."""
    if not told["listeners"] and not told["tickets"]:
        return {}
    from graylb import _tls

    made: dict[str | None, Any] = {key: _certificates(_tls, each, files) for key, each in told["listeners"].items()}
    _tls.set_ticket_keys([base64.b64decode(key) for key in told["tickets"]])
    return made


def _certificates(tls: Any, told: dict[str, Any], files: dict[str, bytes]) -> Any:
    entries = [
        {**each, **{part: files[each[part]] for part in ("cert", "key", "client_ca") if each[part] is not None}}
        for each in told["certificates"]
    ]
    return tls.Certificates(entries, told["protocols"])


def settle_memory() -> None:
    """What start-up made stays; collections need not look at it."""
    gc.collect()
    gc.freeze()


def wait_for_role(told: socket.socket, decoder: channel.Decoder) -> tuple[list[int], list[channel.Frame]]:
    """(descriptors, frames that came), once a role did; no frames when the supervisor is gone before."""
    sockets: list[int] = []
    frames: list[channel.Frame] = []
    while not any(frame.type == channel.ROLE for frame in frames):
        data, fds, _, _ = socket.recv_fds(told, 1 << 16, channel.SOCKETS_AT_ONCE)
        if not data:
            return [], []
        sockets += fds
        frames += decoder.feed(data)
    return sockets, frames


async def serve(told: socket.socket, sockets: list[int], decoder: channel.Decoder, frames: list[channel.Frame]) -> None:
    """Runs until drained or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    worker = Worker(sockets, decoder, frames)
    await loop.create_connection(lambda: worker, sock=told)
    try:
        await worker.done.wait()
    finally:
        worker.close()


def main() -> None:
    # signals to the group or the service are the supervisor's business: it tells us what they mean for us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ValueError, RuntimeError, AttributeError):  # without a stderr there is nowhere to write to
        faulthandler.register(channel.STACK_SIGNAL)
    parser = argparse.ArgumentParser(prog="graylb worker")
    parser.add_argument("--channel", type=int, required=True)
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_BATCH:  # as the control process, which started this one
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # what waits for a slow reader is some 256 KiB: as a mapping of its own it would cost page faults every time
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 8 << 20)
    if os.getppid() != parent:
        return  # it died before we asked to be told
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor is a connection here
    told, decoder = socket.socket(fileno=options.channel), channel.Decoder()
    sockets, frames = wait_for_role(told, decoder)
    if frames:
        uvloop.run(serve(told, sockets, decoder, frames))


if __name__ == "__main__":
    main()
