"""Requests as they end: a live view, in JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from graylb.control.api.context import NAME, ContextOf, Route
from graylb.control.api.failures import Problem, refusal
from graylb.control.live_view import ANY, MAX_VIEWS, Views, Wanted, statuses

HEARTBEAT: Final = 2.0
"""Seconds between two signs of life, blank lines, where there are no others."""
VERSION: Final = "^[A-Za-z0-9_][A-Za-z0-9._+:/@-]{0,127}$"
router = APIRouter(tags=["in force"], route_class=Route)


@router.get(
    "/tail",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            "description": 'A JSON object a line, as in the access log; `{"missed": n}` where some were too many.',
        },
        429: {"model": Problem, "description": f"{MAX_VIEWS} others look on already."},
    },
)
async def tail(
    context: ContextOf,
    service: Annotated[str | None, Query(pattern=NAME)] = None,
    version: Annotated[str | None, Query(pattern=VERSION)] = None,
    rule: Annotated[str | None, Query(pattern=NAME)] = None,
    status: Annotated[
        str | None, Query(description="`404`, `5xx` or `400-499`; 499: the client went away.", max_length=10)
    ] = None,
) -> Response:
    """Requests as they end, until the caller goes; of each worker no more than a thousand in a second."""
    try:
        between = statuses(status) if status is not None else ANY
    except ValueError as error:
        raise ValueError(f"query: {error}") from None
    views = context.tree.views
    if views.full:
        return refusal(429, "too-many-views", f"{MAX_VIEWS} others look on already")
    wanted = Wanted(service, version, rule, between)
    return StreamingResponse(_lines(views, wanted), media_type="application/x-ndjson")


async def _lines(views: Views, wanted: Wanted) -> AsyncIterator[bytes]:
    told = 0
    with views.watch(wanted) as view:
        yield b"\n"  # from here on
        while True:
            try:
                lines = [await asyncio.wait_for(view.lines.get(), HEARTBEAT)]
            except TimeoutError:
                yield b"\n"
                continue
            while not view.lines.empty():
                lines.append(view.lines.get_nowait())
            if view.missed > told:
                lines.append(orjson.dumps({"missed": view.missed - told}))
                told = view.missed
            yield b"\n".join([*lines, b""])
