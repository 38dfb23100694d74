"""What holds between the parts of a document: names that must exist, things that must be unique, versions to infer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from graylb import builds
from graylb.model import certificates, snapshot
from graylb.model.certificates import ListenerTlsPart, OriginationPart
from graylb.model.conditions import Conditions, Operators
from graylb.model.discovery import UNSERVED, RegistryPart
from graylb.model.problems import ConfigError, Path, json_path, shown
from graylb.model.routes import RoutePart, expand
from graylb.model.services import ConnectionsPart, Rule, ServicePart, SplitPart
from graylb.model.settings import AdminPart, LimitsPart, ListenerPart
from graylb.model.source_map import Source
from graylb.model.translate import missing, problem
from graylb.model.values import is_local, near

MAX_LISTENERS = 32
"""Names of listeners: a route keeps them as the bits of one word."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The well-formed parts of a document. names: of all services, well-formed or not.

    listeners: by where the text asks for them, which a preset may do elsewhere than in `listeners`. partial: services,
    or parts of them, come from elsewhere too; what is missing here may be there. etcd: the document names one. alone:
    services for such an elsewhere, so that nothing can be said of what is between them.
    """

    names: frozenset[str]
    services: dict[str, ServicePart]
    routes: dict[int, RoutePart]
    listeners: dict[Path, ListenerPart]
    admin: AdminPart | None
    limits: LimitsPart | None
    partial: bool = False
    registries: dict[int, RegistryPart] = field(default_factory=dict)
    etcd: bool = False
    alone: bool = False


def check(source: Source, parts: Parts, now: int | None = None) -> tuple[list[ConfigError], tuple[ConfigError, ...]]:
    """Errors and warnings, the latter by position. now: Unix seconds, for the dates of certificates."""
    errors: list[ConfigError] = []
    if not parts.alone:
        errors += [*_addresses(source, parts), *_listeners(source, parts), *_routes(source, parts)]
        errors += _unbuilt(source, parts)
        errors += _registries(source, parts)
    warnings: list[ConfigError] = []
    for name, service in parts.services.items():
        errors += check_service(source, name, service, parts.limits, partial=parts.partial)
        warnings += _service_warnings(source, ("services", name), service)
    if parts.partial:
        warnings = list(_registry_warnings(source, parts))
    warnings += _admin_warnings(source, parts.admin)
    warnings += _certificate_warnings(source, parts, now)
    return errors, tuple(sorted(warnings, key=lambda warning: (warning.line, warning.column)))


def check_service(
    source: Source, name: str, service: ServicePart, limits: LimitsPart | None, *, partial: bool = False
) -> Iterator[ConfigError]:
    """What must hold within one service."""
    yield from _service_errors(source, ("services", name), service, partial)
    yield from _rates(source, ("services", name), service, partial)
    yield from _connections(source, ("services", name, "connections"), service.connections, limits)
    yield from _origination(source, ("services", name), service)


def check_routes(source: Source, parts: Parts) -> Iterator[ConfigError]:
    """What must hold between services, routes and listeners."""
    yield from _listeners(source, parts)
    yield from _routes(source, parts)


def _addresses(source: Source, parts: Parts) -> Iterator[ConfigError]:
    """Two sockets cannot share an address, unless the system chooses the port."""
    owned: list[tuple[Path, str]] = [((*at, "address"), each.address) for at, each in parts.listeners.items()]
    if parts.admin is not None:
        owned.append((("admin", "address"), parts.admin.address))
    owned.sort(key=lambda pair: _is_written(source, pair[0][:-1]))  # to be told of, rather than what a preset adds
    owned = [(path, address) for path, address in owned if address.startswith("unix:") or not address.endswith(":0")]
    yield from _repeated(source, owned, "addresses that differ")


def _unbuilt(source: Source, parts: Parts) -> Iterator[ConfigError]:
    """What is asked for by name must be there; what is there by default is left out where it is not."""
    for at, listener in parts.listeners.items():
        if listener.protocols is not None and "h2" in listener.protocols and (why := builds.lacks("h2")):
            yield problem(source, (*at, "protocols"), "http/1.1 alone", why)
        if listener.tls is not None and (why := builds.lacks("tls")):
            yield problem(source, (*at, "tls"), "no tls", why)


def _certificate_warnings(source: Source, parts: Parts, now: int | None) -> Iterator[ConfigError]:
    owned: list[tuple[Path, ListenerTlsPart | OriginationPart]] = [
        ((*at, "tls"), each.tls) for at, each in parts.listeners.items() if each.tls is not None
    ]
    owned += [(("services", name, "tls"), each.tls) for name, each in parts.services.items() if each.tls is not None]
    for path, part in owned:
        for at, message in certificates.warnings(part, now):
            yield problem(source, (*path, *at), message=message)
        if isinstance(part, OriginationPart) and not part.verify:
            yield problem(source, (*path, "verify"), message="whoever answers at an instance's address is trusted")


def _admin_warnings(source: Source, admin: AdminPart | None) -> Iterator[ConfigError]:
    if admin is not None and admin.tls is None and not is_local(admin.address):
        message = "tokens and what they are sent with cross the network in the clear"
        yield problem(source, ("admin", "address"), "tls: {cert, key} beside it", message)


def _is_written(source: Source, path: Path) -> bool:
    data = source.data
    try:
        for key in path:
            data = data[key]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _listeners(source: Source, parts: Parts) -> Iterator[ConfigError]:
    """Names that routes refer to; a table tells that many apart."""
    seen: set[str] = set()
    for at, listener in parts.listeners.items():
        if listener.called not in seen and len(seen) == MAX_LISTENERS:
            got = f"{shown(listener.called)} is one more"
            yield problem(source, (*at, "name"), f"at most {MAX_LISTENERS} names of listeners", got)
            return
        seen.add(listener.called)
    known = seen | set(_called(source.data.get("listeners")))
    users: list[tuple[Path, RoutePart | ServicePart]] = [(("routes", i), route) for i, route in parts.routes.items()]
    users += [(("services", name), service) for name, service in parts.services.items()]
    for path, part in users:
        for index, name in enumerate(part.listeners or ()):
            if name not in known:
                yield _unknown(source, (*path, "listeners", index), "listener", name, known)


def _called(listeners: Any) -> Iterator[str]:
    """What the listeners are called, well-formed or not."""
    for each in listeners if isinstance(listeners, list) else ():
        name = each.get("name", each.get("role", "edge")) if isinstance(each, dict) else None
        if isinstance(name, str):
            yield name


def _repeated(source: Source, owned: Iterable[tuple[Path, str]], expected: str) -> Iterator[ConfigError]:
    first: dict[str, Path] = {}
    for path, value in owned:
        if (other := first.setdefault(value, path)) != path:
            yield problem(source, path, expected, f"{shown(value)} is also that of {json_path(other[:-1])}")


def _routes(source: Source, parts: Parts) -> Iterator[ConfigError]:
    nothing = source.data.get("services", {}) == {} and source.data.get("routes", []) == [] and not parts.services
    if nothing and not parts.partial:
        yield problem(source, (), "at least one service or route", "nothing is routed")
    named = ((("routes", index, "name"), route.name) for index, route in parts.routes.items())
    yield from _repeated(source, ((path, name) for path, name in named if name is not None), "names that differ")
    for index, route in parts.routes.items():
        if route.service is not None and route.service not in parts.names and not parts.partial:
            yield _unknown(source, ("routes", index, "service"), "service", route.service, parts.names)
    yield from _same_routes(source, parts)


def _registries(source: Source, parts: Parts) -> Iterator[ConfigError]:
    named = ((("registries", index, "name"), each.called) for index, each in parts.registries.items())
    yield from _repeated(source, named, "names that differ")
    for index, each in parts.registries.items():
        if each.etcd is None and not parts.etcd:
            yield missing(source, ("registries", index, "etcd"), "{endpoints: [...]}, as the document has no etcd")


def _registry_warnings(source: Source, parts: Parts) -> Iterator[ConfigError]:
    for index, each in parts.registries.items():
        for at, scheme in enumerate(each.schemes):
            if scheme in UNSERVED:
                got = (
                    f"instances are asked without TLS, whatever {scheme} says, unless their service has connections.tls"
                )
                yield problem(source, ("registries", index, "schemes", at), message=got)


def _unknown(source: Source, path: Path, noun: str, name: str, known: Iterable[str]) -> ConfigError:
    names = sorted(known)
    meant = near(name, names)
    expected = f"one of {', '.join(names[:20])}" if names else f"a {noun} that the document has"
    return problem(source, path, "" if meant else expected, f"unknown {noun} {shown(name)}", meant)


def _same_routes(source: Source, parts: Parts) -> Iterator[ConfigError]:
    """A second route for the same requests would never be reached."""
    before: dict[object, list[tuple[Path, snapshot.Route]]] = {}
    told: set[tuple[Path, Path]] = set()
    for path, route in expand(parts.services, parts.routes):
        if path[0] == "services" and not _is_written(source, path):
            path = ("sidecar",)  # which has brought this service
        key = (route.host, route.path_kind, route.path, frozenset(route.match.all))
        others = before.setdefault(key, [])
        for other, first in others:
            if (shared := _shared(first, route)) is not None:
                if (other, path) not in told:
                    told.add((other, path))
                    got = f"{_request(route, shared)} already goes to {json_path(other)}"
                    yield problem(source, path, "routes that differ", got)
                break
        else:
            others.append((path, route))


def _shared(one: snapshot.Route, other: snapshot.Route) -> tuple[str, ...] | None:
    """The listeners that both are for, () for every one; None when there is none."""
    if not one.listeners or not other.listeners:
        return one.listeners or other.listeners
    return tuple(sorted({*one.listeners} & {*other.listeners})) or None


def _request(route: snapshot.Route, listeners: tuple[str, ...]) -> str:
    conditions = " with the same conditions" if route.match.all else ""
    conditions += f" on listener {', '.join(listeners)}" if listeners else ""
    return f"host {shown(route.host)} and {route.path_kind} path {shown(route.path)}{conditions}"


def _service_errors(source: Source, path: Path, service: ServicePart, partial: bool) -> Iterator[ConfigError]:
    if service.stable_version() is None and not partial:
        got = "instances of several versions" if service.instances else "no split and no instance"
        expected = "stable: VERSION, a split, or instances of just one version"
        yield problem(source, path, expected, f"the stable version is unknown: {got}")
    owned = [((*path, "instances", index, "address"), each.address) for index, each in enumerate(service.instances)]
    yield from _repeated(source, owned, "each address once in a service")
    named = [((*path, "rules", index, "name"), rule.name) for index, rule in enumerate(service.rules)]
    yield from _repeated(source, named, "names that differ")
    for index, part in enumerate(service.sticky or ()):
        if part in (service.sticky or ())[:index]:
            yield problem(source, (*path, "sticky", index), "each source once", "the same source again")
    for index, rule in enumerate(service.rules):
        for at, name in _lists_of(rule):
            if name not in service.lists and not partial:
                yield _unknown(source, (*path, "rules", index, *at), "list", name, service.lists)


def _rates(source: Source, path: Path, service: ServicePart, partial: bool) -> Iterator[ConfigError]:
    rules = [rule.name for rule in service.rules]
    for index, rate in enumerate(service.limits.rates):
        if rate.rule is not None and rate.rule not in rules and not partial:
            yield _unknown(source, (*path, "limits", "rates", index, "rule"), "rule", rate.rule, rules)


def _connections(source: Source, path: Path, part: ConnectionsPart, limits: LimitsPart | None) -> Iterator[ConfigError]:
    if part.protocol == "h2" and part.proxy_protocol != "off":
        what = "a connection of HTTP/2 is shared by clients, of whom a PROXY header names one"
        yield problem(source, (*path, "proxy_protocol"), "off beside protocol: h2", what)
    idle = part.idle
    if idle is None and limits is not None:
        idle = limits.upstream_idle_connections
    if part.max and part.warm > part.max:
        yield problem(source, (*path, "warm"), f"at most max, which is {part.max}")
    elif idle is not None and part.warm > idle:
        of = "idle" if part.idle is not None else "limits.upstream_idle_connections"
        yield problem(source, (*path, "warm"), f"at most {of}, which is {idle}")
    elif part.warm and part.proxy_protocol != "off":
        why = "a connection that begins with a PROXY header is its client's and cannot be opened in advance"
        yield problem(source, (*path, "warm"), "0 beside proxy_protocol", why)
    if part.protocol == "h2" and (why := builds.lacks("h2")):
        yield problem(source, (*path, "protocol"), "http1 or auto", why)


def _origination(source: Source, path: Path, service: ServicePart) -> Iterator[ConfigError]:
    if service.tls is None:
        return
    if why := builds.lacks("tls"):
        yield problem(source, (*path, "tls"), "no tls", why)
    for name, file in certificates.unread(service.tls):
        why = f"file {shown(file)} cannot be read in this place"
        yield problem(source, (*path, "tls", name), "the text of a PEM file", why)
    unix = next((each.address for each in service.instances if each.address.startswith("unix:")), None)
    if unix is not None and service.tls.verify and service.tls.server_name is None:
        why = f"{unix} has no host that its certificate could be for"
        yield problem(source, (*path, "tls"), "a server_name, or verify: false", why)


def _service_warnings(source: Source, path: Path, service: ServicePart) -> Iterator[ConfigError]:
    """Traffic may be prepared before instances arrive, so a version without instances is only worth a word."""
    if not service.instances:
        yield problem(source, path, message="the service has no instance yet")
        return
    versions = {instance.version for instance in service.instances}
    for at, version in _versions_of(service):
        if version not in versions:
            meant = near(version, sorted(versions))
            yield problem(
                source, (*path, *at), message=f"version {shown(version)} has no instance yet", suggestion=meant
            )


def _versions_of(service: ServicePart) -> Iterator[tuple[Path, str]]:
    if service.stable is not None:
        yield ("stable",), service.stable
    if service.split is not None:
        yield from _weighted(service.split, ("split",))
    for index, rule in enumerate(service.rules):
        if rule.to is not None and rule.to.version is not None:
            yield ("rules", index, "to", "version"), rule.to.version
        if rule.split is not None:
            yield from _weighted(rule.split, ("rules", index, "split"))


def _weighted(split: SplitPart, path: Path) -> Iterator[tuple[Path, str]]:
    for version, weight in split.weights.items():
        if weight:
            yield (*path, "weights", version), version


def _lists_of(rule: Rule) -> Iterator[tuple[Path, str]]:
    yield from _lists_in(rule.match, ("match",))
    for index, group in enumerate(rule.match.not_ or ()):
        yield from _lists_in(group, ("match", "not", index))


def _lists_in(part: Conditions, path: Path) -> Iterator[tuple[Path, str]]:
    for key, value in part.given().items():
        if isinstance(value, Operators):
            yield from _list_of(value, (*path, key))
        elif isinstance(value, dict):
            for name, tested in value.items():
                yield from _list_of(tested, (*path, key, name))
        elif key == "grpc":
            for name, tested in value.given().items():
                yield from _list_of(tested, (*path, key, name))


def _list_of(tested: Operators, path: Path) -> Iterator[tuple[Path, str]]:
    if tested.not_ is not None:
        yield from _list_of(tested.not_, (*path, "not"))
    elif isinstance(tested.in_, str):
        yield (*path, "in"), tested.in_
