"""`GET /metrics` for Prometheus."""

from __future__ import annotations

import asyncio
from itertools import chain

from fastapi import APIRouter, Request, Response

from graylb.control import figures
from graylb.control.api.context import ContextOf, Route
from graylb.observe.exposition import render

router = APIRouter(tags=["metrics"], route_class=Route)


class Page:
    """One page at a time is made; those who asked before it was begun share it."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._configured = figures.Configured()
        self._began = -1.0
        self._made: dict[str, tuple[bytes, str]] = {}

    async def get(self, context: ContextOf, accept: str) -> tuple[bytes, str]:
        """The page and its content type."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        async with self._lock:
            if self._began <= arrived or accept not in self._made:
                self._began = loop.time()
                self._made = {accept: await self._make(context, accept)}
            return self._made[accept]

    async def _make(self, context: ContextOf, accept: str) -> tuple[bytes, str]:
        plane, tree = context.plane, context.tree
        assert plane.applied is not None
        status = tree.status()
        # what belongs to the event loop is asked in it; the rest takes its time elsewhere
        told = [
            *figures.of_configuration(plane),
            *self._configured.samples(plane.applied.snapshot, tree.health),
            *figures.of_workers(status),
        ]
        slabs = tree.slabs

        def page() -> tuple[bytes, str]:
            control = chain(told, figures.of_processes(status))
            if slabs is None:
                return render((), control, accept)
            own = [
                ("graylb_metrics_memory_bytes", (), slabs.used()),
                ("graylb_metrics_series_refused_total", (), slabs.refused()),
            ]
            return render(slabs.read(), chain(control, own), accept)

        return await asyncio.to_thread(page)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus's text format, or OpenMetrics where `Accept` asks for it.",
            "content": {
                kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")
            },
        }
    },
)
async def metrics(context: ContextOf, request: Request) -> Response:
    """Figures of requests, instances, configuration and processes: docs/metrics.md."""
    body, content_type = await request.app.state.metrics.get(context, request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
