"""The admin API: what is in force, why something is not, and whether the proxy is ready. Reads only, loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Protocol

import orjson
import uvicorn
from fastapi import FastAPI, Response

from graylb import __version__
from graylb.control.plane import Plane


class Tree(Protocol):
    """What the supervisor tells about its processes."""

    def ready(self) -> bool: ...
    def status(self) -> dict[str, Any]: ...
    async def stats(self) -> list[dict[str, Any]]: ...


def create_app(plane: Plane, tree: Tree) -> FastAPI:
    """GET /live /ready /status /services /snapshot /stats, JSON all of them."""
    app = FastAPI(title="graylb", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/live")
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/ready")
    async def ready() -> Response:
        is_ready = tree.ready()
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    @app.get("/status")
    async def status() -> Response:
        return _json({"version": __version__, **plane.status(), **tree.status()})

    @app.get("/services")
    async def services() -> Response:
        return _json(plane.services())

    @app.get("/snapshot")
    async def snapshot() -> Response:
        assert plane.applied is not None
        return Response(plane.applied.snapshot.to_bytes(), media_type="application/json")

    @app.get("/stats")
    async def stats() -> Response:
        return _json(await tree.stats())

    return app


async def serve(listener: socket.socket, plane: Plane, tree: Tree) -> None:
    """Serves on a listening socket in the running loop until it is cancelled; then it no longer accepts.

    `/live`: the control process answers. `/ready`: every worker accepts clients, and none is told to stop; who balances
    over several proxies sends nothing more to one that is not ready.
    """
    config = uvicorn.Config(
        create_app(plane, tree),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        # another process may listen on the same socket: what is left open here would take connections from it
        if server.started:
            await server.shutdown(sockets=[listener])
        raise


class _Server(uvicorn.Server):
    """Signals belong to the supervisor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
