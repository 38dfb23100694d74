"""The whole decision for one HTTP request, slow and obvious: what every matcher of graylb is compared with.

Text of requests is latin-1-decoded bytes, as received. Text of the configuration is UTF-8; `_raw` brings it to the same
form before anything is compared. Regular expressions run on Python's `re` (ASCII classes), not on the proxy's engine:
both must agree on what the strategies write.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import xxhash

from graylb.model.snapshot import (
    SLOTS,
    Condition,
    Instance,
    Match,
    Redirect,
    Route,
    Rule,
    Service,
    Snapshot,
    Split,
    StickyKey,
    Subset,
)
from graylb.release import numbers, semver
from graylb.release.slots import Slots

OWS = " \t"
API_VERSION = re.compile(r"v[0-9]+(\.[0-9]+)*")
VENDOR_TYPE = re.compile(r"(?i:application/vnd)(\.[^.+;,\s]+)+?\.(v[0-9]+(?:\.[0-9]+)*)(\+\S*)?")


@dataclass(frozen=True)
class Request:
    """`target` as on the request line; header values without the white space around them."""

    method: str = "GET"
    target: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    client_ip: str = "192.0.2.1"
    listener: str | None = None  # name of the one that it came in by; None: of none that a route could name

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        values = [value for given, value in self.headers if given.lower() == name.lower()]
        return ", ".join(values) if values else None

    def head(self) -> bytes:
        """As it goes over the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True)
class Outcome:
    """What becomes of one decided version or subset.

    wanted: the version that the rule or split names, None for a subset by SemVer or metadata. candidates: addresses of
    which instance selection may take any. version: theirs, None when they have several or there are none.
    """

    wanted: str | None
    version: str | None
    candidates: frozenset[str]
    fallback: bool
    status: Literal[503] | None


@dataclass(frozen=True)
class Decision:
    """outcomes: one entry, or for an anonymous split one for each version that the draw may name, by version."""

    route: str | None = None
    service: str | None = None
    rule: str | None = None
    slot: int | None = None
    draw_used: bool = False
    redirect: Redirect | None = None
    status: int | None = None  # None: forwarded, or a question of the outcome
    outcomes: Mapping[str | None, Outcome] = field(default_factory=dict)


def decide(snapshot: Snapshot, request: Request) -> Decision:
    """The four steps. The draw of an anonymous split is left open: every version it may name has an outcome."""
    route = find_route(snapshot.routes, request)
    if route is None:
        return Decision(status=404)
    if route.redirect is not None:
        return Decision(route=route.name, redirect=route.redirect, status=route.redirect.status)
    service = next(service for service in snapshot.services if service.name == route.service)
    rule = next((rule for rule in service.rules if holds(rule.match, request, service)), None)
    subsets, slot = targets(service, rule, request)
    ladder = service.fallback if rule is None or rule.fallback is None else rule.fallback
    outcomes = [settle(service, subset, ladder) for subset in subsets]
    return Decision(
        route=route.name,
        service=service.name,
        rule=None if rule is None else rule.name,
        slot=slot,
        draw_used=slot is None and split_of(service, rule) is not None,
        outcomes={outcome.wanted: outcome for outcome in outcomes},
    )


# ---- step 1: route ---------------------------------------------------------------------------------------------------


def find_route(routes: Iterable[Route], request: Request) -> Route | None:
    """The best of all that hold: a less specific host serves only if the more specific ones have no such route."""
    here = [route for route in routes if not route.listeners or request.listener in route.listeners]
    fitting = [route for route in here if route_holds(route, request)]
    return min(fitting, key=precedence, default=None)


def route_holds(route: Route, request: Request) -> bool:
    host = host_of(request)
    if route.host == "*":
        host_fits = True
    elif route.host.startswith("*."):
        host_fits = host.endswith(route.host[1:]) and host != route.host[1:]
    else:
        host_fits = host == route.host
    if route.path_kind == "prefix":
        path_fits = has_path_prefix(request.path, _raw(route.path))
    elif route.path_kind == "regex":
        path_fits = full_match(route.path, request.path)
    else:
        path_fits = request.path == _raw(route.path)
    return host_fits and path_fits and holds(route.match, request, None)


