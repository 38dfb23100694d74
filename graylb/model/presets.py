"""Presets: what a document means to say when it says `preset: edge` or `preset: sidecar`.

Pure: a validated document, in which settings may be missing, to one that has them. What the document says wins.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic_core import PydanticCustomError

from graylb.model import values
from graylb.model.problems import Path, shown
from graylb.model.routes import RoutePart
from graylb.model.services import InstancePart, PathPattern, ServicePart
from graylb.model.settings import AdminPart, ForwardingPart, LimitsPart, ListenerPart, SidecarPart

if TYPE_CHECKING:
    from graylb.model.documents import Document

Name = Literal["edge", "sidecar"]
INBOUND: Final = "inbound"
OUTBOUND: Final = "outbound"
LOCAL: Final = "-local"
"""What the name of the service in front of the local app ends with."""

EDGE: Final[tuple[tuple[str, Any, str], ...]] = (
    ("listeners", [{"address": "0.0.0.0:8080"}], "Every IPv4 interface. For IPv6 add `[::]:8080`."),
    ("admin", {"address": "127.0.0.1:9900"}, "Nobody outside may reach it."),
    ("workers", "auto", "An edge has the machine for itself."),
    ("decision_headers", False, "Strangers need not know of versions and rules."),
    ("forwarding.x_forwarded", "replace", "What strangers say about earlier hops is no evidence."),
    ("forwarding.forwarded", "replace", "For the same reason: left alone, a forged one would reach the instances."),
    ("forwarding.via", True, "Names the proxy and breaks loops (RFC 9110, section 7.6.3)."),
    ("limits.head_bytes", "32KiB", "As nginx has it (four buffers of 8 KiB): what a stranger can make a worker keep."),
    ("limits.uri_bytes", "8KiB", "As nginx has it; RFC 9110, section 4.1, recommends 8,000 bytes at least."),
    (
        "limits.header_timeout",
        "5s",
        "A head is a packet or two, on slow networks too; who drips it (slowloris) is shed.",
    ),
    ("limits.body_timeout", "30s", "Between two bytes of a body: a mobile network pauses for less."),
    ("limits.idle_timeout", "75s", "More than the 60 s of usual load balancers in front, so that they close first."),
    ("limits.half_close_grace", "1s", "Whoever hung up does not keep an instance busy."),
)
"""Setting, what `preset: edge` makes it, in the document's form, and why."""

SIDECAR_ADMIN: Final = "127.0.0.1:15000"


@dataclass(frozen=True, slots=True)
class Fault:
    """As `translate.problem` takes it."""

    path: Path
    expected: str
    message: str = ""
    key: bool = False
    missing: bool = False  # the last of the path is


