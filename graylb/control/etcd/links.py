"""Connections to etcd: one at a time, to one endpoint after the other.

Each endpoint has a channel of its own instead of all sharing gRPC's list of addresses. A member that lost its quorum
keeps its connections, and gRPC would stay with it; here whoever sees a call fail drops the link, and the next one goes
elsewhere. It also lets names, IPv4 and IPv6 mix, and the certificate of each endpoint be checked against its own name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from graylb.control.etcd.errors import Unavailable
from graylb.control.etcd.messages import rpc, stubs

PORT: Final = 2379
READY: Final = grpc.ChannelConnectivity.READY
GIVEN_UP: Final = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


@dataclass(frozen=True, slots=True)
class Options:
    """How to reach etcd. Raises ValueError, also for files that are missing.

    endpoints: `host`, `host:port`, `[::1]:2379`, each with `http://` or `https://` before it if wished; tried in
        random order. https, or any of ca, cert and key, means TLS to all of them.
    ca: PEM file of those who may sign the server's certificate; without it the well-known ones.
    cert, key: PEM files for a server that asks for a client's certificate.
    server_name: the name to find in the server's certificate instead of the endpoint's own.
    timeout: seconds for one answer of one endpoint; connect_timeout: for a connection, including TLS.
    keepalive, keepalive_timeout: a connection that was silent for so many seconds is asked whether it is still there,
        and dropped when no answer comes.
    max_message: the largest answer accepted, bytes.
    """

    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    timeout: float = 5.0
    connect_timeout: float = 2.0
    keepalive: float = 10.0
    keepalive_timeout: float = 3.0
    max_message: int = 64 << 20

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("etcd: at least one endpoint is needed")
        schemes = {endpoint.partition("://")[0] for endpoint in self.endpoints if "://" in endpoint}
        if unknown := schemes - {"http", "https"}:
            raise ValueError(f"etcd: endpoints begin with http:// or https://, not {min(unknown)}://")
        if "http" in schemes and ("https" in schemes or self.ca or self.cert or self.key):
            raise ValueError("etcd: some endpoints say http:// while others, or the certificates, ask for TLS")
        if (self.cert is None) != (self.key is None):
            raise ValueError("etcd: a client certificate needs both cert and key")
        if bool(self.user) != bool(self.password):
            raise ValueError("etcd: user and password belong together")
        for endpoint in self.endpoints:
            target(endpoint)
        for path in (self.ca, self.cert, self.key):
            if path is not None and not path.is_file():
                raise ValueError(f"etcd: {path} is not a file")

    @property
    def tls(self) -> bool:
        return bool(self.ca or self.cert) or any(endpoint.startswith("https://") for endpoint in self.endpoints)


def target(endpoint: str) -> str:
    """gRPC's name for an endpoint. Raises ValueError."""
    address = endpoint.partition("://")[2] if "://" in endpoint else endpoint
    address = address.rstrip("/")
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    elif address.count(":") > 1:
        host, port = address, ""
    else:
        host, _, port = address.partition(":")
    if not host or "/" in address or not (port or str(PORT)).isdecimal() or not 0 < int(port or PORT) < 65536:
        raise ValueError(f"etcd: {endpoint!r} is no endpoint; expected host:port, with http:// or https:// if wished")
    number = int(port or PORT)
    try:
        kind = ipaddress.ip_address(host).version
    except ValueError:
        return f"dns:///{host}:{number}"
    return f"ipv4:{host}:{number}" if kind == 4 else f"ipv6:[{host}]:{number}"


