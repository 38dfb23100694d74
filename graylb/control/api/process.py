"""Explain a request by the table in force; end the proxy gracefully; how much it logs."""

from __future__ import annotations

import asyncio
import ipaddress
import logging

from fastapi import APIRouter, Response

from graylb.control import logs
from graylb.control.api.answers import Decision, DrainBody, Draining, Explain, LogLevel
from graylb.control.api.context import ContextOf, Route, Who
from graylb.control.api.failures import json_response
from graylb.control.logs import log
from graylb.explain import choose_listener
from graylb.explain import explain as explain_request

router = APIRouter(tags=["process"], route_class=Route)


@router.post("/explain", response_model=Decision)
async def explain(body: Explain, context: ContextOf) -> Response:
    """What the proxy does with one request and why: route, rule or slot, version, instance, by its own matcher."""
    applied = context.plane.applied
    assert applied is not None
    given = body.headers.items() if isinstance(body.headers, dict) else body.headers
    pairs = [(name, value) for name, value in given]
    if body.host is not None:
        pairs = [("host", body.host), *(pair for pair in pairs if pair[0].lower() != "host")]
    try:
        ipaddress.ip_address(body.client_ip)
    except ValueError:
        raise ValueError(f"client_ip: got {body.client_ip[:100]!r}; expected an IP address") from None
    try:
        listener = choose_listener(applied.snapshot, body.listener)
    except ValueError as error:
        raise ValueError(f"listener: {error}") from error
    try:
        found = await asyncio.to_thread(
            explain_request,
            applied.snapshot,
            applied.image,
            method=body.method,
            path=body.path,
            headers=pairs,
            client_ip=body.client_ip,
            listener=listener,
            draw=body.draw,
            pick=body.pick,
        )
    except ValueError as error:
        raise ValueError(f"the proxy would not accept this request: {error}") from error
    return json_response(found)


@router.post("/drain", status_code=202, response_model=Draining)
async def drain(context: ContextOf, who: Who, body: DrainBody | None = None) -> Response:
    """Stop accepting, finish what is under way, and end; as SIGTERM does. A second time changes nothing."""
    seconds = context.tree.drain(body.seconds if body else None)
    log.info("%s: drain, for at most %g s", who, seconds)
    return json_response({"draining": True, "seconds": seconds}, 202)


@router.get("/log-level", response_model=LogLevel)
async def log_level() -> Response:
    """Lines below it are left out."""
    return json_response({"level": logs.level()})


@router.put("/log-level", response_model=LogLevel)
async def set_log_level(body: LogLevel, who: Who) -> Response:
    """Until the next start. At `debug` every request to this API is logged, too."""
    seen, before = log.isEnabledFor(logging.WARNING), logs.level()
    if not seen:
        logs.set_level(body.level)
    log.warning("%s: log level %s, was %s", who, body.level, before)  # by whichever of the two lets it through
    logs.set_level(body.level)
    return json_response({"level": logs.level()})
