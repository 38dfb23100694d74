"""What is in force, as the workers have it, and how the proxy fares. Needs no store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from graylb import __version__
from graylb.control.api.answers import Live, Ready, ServiceAnswer, ServiceInShort, SetReady, Status, WorkerStats
from graylb.control.api.context import ContextOf, Route, ServiceName, StoreOf, Who
from graylb.control.api.failures import STORE, TARGET, Missing, json_response
from graylb.control.logs import log
from graylb.model.snapshot import Service

health = APIRouter(tags=["health"], route_class=Route)
router = APIRouter(tags=["in force"], route_class=Route)


@health.get("/live", response_model=Live)
async def live() -> Response:
    """The control process answers. Open to everybody."""
    return json_response({"live": True})


@health.get("/ready", response_model=Ready, responses={503: {"model": Ready, "description": "Not ready."}})
async def ready(context: ContextOf) -> Response:
    """Every worker accepts clients, none is told to stop, and nobody asked for another answer. Open to everybody."""
    is_ready = context.tree.ready()
    return json_response({"ready": is_ready}, 200 if is_ready else 503)


@router.put("/ready", response_model=Ready)
async def set_ready(body: SetReady, context: ContextOf, who: Who) -> Response:
    """Let balancers in front send nothing more, without an end: `/ready` answers 503 until it is set again."""
    context.tree.withdraw(not body.ready)
    log.info("%s: /ready %s", who, "tells how it is again" if body.ready else "says no from now on")
    return json_response({"ready": context.tree.ready()})


@router.get("/status", response_model=Status)
async def status(context: ContextOf) -> Response:
    """Revision, refusals, workers, etcd."""
    return json_response({"version": __version__, **context.plane.status(), **context.tree.status()})


@router.get("/services", response_model=list[ServiceInShort])
async def services(context: ContextOf) -> Response:
    """Every service in short, by name."""
    return json_response(context.plane.services())


@router.get("/services/{name}", response_model=ServiceAnswer, responses=TARGET)
async def service(name: ServiceName, context: ContextOf) -> Response:
    """One service, as every worker has it."""
    applied = context.plane.applied
    assert applied is not None
    found = next((each for each in applied.snapshot.services if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in applied.snapshot.services[:20]) or "none"
        raise Missing(f"no service {name!r}; there is {known}")
    told = _told(found)
    seen, ejected = context.tree.health.of(name), context.tree.status()["ejected"]
    for instance in told["instances"]:
        instance["health"] = seen.get(instance["address"])
        instance["ejected"] = [
            {key: each[key] for key in ("worker", "reason", "why", "times", "until")}
            for each in ejected
            if (each["service"], each["address"]) == (name, instance["address"])
        ]
    return json_response({"revision": applied.revision, **told})


@router.get("/snapshot", response_model=dict[str, Any])
async def snapshot(context: ContextOf) -> Response:
    """The whole configuration in force, in its canonical form."""
    assert context.plane.applied is not None
    return Response(context.plane.applied.snapshot.to_bytes(), media_type="application/json")


@router.get("/stats", response_model=list[WorkerStats])
async def stats(context: ContextOf) -> Response:
    """Every worker's counters."""
    return json_response(await context.tree.stats())


@router.get("/nodes", response_model=list[dict[str, Any]], responses=STORE)
async def nodes(store: StoreOf) -> Response:
    """The status of every node that shares the etcd, by name; none where the document has no etcd."""
    return json_response(list(await store.nodes()))


def _told(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "stable": service.stable,
        "split": dict(service.split.weights) if service.split else None,
        "sticky": [asdict(each) for each in service.sticky],
        "fallback": service.fallback,
        "policy": service.policy,
        "rules": [rule.name for rule in service.rules],
        "lists": {name: len(ids) for name, ids in service.lists},
        "instances": [{**asdict(each), "metadata": dict(each.metadata)} for each in service.instances],
        "timeouts": asdict(service.timeouts),
        "connections": asdict(service.connections),
        "tunnels": asdict(service.tunnels),
        "health": asdict(service.health),
        "mirror": asdict(service.mirror) if service.mirror is not None else None,
        "limits": asdict(service.limits),
        "fault": asdict(service.fault) if service.fault is not None else None,
    }
