"""The admin API's server: who is let in, TLS, and uvicorn on the socket that the supervisor opened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from graylb.control.api.app import create_app
from graylb.control.api.context import Context, Tree
from graylb.control.api.guard import AccessError, Tokens, certificate_name
from graylb.control.plane import Plane

if TYPE_CHECKING:
    from graylb.model import snapshot


class Access:
    """What lets a caller in: the tokens and certificates that a document names, read. Raises AccessError."""

    def __init__(self, access: snapshot.Access, folder: Path) -> None:
        self.tokens = Tokens(folder / access.token_file) if access.token_file is not None else None
        self.certificates = access.client_ca is not None
        self._tls = None
        if access.cert is not None and access.key is not None:
            client_ca = folder / access.client_ca if access.client_ca is not None else None
            self._tls = _context(folder / access.cert, folder / access.key, client_ca)

    async def serve(self, listener: socket.socket, plane: Plane, tree: Tree) -> None:
        """Serves on a listening socket in the running loop until it is cancelled; then it no longer accepts.

        `/live`: the control process answers. `/ready`: every worker accepts clients, and none is told to stop; who
        balances over several proxies sends nothing more to one that is not ready.
        """
        tls = self._tls
        config = uvicorn.Config(
            create_app(Context(plane, tree, plane.config_store), self.tokens, self.certificates),
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody's word about the scheme or the client counts
            timeout_graceful_shutdown=1,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        server = _Server(config)
        try:
            await server.serve(sockets=[listener])
        except asyncio.CancelledError:
            # another process may listen on the same socket: what is left open here would take connections from it
            if server.started:
                await server.shutdown(sockets=[listener])
            raise


def _context(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """A client without a certificate is let in here, and told by the guard what is expected. Raises AccessError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise AccessError(f"admin.tls: {cert} and {key} are no certificate and its key: {_why(error)}") from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise AccessError(f"admin.tls.client_ca: {client_ca} has no certificates: {_why(error)}") from error
    return context


def _why(error: OSError) -> str:
    return error.strerror or str(error)


class _Connection(H11Protocol):
    """Whoever TLS vouched for is told to the guard. By h11, for uvicorn's other protocol keeps heads without an end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        name = certificate_name(transport.get_extra_info("peercert"))
        self.app_state: dict[str, Any] = {**self.app_state, "certificate": name}


class _Server(uvicorn.Server):
    """Signals belong to the supervisor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
