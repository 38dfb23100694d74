"""An engine on a uvloop loop, with real sockets: nothing is left behind, and tables change beneath exchanges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import h11
import uvloop

from graylb import _engine, _fast, table
from graylb.model.snapshot import Instance, Limits, Route, Service, Snapshot, Timeouts

PATIENCE = 8.0
LIMITS = Limits(header_timeout=0.2, idle_timeout=0.3, body_timeout=0.2, half_close_grace=0.1)
TIMEOUTS = Timeouts(connect=0.3, response=0.3, idle=0.3)


def fds() -> list[str]:
    """What every descriptor of this process is, but for the one that reads the list."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r"\[\d+\]", "", os.readlink(f"/proc/self/fd/{fd}")))
    return sorted(found)


async def until(holds: Callable[[], bool], what: Callable[[], Any]) -> None:
    """Lets the loop run until it holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what()
        await asyncio.sleep(0.01)


# ---- the upstream ----------------------------------------------------------------------------------------------------


@dataclass
class Upstream:
    """An HTTP server by h11. What it does is the request's path; `gate` holds answers to /gate back."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[str] = field(default_factory=list)
    address: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
            connection = h11.Connection(h11.SERVER)
            while (path := await self.request(connection, reader)) is not None:
                self.seen.append(path)
                if not await self.answer(path, reader, writer):
                    break
                connection = h11.Connection(h11.SERVER)
        writer.transport.abort()

    async def request(self, connection: h11.Connection, reader: asyncio.StreamReader) -> str | None:
        path = None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                path = event.target.decode()
            elif isinstance(event, h11.EndOfMessage):
                return path
            elif isinstance(event, h11.ConnectionClosed):
                return None

    async def answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False: the connection ends here."""
        if path == "/silent":
            await reader.read()
            return False
        if path == "/gate":
            await self.gate.wait()
        writer.write(ANSWERS.get(path, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"))
        await writer.drain()
        if path == "/once":
            await reader.read(1)  # the next request, which it will not answer
            return False
        if path in ("/close", "/stale"):
            writer.close()
            return False
        return path not in ("/reset", "/cut")


ANSWERS = {
    "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "/close": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "/reset": b"",
    "/cut": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello",
    "/bad": b"HTTP/1.1 banana\r\n\r\n",
    "/interim": b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
    "/poison": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    "/endless": b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + b"x" * 5_000_000,
}


# ---- the engine ------------------------------------------------------------------------------------------------------


def snapshot(revision: int, **instances: str) -> Snapshot:
    """A service per name, by host; `down`'s instance takes no connections."""
    services = tuple(
        Service(name, "v1", None, instances=(Instance(address, "v1"),), timeouts=TIMEOUTS)
        for name, address in sorted(instances.items())
    )
    routes = tuple(Route(name, name, "prefix", "/", service=name) for name in instances)
    return Snapshot(revision, (), routes, services, decision_headers=True, limits=LIMITS)


@dataclass
class Site:
    engine: _engine.Engine
    upstream: Upstream
    port: int
    down: str

    def swap(self, revision: int, **instances: str) -> None:
        self.engine.swap(_fast.Table(table.compile(snapshot(revision, **instances))))

    async def talk(self, *data: bytes) -> bytes:
        """Everything that comes until the engine closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for piece in data:
                writer.write(piece)
                await writer.drain()
            return await asyncio.wait_for(reader.read(), PATIENCE)
        finally:
            writer.transport.abort()

    async def leave(self, data: bytes, *, after: int = 0, reset: bool = True) -> None:
        """Sends, waits for the first `after` bytes of an answer and goes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        if after:
            await asyncio.wait_for(reader.readexactly(after), PATIENCE)
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """An engine with services `up` and `down`; closed, and every descriptor given back, at the end."""
    # with its first stream libuv opens a spare descriptor and keeps it
    (await asyncio.start_server(Upstream().serve, "127.0.0.1", 0)).close()
    before = fds()
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    engine = _engine.Engine(asyncio.get_running_loop())
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as closed:
        listener.setblocking(False)
        closed.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        made = Site(engine, upstream, listener.getsockname()[1], f"127.0.0.1:{closed.getsockname()[1]}")
        made.swap(1, up=upstream.address, down=made.down)
        engine.listen(listener.fileno())
        try:
            yield made
        finally:
            engine.close()  # a loop with the engine's descriptors in it cannot be closed
            server.close()
    await server.wait_closed()
    await until(lambda: fds() == before, lambda: f"{fds()}, before {before}")