class Unresolved(Exception):
    """The preset cannot be applied."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Resolved:
    """`added`: where the text asks for each of the listeners behind those that the document itself has."""

    document: Document
    added: tuple[Path, ...] = ()


def resolve(document: Document, asked: Name | None = None) -> Resolved:
    """The document with what its preset fills in, and without the preset. asked: by the command line.

    Raises Unresolved.
    """
    name = chosen(document, asked)
    if name is None:
        return Resolved(document)
    resolved = _edge(document) if name == "edge" else _sidecar(document)
    return Resolved(resolved.document.model_copy(update={"preset": None, "sidecar": None}), resolved.added)


def chosen(document: Document, asked: Name | None) -> Name | None:
    """A `sidecar` part alone says enough. Raises Unresolved when two things are asked for."""
    own = document.preset or ("sidecar" if document.sidecar is not None else None)
    if document.sidecar is not None and document.preset == "edge":
        raise Unresolved(Fault(("sidecar",), "preset: sidecar beside it", "an edge has no sidecar", key=True))
    if asked is not None and own is not None and asked != own:
        path: Path = ("preset",) if document.preset is not None else ("sidecar",)
        raise Unresolved(Fault(path, f"{asked}, as --{asked} asks", f"the document is for preset {own}"))
    return asked or own


# ---- edge ------------------------------------------------------------------------------------------------------------


def _edge(document: Document) -> Resolved:
    settings: dict[str, Any] = {}
    for path, value, _ in EDGE:
        part, _, key = path.partition(".")
        if key:
            settings.setdefault(part, {})[key] = value
        else:
            settings[part] = value
    given = document.model_fields_set
    update: dict[str, Any] = {
        "forwarding": document.forwarding.filled(ForwardingPart.model_validate(settings["forwarding"])),
        "limits": document.limits.filled(LimitsPart.model_validate(settings["limits"])),
    }
    if "workers" not in given:
        update["workers"] = values.workers(settings["workers"])
    if "decision_headers" not in given:
        update["decision_headers"] = settings["decision_headers"]
    if document.admin is None:
        update["admin"] = AdminPart.model_validate(settings["admin"])
    if document.listeners:
        return Resolved(document.model_copy(update=update))
    update["listeners"] = tuple(map(ListenerPart.model_validate, settings["listeners"]))
    return Resolved(document.model_copy(update=update), (("preset",),) * len(update["listeners"]))


# ---- sidecar ---------------------------------------------------------------------------------------------------------


def _sidecar(document: Document) -> Resolved:
    """Two listeners; the local app behind the one, whatever the host; all other services behind the other, by host."""
    part = document.sidecar
    if part is None:
        raise Unresolved(Fault(("sidecar",), "{service: NAME, version: VERSION, app: ADDRESS:PORT}", missing=True))
    listeners, added = _sides(document.listeners, part)
    named = {route.service for route in document.routes}
    services: dict[str, ServicePart] = {}
    faults: list[Fault] = []
    for name, service in document.services.items():
        try:
            services[name] = service if name == part.local else _outbound(name, service, part, named)
        except PydanticCustomError:
            message = f"{shown(name)} is no host name that callers could use"
            faults.append(Fault(("services", name), "hosts for this service", message, key=True))
    own = document.services.get(part.local, ServicePart())
    if own.instances:
        message = "sidecar.app is the one instance of this service"
        faults.append(Fault(("services", part.local, "instances"), "no instances here", message))
    if faults:
        raise Unresolved(*faults)
    services[part.local] = _local(own, part)
    update = {
        "listeners": listeners,
        "services": services,
        "routes": tuple(map(_outbound_route, document.routes)),
        "admin": document.admin or AdminPart(address=SIDECAR_ADMIN),
    }
    return Resolved(document.model_copy(update=update), added)


def _sides(own: tuple[ListenerPart, ...], part: SidecarPart) -> tuple[tuple[ListenerPart, ...], tuple[Path, ...]]:
    """The document's listeners, and of the two sides those that it has not, or that the part gives an address to."""
    names = {listener.called for listener in own}
    addresses: tuple[tuple[Literal["inbound", "outbound"], str], ...] = (
        (INBOUND, part.inbound),
        (OUTBOUND, part.outbound),
    )
    wanted = [(role, at) for role, at in addresses if role not in names or role in part.model_fields_set]
    made = tuple(ListenerPart(address=address, role=role) for role, address in wanted)
    return own + made, tuple(("sidecar", role) for role, _ in wanted)


def _local(own: ServicePart, part: SidecarPart) -> ServicePart:
    """In front of the local app: every host and path of the inbound side."""
    return own.filled(
        ServicePart(
            hosts=("*",),
            paths=(PathPattern(prefix="/"),),
            listeners=(INBOUND,),
            instances=(InstancePart(address=part.app, version=part.version),),
        )
    )


def _outbound(name: str, service: ServicePart, part: SidecarPart, named: Collection[str | None]) -> ServicePart:
    """Reached by its own name. One that `routes` name and that has no route of its own stays without."""
    if name in named and not service.has_route:
        return service
    hosts = service.hosts or hosts_of(name, part.namespace, part.domain)
    return service.model_copy(update={"hosts": hosts, "listeners": service.listeners or (OUTBOUND,)})


def placed(name: str, service: ServicePart, part: SidecarPart, named: Collection[str | None]) -> ServicePart:
    """A service of another source than the document, as the sidecar of the document has it; named: by routes.

    Raises a fault when its name is none of a host.
    """
    return _local(service, part) if name == part.local else _outbound(name, service, part, named)


def hosts_of(name: str, namespace: str | None, domain: str) -> tuple[str, ...]:
    """What callers call a service: `users`, and in a namespace also the names that Kubernetes gives it.

    Raises a fault when the name is none of a host.
    """
    short = values.host_name(name)
    if namespace is None:
        return (short,)
    return short, f"{short}.{namespace}", f"{short}.{namespace}.svc", f"{short}.{namespace}.svc.{domain}"


def _outbound_route(route: RoutePart) -> RoutePart:
    return route if route.listeners else route.model_copy(update={"listeners": (OUTBOUND,)})
