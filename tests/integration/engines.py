"""An engine on the test's own loop, between scripted origins and callers on the same loop.

What the loop runs next is the test's to say, so order, waiting and counters are looked at without races. `run(test)`
gives a test its `Rig` and looks behind it: no exchange, no client, no request that waits, no connection but pooled
ones, no descriptor is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import h11
import uvloop
from proxyprotocol.result import ProxyResult
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from graylb import _engine, _fast, table
from graylb.model import snapshot as model
from graylb.model.snapshot import Connections, Forwarding, Instance, Limits, Route, Rule, Service, Timeouts
from graylb.model.snapshot_observe import AccessLog, Tracing
from graylb.release.slots import allocate
from tests.integration import wire

PATIENCE = 8.0
LIMITS = Limits(header_timeout=5.0, idle_timeout=5.0, body_timeout=5.0, half_close_grace=0.2)
TIMEOUTS = Timeouts(connect=5.0, response=5.0, idle=60.0)
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


async def until(holds: Callable[[], Any], what: Callable[[], Any] | str, seconds: float = PATIENCE) -> Any:
    """Lets the loop run until it holds; gives what it gave."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, what if isinstance(what, str) else what()
        await asyncio.sleep(0.005)
    return found


async def within(work: Awaitable[Any], seconds: float = PATIENCE) -> Any:
    return await asyncio.wait_for(work, seconds)


async def turns(count: int = 20) -> None:
    """Lets everything that is ready now have its turn, and what follows from it."""
    for _ in range(count):
        await asyncio.sleep(0)


def fds() -> list[str]:
    """What every descriptor of this process is, but for the one that reads the list."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r"\[\d+\]", "", os.readlink(f"/proc/self/fd/{fd}")))
    return sorted(found)


# ---- ends ------------------------------------------------------------------------------------------------------------


class Link(asyncio.Protocol):
    """One connection's end: what arrived, as a buffer to read from."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.buffer = bytearray()
        self.raw = bytearray()  # everything that arrived
        self.eof = self.lost = False
        self.keeps = False  # stays open after the other side's end
        self.peer: Any = None
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.peer = transport.get_extra_info("peername")

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self.buffer += data
        self._news.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._news.set()
        return self.keeps

    def connection_lost(self, error: Exception | None) -> None:
        self.eof = self.lost = True
        self._news.set()

    async def more(self) -> bool:
        """Waits for news; False: there will be none."""
        if self.eof:
            return False
        self._news.clear()
        await within(self._news.wait())
        return True

    async def news(self) -> bool:
        """The same, for as long as it takes."""
        if self.eof:
            return False
        self._news.clear()
        await self._news.wait()
        return True

    async def until(self, mark: bytes) -> bytes:
        """Bytes up to and including `mark`; EOFError."""
        while (at := self.buffer.find(mark)) < 0:
            if not await self.more() and mark not in self.buffer:
                raise EOFError(bytes(self.buffer[:300]))
        return self.take(at + len(mark))

    async def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not await self.more() and len(self.buffer) < size:
                raise EOFError(bytes(self.buffer[:300]))
        return self.take(size)

    def take(self, size: int) -> bytes:
        piece = bytes(self.buffer[:size])
        del self.buffer[:size]
        return piece

    async def ended(self) -> bytes:
        """Waits for the other side's end, or reset -> what was not read yet."""
        while await self.more():
            pass
        return self.take(len(self.buffer))

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        self.transport.close()

    def established(self) -> bool:
        """As the kernel sees it: the other side's end may have arrived and not been read yet."""
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as same:
            unix = same.family == socket.AF_UNIX
            return unix or same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1"

    def end_now(self) -> None:
        """The end is on its way before this returns; `close` leaves that to the loop."""
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)

    def reset_now(self) -> None:
        """The reset is on its way before this returns (a connect to nowhere dissolves a connection on Linux)."""
        assert ctypes.CDLL(None).connect(self.transport.get_extra_info("socket").fileno(), bytes(16), 16) == 0

    def write_now(self, data: bytes) -> None:
        """Past the loop's queue: the kernel has it before this returns."""
        assert os.write(self.transport.get_extra_info("socket").fileno(), data) == len(data)

    def reset(self) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.transport.abort()


@dataclass
class Answer:
    status: int
    headers: wire.Headers
    body: bytes

    def get(self, name: str) -> str | None:
        found = wire.values(self.headers, name)
        assert len(found) <= 1, found
        return found[0] if found else None