def run(test: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        async with site() as made:
            await test(made)

    uvloop.run(main())


async def assert_quiet(made: Site) -> None:
    """No client, no exchange, nothing in flight; connections that are left wait in pools."""

    def quiet() -> bool:
        stats = made.engine.stats()
        return (stats["clients"], stats["exchanges"]) == (0, 0)

    await until(quiet, made.engine.stats)
    stats = made.engine.stats()
    assert stats.get("tunnels", 0) == 0
    assert [each["in_flight"] for each in stats["instances"]] == [0] * len(stats["instances"])
    assert sum(each["idle"] for each in stats["instances"]) == stats["upstream_connections"]


def get(path: str, *lines: str, host: str = "up", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


CLOSE = "Connection: close"
OFFER = ("Connection: upgrade", "Upgrade: websocket")

# name -> (what is asked of a site, status codes that must come back)
ASKED: dict[str, tuple[Callable[[Site], Awaitable[bytes]], list[int]]] = {
    "ok": (lambda made: made.talk(get("/", CLOSE)), [200]),
    "idle client": (lambda made: made.talk(get("/")), [200]),
    "pipelined": (lambda made: made.talk(get("/") * 4 + get("/chunked", CLOSE)), [200] * 5),
    "chunked": (lambda made: made.talk(get("/chunked", CLOSE)), [200]),
    "to the end": (lambda made: made.talk(get("/close", CLOSE)), [200]),
    "interim": (lambda made: made.talk(get("/interim", CLOSE)), [103, 204]),
    "HEAD": (lambda made: made.talk(get("/silent", CLOSE, method="HEAD")), [504]),
    "stale": (lambda made: made.talk(get("/stale") + get("/", CLOSE)), [200, 200]),
    "poison": (lambda made: made.talk(get("/poison") + get("/", CLOSE)), [200, 200]),
    "upload": (lambda made: made.talk(get("/", CLOSE, "Content-Length: 3", method="POST") + b"abc"), [200]),
    "no route": (lambda made: made.talk(get("/", host="nobody") + get("/", CLOSE)), [404, 200]),
    "bad request": (lambda made: made.talk(b"GET / HTTP/1.1\r\n\r\n"), [400]),
    "bad chunk": (
        lambda made: made.talk(get("/", "Transfer-Encoding: chunked", method="POST"), b"x\r\n"),
        [400],
    ),
    "reset": (lambda made: made.talk(get("/reset", CLOSE, "Content-Length: 0", method="POST")), [502]),
    "bad answer": (lambda made: made.talk(get("/bad", CLOSE)), [502]),
    "cut off": (lambda made: made.talk(get("/cut", CLOSE)), [200]),
    "down": (lambda made: made.talk(get("/", CLOSE, host="down")), [502]),
    "silent": (lambda made: made.talk(get("/silent", CLOSE)), [504]),
    "no upgrade": (lambda made: made.talk(get("/", *OFFER) + get("/", CLOSE)), [200, 200]),
    "slow head": (lambda made: made.talk(b"GET / HT"), [408]),
    "slow body": (lambda made: made.talk(get("/", "Content-Length: 9", method="POST") + b"abc"), [408]),
}
LEFT: dict[str, Callable[[Site], Coroutine[Any, Any, None]]] = {
    "gone at once": lambda made: made.leave(b""),
    "gone in a head": lambda made: made.leave(b"GET / HTTP/1.1\r\nHo", reset=False),
    "gone in a body": lambda made: made.leave(get("/", "Content-Length: 9", method="POST") + b"abc"),
    "closed in a body": lambda made: made.leave(get("/", "Content-Length: 9", method="POST") + b"abc", reset=False),
    "gone while waiting": lambda made: made.leave(get("/silent")),
    "closed while waiting": lambda made: made.leave(get("/silent"), reset=False),
    "gone in an answer": lambda made: made.leave(get("/endless"), after=100),
    "closed in an answer": lambda made: made.leave(get("/endless"), after=100, reset=False),
    "gone with more behind": lambda made: made.leave(get("/") * 5),
}


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def test_nothing_is_left_behind() -> None:
    """Some hundred exchanges of every kind at once, several times over: counters and descriptors are back at nought."""

    async def check(made: Site, name: str) -> None:
        work, wanted = ASKED[name]
        answer = await work(made)
        assert statuses(answer) == wanted, (name, answer)
        assert b"evil" not in answer

    async def test(made: Site) -> None:
        for _ in range(4):
            tasks = [check(made, name) for name in ASKED for _ in range(4)]
            tasks += [work(made) for work in LEFT.values() for _ in range(2)]
            await asyncio.gather(*tasks)
            await assert_quiet(made)
        stats = made.engine.stats()
        assert stats["requests"] > 400
        assert stats["errors"].keys() >= {
            "no-route", "bad-host", "bad-framing", "header-timeout", "body-timeout", "connect-failed", "upstream-reset",
            "upstream-invalid", "response-timeout",
        }  # fmt: skip
        assert stats["aborted"] > 0
        made.swap(2)
        assert made.engine.stats()["upstream_connections"] == 0

    run(test)


def test_a_stale_pooled_connection_costs_a_retry_and_no_answer() -> None:
    """Of methods that may be repeated only: nobody knows what became of a POST that was sent."""

    async def test(made: Site) -> None:
        for _ in range(50):
            assert statuses(await made.talk(get("/once"), get("/", CLOSE))) == [200, 200]
        assert made.engine.stats()["retries"] == 50
        assert made.engine.stats()["errors"] == {}
        for _ in range(20):
            assert statuses(await made.talk(get("/once", CLOSE))) == [200]
            assert statuses(await made.talk(get("/", CLOSE, "Content-Length: 0", method="POST"))) == [502]
        assert made.engine.stats()["retries"] == 50
        await assert_quiet(made)

    run(test)


def test_close_in_the_middle_of_everything() -> None:
    """`site` checks the descriptors behind it."""

    async def test(made: Site) -> None:
        asked = [asyncio.ensure_future(made.talk(get(path))) for path in ("/", "/gate", "/silent", "/endless") * 5]
        asked += [asyncio.ensure_future(made.talk(b"GET / HT")), asyncio.ensure_future(made.talk(get("/") * 9))]
        await until(lambda: made.engine.exchanges >= 10, made.engine.stats)
        made.engine.close()
        assert (made.engine.clients, made.engine.exchanges) == (0, 0)
        assert made.engine.stats()["upstream_connections"] == 0
        made.engine.close()
        made.upstream.gate.set()
        await asyncio.gather(*asked, return_exceptions=True)

    run(test)


def test_a_request_stays_on_its_table() -> None:
    """Its revision is the one it began with; what only the old table names is retired when it is done."""

    async def test(made: Site) -> None:
        first = asyncio.ensure_future(made.talk(get("/gate") + get("/", CLOSE)))
        await until(lambda: "/gate" in made.upstream.seen, made.engine.stats)
        made.swap(2, other=made.upstream.address)
        assert [each["service"] for each in made.engine.stats()["instances"]] == ["other"]
        second = await made.talk(get("/", CLOSE, host="other"))
        assert b"x-graylb-revision: 2\r\n" in second
        assert not first.done()
        made.upstream.gate.set()
        old, new = (await first).split(b"HTTP/1.1 ")[1:]
        assert old.startswith(b"200 ")
        assert b"x-graylb-service: up\r\n" in old
        assert b"x-graylb-revision: 1\r\n" in old
        assert new.startswith(b"404 "), "the next request of the connection is decided by the new table"
        await assert_quiet(made)
        stats = made.engine.stats()
        assert (stats["revision"], stats["upstream_connections"]) == (2, stats["instances"][0]["idle"])

    run(test)


def test_pools_outlive_tables_that_name_their_instance() -> None:
    async def test(made: Site) -> None:
        for revision in range(2, 50):
            assert b"x-graylb-revision: %d\r\n" % (revision - 1) in await made.talk(get("/", CLOSE))
            made.swap(revision, up=made.upstream.address)
        (instance,) = made.engine.stats()["instances"]
        assert (instance["connects"], instance["requests"], instance["idle"]) == (1, 48, 1)
        made.swap(50)
        assert made.engine.stats()["upstream_connections"] == 0

    run(test)