def precedence(route: Route) -> tuple[object, ...]:
    """Smaller is better."""
    kinds = [condition.kind for condition in route.match.all]
    path = route.path.rstrip("/") if route.path_kind == "prefix" else route.path
    return (
        ["exact", "wildcard", "any"].index(host_class(route)),
        -len(route.host),
        ["exact", "regex", "prefix"].index(route.path_kind),
        -len(_raw(path)),
        -("method" in kinds),
        -kinds.count("header"),
        -kinds.count("query"),
        route.name,
    )


def host_class(route: Route) -> str:
    if route.host == "*":
        return "any"
    return "wildcard" if route.host.startswith("*.") else "exact"


def host_of(request: Request) -> str:
    """Lower case, without port and without one dot at the end."""
    host = (request.header("host") or "").lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].removesuffix(".")


def has_path_prefix(path: str, prefix: str) -> bool:
    """By whole elements: /abc and /abc/ are the same prefix, which /abcd does not have."""
    stem = prefix.rstrip("/")
    return path == stem or path.startswith(stem + "/")


# ---- step 2: rules ---------------------------------------------------------------------------------------------------


def holds(match: Match, request: Request, service: Service | None) -> bool:
    if not all(condition_holds(condition, request, service) for condition in match.all):
        return False
    return not any(all(condition_holds(each, request, service) for each in group) for group in match.none)


def condition_holds(condition: Condition, request: Request, service: Service | None) -> bool:
    value = field_value(condition.kind, condition.name, request)
    values = condition.values
    if condition.list_name is not None:
        assert service is not None
        values = dict(service.lists)[condition.list_name]
    true = value is not None and operator_true(condition.op, value, values)
    return true != condition.negate


def operator_true(op: str, value: str, values: tuple[str, ...]) -> bool:
    raw = [_raw(each) for each in values]
    if op == "present":
        return True
    if op in ("exact", "in"):
        return value in raw
    if op == "prefix":
        return any(value.startswith(each) for each in raw)
    if op == "suffix":
        return any(value.endswith(each) for each in raw)
    if op == "path_prefix":
        return any(has_path_prefix(value, each) for each in raw)
    if op == "regex":
        return any(full_match(each, value) for each in values)
    if op == "cidr":
        return any(ipaddress.ip_address(value) in ipaddress.ip_network(each) for each in values)
    if op == "number":
        return numbers.satisfies(value, numbers.parse_range(values[0]))
    assert op == "semver"
    return semver.satisfies(value, semver.parse_range(values[0]))


def full_match(pattern: str, value: str) -> bool:
    return re.fullmatch(_raw(pattern), value, re.ASCII) is not None


# ---- fields ----------------------------------------------------------------------------------------------------------


def field_value(kind: str, name: str, request: Request) -> str | None:
    """None when the request has no such field; an empty field is ""."""
    if kind in ("metadata", "grpc_service", "grpc_method") and not is_grpc(request):
        return None
    if kind in ("header", "metadata"):
        return request.header(name)
    if kind == "cookie":
        return cookies(request).get(_raw(name))
    if kind == "query":
        return query_parameters(request).get(_raw(name))
    if kind in ("grpc_service", "grpc_method"):
        parts = request.path.split("/")
        if len(parts) != 3 or parts[0] or not parts[1] or not parts[2]:
            return None
        return parts[1] if kind == "grpc_service" else parts[2]
    derived = {"api_version": api_version, "device": device, "mark": mark}
    if kind in derived:
        return derived[kind](request)
    return {"path": request.path, "method": request.method, "client_ip": request.client_ip}[kind]


def is_grpc(request: Request) -> bool:
    return (request.header("content-type") or "").lower().startswith("application/grpc")


def cookies(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    lines = [value for name, value in request.headers if name.lower() == "cookie"]
    for pair in ";".join(lines).split(";"):
        name, equals, value = pair.partition("=")
        value = value.strip(OWS)
        if len(value) >= 2 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if equals:
            found.setdefault(name.strip(OWS), value)
    return found


def query_parameters(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in request.query.split("&"):
        name, _, value = part.partition("=")
        found.setdefault(percent_decoded(name.replace("+", " ")), percent_decoded(value.replace("+", " ")))
    return found if request.query else {}


def percent_decoded(text: str) -> str:
    """A % without two hexadecimal digits stays."""
    return re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), text)