def channel(endpoint: str, options: Options) -> Any:
    """A channel that nobody shares. Certificates are read anew each time, so that renewed ones are taken.

    Raises OSError when they cannot be read.
    """
    arguments: list[tuple[str, int | str]] = [
        # without ping_timeout a frozen peer is noticed after a minute, whatever keepalive_timeout says
        ("grpc.keepalive_time_ms", int(options.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", int(options.keepalive_timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", options.max_message),
        ("grpc.max_send_message_length", -1),
        # subchannels of the process's pool would bring an older channel's backoff along
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]
    if not options.tls:
        return grpc.aio.insecure_channel(target(endpoint), arguments)
    ca, cert, key = (path.read_bytes() if path else None for path in (options.ca, options.cert, options.key))
    if options.server_name:
        arguments.append(("grpc.ssl_target_name_override", options.server_name))
    return grpc.aio.secure_channel(target(endpoint), grpc.ssl_channel_credentials(ca, key, cert), arguments)


class Link:
    """A channel to one endpoint with its stubs; closed when it was dropped and nobody uses it any more."""

    def __init__(self, endpoint: str, options: Options) -> None:
        self.endpoint = endpoint
        self._options = options
        self.channel = channel(endpoint, options)
        self.kv = stubs.KVStub(self.channel)
        self.watch = stubs.WatchStub(self.channel)
        self.lease = stubs.LeaseStub(self.channel)
        self.auth = stubs.AuthStub(self.channel)
        self.maintenance = stubs.MaintenanceStub(self.channel)
        self.users = 0
        self.dropped = False

    async def ready(self) -> bool:
        """Whether it is connected, waiting for that as long as the options allow."""
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                while (state := self.channel.get_state(try_to_connect=True)) != READY:
                    if state in GIVEN_UP:
                        return False
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    async def reason(self) -> str:
        """Why it is not ready."""
        try:
            await self.maintenance.Status(rpc.StatusRequest(), timeout=0.2)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                return str(error.details() or error.code().name).removeprefix("failed to connect to all addresses; ")
        return f"no connection in {self._options.connect_timeout:g} s"

    async def close(self) -> None:
        """At most once, when nothing is under way: closing cancels calls, and that looks like our own cancellation."""
        self.dropped = True
        await self.channel.close()


class Links:
    """The link in use, made anew after it was dropped. `connections` counts what was tried."""

    def __init__(self, options: Options, chance: random.Random) -> None:
        self._options = options
        self._order = chance.sample(options.endpoints, len(options.endpoints))
        self._next = 0
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.connections = 0

    @property
    def endpoints(self) -> Sequence[str]:
        """In the order in which they are tried."""
        return tuple(self._order)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Link]:
        """A link that is connected. Raises Unavailable when none of the endpoints can be."""
        link = await self._usable()
        link.users += 1
        try:
            yield link
        finally:
            link.users -= 1
            if link.dropped and not link.users:
                self._close(link)

    def drop(self, link: Link) -> None:
        """The next call takes the next endpoint; those under way on `link` may finish."""
        if link.dropped:
            return
        link.dropped = True
        if self._link is link:
            self._link = None
            self._next += 1
        if not link.users:
            self._close(link)

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._link is not None:
            self._close(self._link)
            self._link = None
        await asyncio.gather(*self._closing)

    def _close(self, link: Link) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _usable(self) -> Link:
        """One that was not dropped meanwhile by somebody who had waited for it, too, and was quicker."""
        while (link := await self._connected()).dropped:
            pass
        return link

    async def _connected(self) -> Link:
        """All who wait share one attempt, lest each of them spends the timeouts of every endpoint after the others."""
        link = self._link
        if link is not None and link.channel.get_state() == READY:
            return link
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connect_done)
        return await asyncio.shield(self._connecting)

    def _connect_done(self, task: asyncio.Task[Link]) -> None:
        self._connecting = None
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # those who waited may have gone

    async def _connect(self) -> Link:
        former = self._link
        if former is not None:
            if await former.ready() and not former.dropped:  # which somebody may do meanwhile
                return former
            self.drop(former)
        reasons = []
        for _ in self._order:
            endpoint = self._order[self._next % len(self._order)]
            self.connections += 1
            try:
                link = Link(endpoint, self._options)
            except OSError as error:
                raise Unavailable(f"etcd: {error}") from error
            try:
                if await link.ready():
                    self._link = link
                    return link
                reasons.append(f"{endpoint}: {await link.reason()}")
            finally:
                if self._link is not link:
                    self._close(link)
            self._next += 1
        raise Unavailable("etcd: no endpoint can be reached: " + "; ".join(reasons))