def request(method: str = "GET", target: str = "/", *lines: str, host: str = "up", body: bytes | None = None) -> bytes:
    length = [] if body is None else [f"Content-Length: {len(body)}"]
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, *length, "", ""]).encode() + (
        body or b""
    )


class Caller(Link):
    """A client's connection."""

    async def answer(self, method: str = "GET") -> Answer:
        """The next final answer, by h11."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                if not self.buffer and not await self.more() and not self.buffer:
                    parser.receive_data(b"")
                else:
                    parser.receive_data(self.take(len(self.buffer)))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                self.buffer[:0] = parser.trailing_data[0]
                headers = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
                return Answer(head.status_code, headers, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):
                raise AssertionError(f"the connection ended before an answer: {event!r}")

    async def ask(self, method: str = "GET", target: str = "/", *lines: str, **more: Any) -> Answer:
        self.write(request(method, target, *lines, **more))
        return await self.answer(method)


class Ask:
    """One request at an origin. The answer waits for `go` where the target begins with /hold."""

    def __init__(self, link: OriginLink, head: bytes) -> None:
        self.link = link
        self.head = head
        self.method, self.target, self.headers = wire.parse_request_head(head)
        self.body = bytearray()
        self.go = asyncio.Event()

    def get(self, name: str) -> str | None:
        found = wire.values(self.headers, name)
        assert len(found) <= 1, found
        return found[0] if found else None

    async def read_body(self) -> bytes:
        left = wire.body_framing(self.headers)
        if left is not None:
            self.body += await self.link.exactly(left)
            return bytes(self.body)
        while size := wire.parse_chunk_line((await self.link.until(b"\r\n"))[:-2]):
            self.body += await self.link.exactly(size)
            assert await self.link.exactly(2) == b"\r\n"
        assert await self.link.exactly(2) == b"\r\n"
        return bytes(self.body)

    def answer(self, body: bytes = b"hello", *lines: str, status: int = 200) -> None:
        head = "\r\n".join([f"HTTP/1.1 {status} Status", f"content-length: {len(body)}", *lines, "", ""])
        self.link.write(head.encode() + (b"" if self.method == "HEAD" else body))


Handler = Callable[[Ask], Awaitable[object]]


class OriginLink(Link):
    """A connection that graylb opened."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        self.told: ProxyResult | None = None  # what its PROXY header says
        self.asks: list[Ask] = []
        self.task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.origin.links.append(self)
        self.origin.most = max(self.origin.most, sum(link.established() for link in self.origin.open))
        self.task = asyncio.get_running_loop().create_task(self.serve())

    async def serve(self) -> None:
        try:
            if self.origin.proxied:
                await self._proxy_header()
            while True:
                ask = Ask(self, await self.until(b"\r\n\r\n"))
                self.asks.append(ask)
                self.origin.asks.append(ask)
                await self.origin.handle(ask)
        except (EOFError, ConnectionError):
            pass
        except Exception as error:
            if self.lost or self.transport.is_closing():
                return  # its connection went under the handler
            self.origin.faults.append(f"{error!r} at {bytes(self.raw[:300])!r}")
        finally:
            self.transport.close()

    async def _proxy_header(self) -> None:
        """By another implementation; what follows must be a request."""
        if (await self._peek(1))[:1] == b"P":
            self.told = ProxyProtocolV1().unpack(await self.until(b"\r\n"))
        else:
            head = await self.exactly(16)
            assert head[:12] == SIGNATURE, head
            self.told = ProxyProtocolV2().unpack(head + await self.exactly(int.from_bytes(head[14:16], "big")))

    async def _peek(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not await self.more():
                raise EOFError
        return bytes(self.buffer)


class Origin:
    """An HTTP/1.1 server. `handlers` by path; the default reads the body and says hello, after `ask.go` if held.

    links: every connection in the order it came; most: how many were open at once. faults: what was not canonical.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        path: str | None = None,
        proxied: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.proxied, self.host, self.path, self.tls = proxied, host, path, tls
        self.links: list[OriginLink] = []
        self.asks: list[Ask] = []
        self.handlers: dict[str, Handler] = {}
        self.faults: list[str] = []
        self.most = 0
        self.address = ""
        self.server: asyncio.Server

    @property
    def open(self) -> list[OriginLink]:
        return [link for link in self.links if not link.eof]

    async def start(self) -> Origin:
        loop = asyncio.get_running_loop()
        if self.path is not None:
            self.server = await loop.create_unix_server(lambda: OriginLink(self), self.path, backlog=512)
            self.address = f"unix:{self.path}"
        else:
            port = int(self.address.rpartition(":")[2] or 0)
            self.server = await loop.create_server(lambda: OriginLink(self), self.host, port, backlog=512, ssl=self.tls)
            port = self.server.sockets[0].getsockname()[1]
            self.address = f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
        return self

    async def handle(self, ask: Ask) -> None:
        path = ask.target.partition("?")[0]
        if path in self.handlers:
            await self.handlers[path](ask)
            return
        await ask.read_body()
        if ask.target.startswith("/hold"):
            await ask.go.wait()
        ask.answer()

    async def asked(self, count: int) -> list[Ask]:
        await until(lambda: len(self.asks) >= count, lambda: f"{len(self.asks)} of {count} requests")
        return self.asks

    async def kill(self) -> None:
        """As kill -9: takes no connections any more and resets those it has."""
        self.server.close()
        for link in self.open:
            link.reset()
        await turns()

    async def stop(self) -> None:
        self.server.close()
        for link in self.links:
            if not link.lost:
                link.transport.abort()
            link.task.cancel()
        await asyncio.gather(*(link.task for link in self.links), return_exceptions=True)


# ---- configuration ---------------------------------------------------------------------------------------------------


def split(**weights: float) -> model.Split:
    return model.Split(
        tuple((name, weight) for name, weight in weights.items() if weight), "salt", str(allocate(None, weights))
    )


def service(*instances: Origin | str | tuple[Origin | str, str] | Instance, name: str = "up", **more: Any) -> Service:
    """A service; instances are of v1 or (instance, version). `connections`: a dict or Connections."""
    made = []
    for each in instances:
        if isinstance(each, Instance):
            made.append(each)
            continue
        at, version = each if isinstance(each, tuple) else (each, "v1")
        made.append(Instance(at if isinstance(at, str) else at.address, version))
    if isinstance(more.get("connections"), dict):
        more["connections"] = Connections(**more["connections"])
    return Service(name, "v1", **{"split": None, "instances": tuple(made), "timeouts": TIMEOUTS, **more})


def rule(name: str, to: str, **headers: str) -> Rule:
    found = tuple(model.Condition("header", "exact", (value,), key.replace("_", "-")) for key, value in headers.items())
    return Rule(name, model.Match(found), model.Subset(version=to))


def networks(name: str, to: str, *values: str) -> Rule:
    """A rule for clients of these networks."""
    return Rule(name, model.Match((model.Condition("client_ip", "cidr", values),)), model.Subset(version=to))


@dataclass
class Rig:
    engine: _engine.Engine
    limits: Limits = LIMITS
    forwarding: Forwarding = field(default_factory=Forwarding)
    access_log: AccessLog | None = None
    tracing: Tracing | None = None
    address: str = ""
    revision: int = 0
    callers: list[Caller] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    listeners: list[socket.socket] = field(default_factory=list)

    # -- what there is -----------------------------------------------------------------------------------------------

    async def origin(self, host: str = "127.0.0.1", **more: Any) -> Origin:
        made = await Origin(host, **more).start()
        self.origins.append(made)
        return made

    def refusing(self) -> str:
        """An address that takes no connections: bound and not listening."""
        made = socket.socket()
        self.listeners.append(made)
        made.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{made.getsockname()[1]}"

    def swap(self, *services: Service, **limits: Any) -> None:
        """One more table: a route by host for each service, the first one's for every other host too."""
        self.revision += 1
        self.limits = replace(self.limits, **limits)
        routes = [Route(each.name, each.name, "prefix", "/", service=each.name) for each in services]
        routes += [Route("any", "*", "prefix", "/", service=each.name) for each in services[:1]]
        made = model.Snapshot(
            self.revision,
            (),
            tuple(routes),
            tuple(sorted(services, key=lambda each: each.name)),
            decision_headers=True,
            limits=self.limits,
            forwarding=self.forwarding,
            access_log=self.access_log,
            tracing=self.tracing,
        )
        self.engine.swap(_fast.Table(table.compile(made)))

    def listen(self, host: str = "127.0.0.1", *, path: str | None = None, dual: bool = False, **more: Any) -> str:
        if path is not None:
            made = socket.socket(socket.AF_UNIX)
            made.bind(path)
            made.listen(512)
            address = f"unix:{path}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            made = socket.create_server((host, 0), family=family, backlog=2048, dualstack_ipv6=dual)
            port = made.getsockname()[1]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        made.setblocking(False)
        self.listeners.append(made)
        self.engine.listen(made.fileno(), **more)
        self.address = self.address or address
        return address

    async def caller(
        self,
        address: str | None = None,
        *,
        source: tuple[str, int] | None = None,
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
    ) -> Caller:
        """tls: over TLS; name: the server name to ask for and to verify."""
        loop = asyncio.get_running_loop()
        address = address or self.address
        if address.startswith("unix:"):
            _, made = await loop.create_unix_connection(Caller, address[5:])
        else:
            host, _, port = address.rpartition(":")
            _, made = await loop.create_connection(
                Caller, host.strip("[]"), int(port), local_addr=source, ssl=tls, server_hostname=name
            )
            made.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.callers.append(made)
        return made

    async def send(self, *data: bytes) -> Caller:
        """A new connection that sends this."""
        made = await self.caller()
        for piece in data:
            made.write(piece)
        return made

    async def ask(self, method: str = "GET", target: str = "/", *lines: str, **more: Any) -> Answer:
        """One request on a connection of its own."""
        made = await self.caller()
        try:
            return await made.ask(method, target, *lines, **more)
        finally:
            made.close()

    # -- figures -----------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> dict[str, Any]:
        return self.engine.stats()

    def figures(self, of: Origin | str, service: str = "up") -> dict[str, Any]:
        """Of one instance."""
        address = of if isinstance(of, str) else of.address
        (found,) = [
            each for each in self.stats["instances"] if (each["address"], each["service"]) == (address, service)
        ]
        return found

    async def waiting(self, of: Origin, count: int) -> None:
        """Until so many requests wait for a connection to it."""
        await until(lambda: self.figures(of)["waiting"] == count, lambda: self.figures(of))

    async def quiet(self) -> None:
        """Until no client, exchange or tunnel is left; then nothing else may be."""
        await until(lambda: self.engine.clients == self.engine.exchanges == 0, lambda: self.stats)
        await until(self._only_pooled, lambda: self.stats)
        stats = self.stats
        assert stats["tunnels"] == 0, stats
        assert all(each["active"] == 0 for each in stats["mirrors"]), stats
        for each in stats["instances"]:
            assert (each["in_flight"], each["waiting"]) == (0, 0), each
            assert each["open"] == each["idle"], each

    def _only_pooled(self) -> bool:
        stats = self.stats
        idle = sum(each["idle"] + each.get("copies_idle", 0) for each in stats["instances"])
        return bool(idle == stats["upstream_connections"])

    async def leave(self) -> None:
        """Every caller goes."""
        for each in self.callers:
            if not each.lost:
                each.close()
        await until(lambda: all(each.lost for each in self.callers), "callers to be closed")


@contextlib.asynccontextmanager
async def rig(slab: int = -1, *, workers: int = 1, **options: Any) -> AsyncIterator[Rig]:
    # with its first stream libuv opens a spare descriptor and keeps it
    (await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)).close()
    gc.collect()
    before = fds()
    made = Rig(_engine.Engine(asyncio.get_running_loop(), 0, slab, workers=workers), **options)
    try:
        yield made
        await made.leave()
        await made.quiet()
        faults = [fault for origin in made.origins for fault in origin.faults]
        assert not faults, faults
    finally:
        made.engine.close()
        for origin in made.origins:
            await origin.stop()
        for caller in made.callers:
            if not caller.lost:
                caller.transport.abort()
        for listener in made.listeners:
            listener.close()
    await turns()
    await until(lambda: fds() == before, lambda: f"{fds()}, before {before}")


def run(test: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    """The test on a loop of its own, with a rig that listens at its `address`."""

    async def main() -> None:
        async with rig(**options) as made:
            made.listen()
            await test(made)

    uvloop.run(main())


def run_bare(test: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    """The same with a rig that does not listen yet."""

    async def main() -> None:
        async with rig(**options) as made:
            await test(made)

    uvloop.run(main())


async def gather(work: Iterable[Awaitable[Any]]) -> list[Any]:
    return list(await within(asyncio.gather(*work)))


async def statuses(callers: Iterable[Caller]) -> list[int]:
    """Of the next answer that each gets; a caller may stand there several times."""
    return [(await caller.answer()).status for caller in callers]
