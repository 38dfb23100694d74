"""The application: routers, guard, errors, OpenAPI document."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graylb import __version__
from graylb.control.api import changes, config, force, live, metrics, mirror, process
from graylb.control.api.context import NEEDS_WHO, Context
from graylb.control.api.failures import COMMON, install
from graylb.control.api.guard import Guard, Tokens
from graylb.control.logs import log

DESCRIPTION = """What the running proxy serves, and every change of it.

A write answers once it is stored, with its revision; with `?wait=SECONDS` once every worker has applied it. `expected`,
or `If-Match` with an ETag, says which revision a change was made from."""


def create_app(context: Context, tokens: Tokens | None = None, certificates: bool = False) -> FastAPI:
    """tokens, certificates: what lets a caller in; with neither, everybody who can connect."""
    app = FastAPI(
        title="graylb",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # the pages load scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.context = context
    app.state.metrics = metrics.Page()
    for router, guarded in (
        (force.health, False),
        (force.router, True),
        (live.router, True),
        (mirror.router, True),
        (changes.router, True),
        (config.router, True),
        (process.router, True),
        (metrics.router, True),
    ):
        asked = NEEDS_WHO if guarded and tokens is not None else []
        app.include_router(router, responses=COMMON if guarded else {}, dependencies=asked)
    install(app)
    app.add_middleware(Guard, tokens=tokens, certificates=certificates)
    app.add_middleware(_Logged)
    return app


class _Logged:
    """ASGI middleware: every request, at level debug."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0

        async def told(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            if scope["type"] == "http":
                who, took = scope.get("state", {}).get("who", "-"), (time.monotonic() - began) * 1000
                log.debug("admin: %s %s: %d for %s, %.1f ms", scope["method"], scope["path"], status, who, took)
