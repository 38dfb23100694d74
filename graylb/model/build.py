"""Document -> Snapshot. Pure; the splits come completed from the store, which knows what they were before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from graylb.model import certificates, faults, matching, routes, snapshot, snapshot_limits
from graylb.model.documents import Document
from graylb.model.marks import rules as mark_rules
from graylb.model.services import InstancePart, Rule, ServicePart, SplitPart
from graylb.model.settings import AdminPart, LimitsPart, ListenerPart
from graylb.model.targets import Target

_priority = attrgetter("priority")

SplitId = tuple[str, str | None]
"""Service and rule; None for the split of the service itself."""


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """What the document asks of one split. weights: version -> weight > 0, in document order."""

    service: str
    rule: str | None
    weights: tuple[tuple[str, float], ...]
    salt: str | None
    slots: str | None
    stable: str


def split_requests(document: Document) -> dict[SplitId, SplitRequest]:
    """Every split of the document."""
    return {(each.service, each.rule): each for each in _requests(document)}


def build(
    document: Document,
    splits: Mapping[SplitId, snapshot.Split],
    revision: int,
    *,
    services: tuple[snapshot.Service, ...] | None = None,
    made_routes: tuple[snapshot.Route, ...] | None = None,
) -> snapshot.Snapshot:
    """The snapshot of a loaded document.

    splits: one for each of `split_requests` (else KeyError); it may add service splits that the document has none of.
    services, made_routes: sorted as in a snapshot, in place of the document's own. workers is 0 for `auto`.
    """
    return snapshot.Snapshot(
        revision=revision,
        listeners=tuple(map(_listener, document.listeners)),
        routes=_routes(document) if made_routes is None else made_routes,
        services=_services(document, splits) if services is None else services,
        admin=document.admin.address if document.admin is not None else None,
        access=_access(document.admin),
        workers=document.workers,
        pin_workers=document.pin_workers,
        watchdog=document.watchdog,
        decision_headers=document.decision_headers,
        forwarding=snapshot.Forwarding(**document.forwarding.model_dump()),
        limits=_limits(document.limits),
        tracing=document.tracing.build() if document.tracing is not None else None,
        access_log=document.access_log.build() if document.access_log is not None else None,
        marks=document.mark.build() if document.mark is not None else None,
    )


def _routes(document: Document) -> tuple[snapshot.Route, ...]:
    return tuple(route for _, route in routes.expand(document.services, dict(enumerate(document.routes))))


def _services(document: Document, splits: Mapping[SplitId, snapshot.Split]) -> tuple[snapshot.Service, ...]:
    marked = document.mark is not None
    return tuple(
        service(name, part, splits, document.limits, marked=marked) for name, part in sorted(document.services.items())
    )


def _listener(part: ListenerPart) -> snapshot.Listener:
    proxy = part.proxy_protocol
    trusted = proxy.trusted if proxy is not None else ()
    protocols = part.protocols if part.protocols is not None else snapshot.PROTOCOLS
    return snapshot.Listener(
        address=part.address,
        role=part.role,
        name=part.called,
        proxy_protocol=proxy is not None,
        trusted=trusted,
        mode=part.mode,
        protocols=protocols,
        grpc_health=part.grpc_health,
        tls=certificates.certificates(part.tls),
    )


def _access(part: AdminPart | None) -> snapshot.Access:
    if part is None:
        return snapshot.Access()
    tls = part.tls.model_dump() if part.tls is not None else {}
    return snapshot.Access(token_file=part.token_file, **tls)


def _requests(document: Document) -> Iterator[SplitRequest]:
    for name, service in document.services.items():
        if service.split is not None:
            yield _request(name, None, service.split, _stable(service))
        for rule in service.rules:
            if rule.split is not None:
                yield _request(name, rule.name, rule.split, _stable(service))


def _request(service: str, rule: str | None, split: SplitPart, stable: str) -> SplitRequest:
    weights = tuple((version, weight) for version, weight in split.weights.items() if weight > 0)
    return SplitRequest(service, rule, weights, split.salt, split.slots, stable)


def _stable(service: ServicePart) -> str:
    """Empty where only other sources than the document know it; a document without such is refused."""
    return service.stable_version() or ""


def _limits(part: LimitsPart) -> snapshot.Limits:
    bounds = dict(part)
    del bounds["upstream_idle_timeout"], bounds["upstream_idle_connections"]  # of services
    bounds["h2"] = snapshot.H2Limits(**dict(part.h2))
    bounds["memory"] = snapshot_limits.Memory(**dict(part.memory))
    return snapshot.Limits(**bounds)


def service(
    name: str,
    part: ServicePart,
    splits: Mapping[SplitId, snapshot.Split],
    limits: LimitsPart,
    *,
    rules: Sequence[snapshot.Rule] | None = None,
    instances: tuple[snapshot.Instance, ...] | None = None,
    marked: bool = False,
) -> snapshot.Service:
    """One service of a snapshot. rules, instances: those of the part, where somebody has built them already. marked:
    the document has marks."""
    split = splits[name, None] if part.split is not None else splits.get((name, None))
    if rules is None:
        rules = [build_rule(name, rule, splits) for rule in part.rules]
    if instances is None:
        instances = tuple(map(build_instance, part.instances))
    marks = part.mark.build() if marked else None
    of_marks = mark_rules(marks, _stable(part), instances) if marks is not None else []
    return snapshot.Service(
        name=name,
        stable=_stable(part),
        split=_weighted(split) if split is not None else None,
        sticky=tuple(source.build() for source in part.sticky or ()),
        fallback=part.fallback,
        policy=part.policy,
        # Python's sort is stable, also in reverse: rules of one priority stay as written.
        rules=(*sorted(rules, key=_priority, reverse=True), *of_marks),
        lists=tuple((key, found.ids) for key, found in sorted(part.lists.items())),
        instances=instances,
        timeouts=snapshot.Timeouts(**part.timeouts.model_dump()),
        connections=_connections(part, limits),
        retries=part.retries.build(),
        tunnels=part.tunnels,
        health=part.health.build(),
        fault=faults.build(part.fault),
        mirror=part.mirror.build() if part.mirror is not None else None,
        slow_start=part.slow_start.build() if part.slow_start is not None else None,
        limits=part.limits.build(),
        marks=marks,
    )


def _connections(part: ServicePart, limits: LimitsPart) -> snapshot.Connections:
    whole = dict(part.connections)
    if whole["idle"] is None:
        whole["idle"] = limits.upstream_idle_connections
    if whole["idle_timeout"] is None:
        whole["idle_timeout"] = limits.upstream_idle_timeout
    return snapshot.Connections(**whole, tls=certificates.origination(part.tls))


def _weighted(split: snapshot.Split) -> snapshot.Split:
    """Weight 0 means never, so it is not even there."""
    return snapshot.Split(tuple(pair for pair in split.weights if pair[1] > 0), split.salt, split.slots)


def build_rule(service: str, rule: Rule, splits: Mapping[SplitId, snapshot.Split]) -> snapshot.Rule:
    return snapshot.Rule(
        name=rule.name,
        match=matching.match(rule.match),
        to=_subset(rule.to) if rule.to is not None else None,
        split=_weighted(splits[service, rule.name]) if rule.split is not None else None,
        priority=rule.priority,
        fallback=rule.fallback,
        fault=faults.build(rule.fault),
    )


def _subset(target: Target) -> snapshot.Subset:
    return snapshot.Subset(target.version, target.semver, tuple(sorted((target.metadata or {}).items())))


def build_instance(part: InstancePart) -> snapshot.Instance:
    return snapshot.Instance(part.address, part.version, part.weight, tuple(sorted(part.metadata.items())), part.zone)
