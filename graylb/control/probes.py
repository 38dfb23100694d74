"""One question to one instance: over HTTP/1.1, over TCP, or by the gRPC health protocol.

The libraries that ask are loaded with the first check of their kind: most proxies have none, and start quicker without.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import TYPE_CHECKING, Any, Final, Protocol

from graylb.model.snapshot import Check, Service

if TYPE_CHECKING:
    import grpc.aio
    import httpx

SERVING: Final = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus."""
_STATES: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_CHECK: Final = "/grpc.health.v1.Health/Check"
_MAX_BODY: Final = 65536
"""Bytes of an answer that are read; the rest says nothing about health."""


class Probe(Protocol):
    """Asks one instance."""

    async def ask(self) -> str:
        """The failure in words; empty: it is well. May be cancelled."""
        ...

    def serves(self, service: Service) -> bool:
        """Whether it would ask the same way for this form of its service."""
        ...

    async def close(self) -> None: ...


def probe_for(service: Service, check: Check, address: str) -> Probe:
    """The probe that a service's check wants for one of its addresses, `host:port` or `unix:/path`."""
    if check.kind == "http":
        return HttpProbe(service, check, address)
    return (TcpProbe if check.kind == "tcp" else GrpcProbe)(service, check, address)


def _context(service: Service) -> ssl.SSLContext | None:
    """What the service's instances are called with over TLS; None: they are called in the clear."""
    tls = service.connections.tls
    if tls is None:
        return None
    context = ssl.create_default_context(cadata=tls.ca.text if tls.ca is not None else None)
    if tls.cert is not None and tls.key is not None:
        # the ssl module takes nothing but files, so this is one, for as long as it takes
        with os.fdopen(os.memfd_create("graylb-probe"), "w") as file:
            file.write(tls.cert.text.rstrip() + "\n" + tls.key.text)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Base:
    def __init__(self, service: Service, check: Check, address: str) -> None:
        self.check, self.address = check, address
        self._tls = service.connections.tls
        self._context = _context(service)

    def serves(self, service: Service) -> bool:
        return service.connections.tls == self._tls

    @property
    def _server_name(self) -> str | None:
        if self._tls is not None and self._tls.server_name is not None:
            return self._tls.server_name
        return None if self.address.startswith("unix:") else self.address.rpartition(":")[0].strip("[]")

    async def close(self) -> None:
        """Nothing is kept open."""


class TcpProbe(_Base):
    """The port takes a connection; with TLS, a handshake too."""

    async def ask(self) -> str:
        try:
            tls: dict[str, Any] = {"ssl": self._context, "server_hostname": self._server_name} if self._context else {}
            if self.address.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(self.address[5:], **tls)
            else:
                host, _, port = self.address.rpartition(":")
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port), **tls)
        except OSError as error:
            return f"cannot be connected: {error.strerror or error}"
        writer.transport.abort()
        return ""


class HttpProbe(_Base):
    """GET; a fresh connection each time, so that an old one that still works does not hide that no new ones do."""

    def __init__(self, service: Service, check: Check, address: str) -> None:
        super().__init__(service, check, address)
        self._client: httpx.AsyncClient | None = None

    def _made(self) -> httpx.AsyncClient:
        import httpx

        uds = self.address[5:] if self.address.startswith("unix:") else None
        transport = httpx.AsyncHTTPTransport(
            uds=uds,
            verify=self._context or False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        return httpx.AsyncClient(transport=transport, follow_redirects=False, trust_env=False, timeout=None)

    async def ask(self) -> str:
        import httpx

        if self._client is None:
            self._client = self._made()
        where = "localhost" if self.address.startswith("unix:") else self.address
        url = f"{'https' if self._tls else 'http'}://{where}{self.check.path}"
        headers = {"user-agent": "graylb-health"}
        if self.check.host or self.address.startswith("unix:"):
            headers["host"] = self.check.host or "localhost"
        names: dict[str, Any] = {"sni_hostname": self._server_name} if self._tls and self._server_name else {}
        try:
            async with self._client.stream("GET", url, headers=headers, extensions=names) as answer:
                status = answer.status_code
                read = 0
                async for piece in answer.aiter_raw():
                    read += len(piece)
                    if read > _MAX_BODY:
                        break
        except httpx.HTTPError as error:
            return f"GET {self.check.path}: {str(error) or type(error).__name__}"
        if any(low <= status <= high for low, high in self.check.statuses):
            return ""
        return f"GET {self.check.path}: status {status}"

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


class GrpcProbe(_Base):
    """grpc.health.v1.Health/Check over one channel that is kept."""

    def __init__(self, service: Service, check: Check, address: str) -> None:
        super().__init__(service, check, address)
        self._channel: grpc.aio.Channel | None = None

    def _made(self) -> grpc.aio.Channel:
        import grpc.aio

        target = self.address if self.address.startswith("unix:") else f"dns:///{self.address}"
        options: list[tuple[str, Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.min_reconnect_backoff_ms", 100),
        ]
        options.append(("grpc.max_reconnect_backoff_ms", max(100, int(self.check.interval * 1000))))
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        if self._tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        read = [pem.text.encode() if pem is not None else None for pem in (self._tls.ca, self._tls.key, self._tls.cert)]
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(*read), options=options)

    async def ask(self) -> str:
        import grpc

        if self._channel is None:
            self._channel = self._made()
        try:
            answer: bytes = await self._channel.unary_unary(_CHECK)(request(self.check.service), wait_for_ready=False)
        except grpc.RpcError as error:
            return f"gRPC health: {error.code().name}: {error.details()}"
        found = status(answer)
        return "" if found == SERVING else f"gRPC health: {_STATES.get(found, found)}"

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)


def request(service: str) -> bytes:
    """grpc.health.v1.HealthCheckRequest: field 1, the service's name, as protobuf's encoding has it."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def status(answer: bytes) -> int:
    """Field 1 of a grpc.health.v1.HealthCheckResponse, an enum; 0 when it is absent or the message is not one."""
    if len(answer) < 2 or answer[0] != 0x08:
        return 0
    return answer[1] if answer[1] < 0x80 else 0


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