def api_version(request: Request) -> str | None:
    elements = request.path.split("/")[1:]
    if elements[:1] == ["api"]:
        elements = elements[1:]
    if elements and API_VERSION.fullmatch(elements[0]):
        return elements[0]
    for part in (request.header("accept") or "").split(","):
        found = VENDOR_TYPE.fullmatch(part.partition(";")[0].strip(OWS))
        if found:
            return found[2]
    return None


def device(request: Request) -> str | None:
    if request.header("sec-ch-ua-mobile") == "?1":
        return "mobile"
    agent = request.header("user-agent")
    if agent is None:
        return None
    agent = agent.lower()
    if any(word in agent for word in ("bot", "crawler", "spider", "slurp")):
        return "bot"
    if any(word in agent for word in ("ipad", "tablet", "kindle", "silk/")):
        return "tablet"
    if "android" in agent and "mobile" not in agent:
        return "tablet"
    if any(word in agent for word in ("mobi", "iphone", "ipod", "windows phone")):
        return "mobile"
    return "desktop"


def mark(request: Request) -> str | None:
    header = request.header("x-service-version")
    if header is not None:
        return header
    for member in (request.header("baggage") or "").split(","):
        name, equals, value = member.partition(";")[0].partition("=")
        if equals and name.strip(OWS) == "x-service-version":
            return percent_decoded(value.strip(OWS))
    return None


# ---- step 3: split ---------------------------------------------------------------------------------------------------


def split_of(service: Service, rule: Rule | None) -> Split | None:
    return service.split if rule is None else rule.split


def targets(service: Service, rule: Rule | None, request: Request) -> tuple[list[Subset], int | None]:
    """The subset that is wanted, or all that a draw may name; and the slot of a sticky key."""
    if rule is not None and rule.to is not None:
        return [rule.to], None
    split = split_of(service, rule)
    if split is None:
        return [Subset(version=service.stable)], None
    key = sticky_key(service.sticky, request)
    if key is None:
        return [Subset(version=version) for version, weight in split.weights if weight > 0], None
    slot = slot_of(split.salt, key)
    return [Subset(version=Slots.parse(split.slots).owners()[slot])], slot


def sticky_key(keys: Iterable[StickyKey], request: Request) -> str | None:
    """The first that is present and not empty."""
    return next((value for key in keys if (value := field_value(key.kind, key.name, request))), None)


def slot_of(salt: str, key: str) -> int:
    seed = xxhash.xxh64_intdigest(salt.encode(), 0)
    return xxhash.xxh64_intdigest(key.encode("latin-1"), seed) % SLOTS


# ---- step 4: what instance selection may take ------------------------------------------------------------------------


def settle(service: Service, subset: Subset, fallback: str) -> Outcome:
    """The wanted subset, else down the ladder: strict: 503; stable: the stable version; any: then every instance."""
    ladder = [subset]
    if fallback in ("stable", "any"):
        ladder.append(Subset(version=service.stable))
    if fallback == "any":
        ladder.append(Subset())
    for step, each in enumerate(ladder):
        usable = [instance for instance in service.instances if instance.weight > 0 and picks(each, instance)]
        if usable:
            versions = {instance.version for instance in usable}
            version = versions.pop() if len(versions) == 1 else None
            return Outcome(subset.version, version, frozenset(i.address for i in usable), step > 0, None)
    return Outcome(subset.version, None, frozenset(), False, 503)


def picks(subset: Subset, instance: Instance) -> bool:
    if subset.version is not None and instance.version != subset.version:
        return False
    if subset.semver is not None and not semver.satisfies(instance.version, semver.parse_range(subset.semver)):
        return False
    return all(dict(instance.metadata).get(key) == value for key, value in subset.metadata)


def _raw(text: str) -> str:
    """Configuration text as it looks in a request."""
    return text.encode().decode("latin-1")
