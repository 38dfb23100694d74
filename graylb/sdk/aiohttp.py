"""aiohttp: `ClientSession(trace_configs=[trace_config()])`, and `web.Application(middlewares=[middleware])`."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from graylb.sdk import context as sdk
from graylb.sdk.trail import TRAIL


def trace_config() -> aiohttp.TraceConfig:
    """For sessions whose requests are to carry the current context."""
    made = aiohttp.TraceConfig()
    made.on_request_start.append(_start)
    made.on_request_end.append(_end)
    return made


async def _start(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestStartParams) -> None:
    sdk.inject(params.headers)


async def _end(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
    trail = sdk.current().trail
    if trail is not None:
        trail.add(f"{params.url.authority}{params.url.path}", params.response.headers.get(TRAIL))


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serves each request in the context that its headers carry. A body that is streamed has no trail."""
    found = sdk.extract(request.headers.items())
    with sdk.use(found):
        try:
            response = await handler(request)
        except web.HTTPException as error:
            _tell(found, error)
            raise
        _tell(found, response)
        return response


def _tell(context: sdk.Context, response: web.StreamResponse) -> None:
    if context.trail is not None and not response.prepared:
        response.headers[TRAIL] = context.trail.text()
