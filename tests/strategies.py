"""Random valid snapshots and requests that are made to hit, or to miss by little, what the snapshots look for.

Everything comes from small pools, so that names and values meet. A choice is one bounded integer: cheap to draw, and it
shrinks towards the first of its pool.

    @given(cases())
    def test(case): snapshot, requests = case

`random_cases` makes the same from a seed, without hypothesis: many times faster, but nothing shrinks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar
from urllib.parse import quote

from hypothesis import strategies as st

from graylb.model.snapshot import (
    Condition,
    Fallback,
    FieldKind,
    Instance,
    Listener,
    Match,
    Operator,
    Redirect,
    Route,
    Rule,
    Service,
    Snapshot,
    Split,
    StickyKey,
    Subset,
)
from graylb.release.slots import allocate
from tests.oracle import Request

T = TypeVar("T")
PathKind = Literal["prefix", "exact", "regex"]
LISTENERS = ("edge", "inbound", "mesh")
FALLBACKS: tuple[Fallback, ...] = ("stable", "strict", "any")


class Chooser:
    """Choices on top of one source of bounded integers (both bounds included)."""

    def __init__(self, number: Callable[[int, int], int]) -> None:
        self.number = number

    def one(self, pool: Sequence[T]) -> T:
        return pool[self.number(0, len(pool) - 1)] if len(pool) > 1 else pool[0]

    def some(self, pool: Sequence[T], low: int, high: int) -> tuple[T, ...]:
        return tuple(self.one(pool) for _ in range(self.number(low, high)))

    def chance(self, one_in: int) -> bool:
        return self.number(0, one_in - 1) == one_in - 1


def _drawing(draw: st.DrawFn) -> Chooser:
    return Chooser(lambda low, high: draw(_integers(low, high)))


@functools.cache
def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


# ---- pools -----------------------------------------------------------------------------------------------------------

TEXTS = ("beta", "beta2", "be", "Beta", "", "a b", "ä", "42", "1.2.3", "v2", 'q"x"', "50%", "a,b", "+")
HEADER_NAMES = ("user-group", "x-user-id", "x-service-version", "cookie", "accept", "user-agent", "x-user")
COOKIE_NAMES = ("uid", "exp", "UID")
QUERY_NAMES = ("uid", "exp", "a b", "ä", "x[]")
METADATA_NAMES = ("user-group", "x-user-id", "x-meta-bin")
METHODS = ("GET", "POST", "HEAD", "PURGE")
VERSIONS = ("v1", "v2", "v1.2.0", "v1.3.0-rc1", "2.0.0", "commit-abc123", "v3:x/y")
SALTS = ("a", "salt", "ä", "2f9c41d07ab35e86")
LISTS = {"beta-ids": ("beta", "42", "ä", "a b"), "many": tuple(f"user-{n}" for n in range(100)), "empty": ()}

REGEXES = {  # pattern: values that it matches or nearly matches
    "be.*": ("beta", "be", "Beta", "abeta"),
    "(beta|42)": ("beta", "42", "beta2"),
    "[0-9]+": ("42", "4a", ""),
    r"v\d+(\.\d+)*": ("v2", "v1.2.3", "v", "v2."),
    ".*": ("", "a b", "ä"),
    "(?i)BETA2?": ("beta", "BETA2", "beta22"),
    r"\w+-\d{1,3}": ("user-42", "user-4242", "ä-1"),
}
PATH_REGEXES = {
    "/a.*": ("/abc", "/a", "/b"),
    "/(abc|api)/[a-z]+": ("/abc/def", "/api/users", "/api/v1"),
    r"/api/v\d+/.*": ("/api/v1/", "/api/v22/x/y", "/api/v1"),
    "/[^/]+/[^/]+": ("/abc/def", "/pkg.Service/Get", "/abc/def/"),
    "/x+": ("/x", "/xxx", "/xy"),
    ".*": ("/", "/abc//def"),
}
PATHS = (
    "/", "/abc", "/abc/", "/abcd", "/abc/def", "/abc/def/", "/api/v1", "/api/v1/users", "/v2.1/x",
    "/pkg.Service/Get", "/abc//def", "/%61bc", "/api", "/ABC", "/abc/def/ghi", "/api/v1x",
)  # fmt: skip
PATH_KINDS: tuple[PathKind, ...] = ("prefix", "prefix", "exact", "regex")
HOSTS = (
    "*", "example.com", "*.example.com", "a.example.com", "*.a.example.com", "b.a.example.com", "[::1]",
    "10.0.0.1",
)  # fmt: skip
NUMBER_RANGES = (">=10,<100", "==42", "!=42", "<=-1.5", ">41.9 <42.1")
NUMBER_TEXTS = ("10", "42", "42.0", "99.99", "100", "-2", "007", "4e1", "1" * 41, "+42", "42.")
SEMVER_RANGES = (">=1.2,<2", "^1.2.0", "<2", "2.x || v1.3.0-rc1", "!=1.2.3", ">=1.3.0-rc.1", "~1.2", "*")
SEMVER_TEXTS = (
    "1.2.3", "v2", "1.3.0-rc1", "1.3.0-rc.2", "2.0.0-a", "1.2", "v1.2.0+b", "01.2", "0.0.0-a", "1.2.3.4", "V1.9",
)  # fmt: skip
NETWORKS = ("10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "192.0.2.0/25", "2001:db8::/33", "::/0", "::1/128")
CLIENT_IPS = (
    "192.0.2.1", "10.1.2.3", "10.255.0.1", "192.0.2.128", "127.0.0.1", "::1", "2001:db8::1", "2001:db8:8000::1",
)  # fmt: skip
API_VERSIONS = ("v1", "v2", "v2.1", "v10")
DEVICES = ("mobile", "tablet", "desktop", "bot")
GRPC_SERVICES = ("pkg.Service", "Service", "a.b.C")
GRPC_METHODS = ("Get", "Set")
USER_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64)", "Googlebot/2.1", "Mozilla (iPad)", "Mozilla (Linux; Android 14)", "",
    "Mozilla (Linux; ANDROID 14) Mobile", "Mozilla (iPhone) Mobile", "windows phone", "Silk/1", "Yahoo! Slurp", "bo t",
)  # fmt: skip
METADATA = ((), (("env", "gray"),), (("env", "prod"),), (("env", "gray"), ("zone", "a")))
SUBSETS = (
    *(Subset(version=version) for version in VERSIONS),
    *(Subset(semver=text) for text in SEMVER_RANGES),
    *(Subset(metadata=metadata) for metadata in METADATA),
    Subset(semver=">=1.2,<2", metadata=METADATA[1]),
    Subset(version="v2", metadata=METADATA[1]),
    Subset(version="v2", semver="<2"),
)
STICKY = (
    *(StickyKey("header", name) for name in ("x-user-id", "user-group")),
    *(StickyKey("cookie", name) for name in COOKIE_NAMES),
    *(StickyKey("query", name) for name in ("uid", "ä")),
    StickyKey("metadata", "x-user-id"),
    StickyKey("client_ip"),
)


def _tests(kind: FieldKind, name: str) -> list[Condition]:
    """Every condition of the pool on one free-text field, without negation."""

    def make(op: Operator, *values: str, list_name: str | None = None) -> Condition:
        return Condition(kind, op, values, name, list_name=list_name)

    return [
        *(make("exact", text) for text in TEXTS),
        *(make("prefix", text) for text in TEXTS if text),
        *(make("suffix", text) for text in TEXTS if text),
        *(make("in", *pair) for pair in itertools.pairwise(TEXTS)),
        *(make("in", list_name=list_name) for list_name in LISTS),
        *(make("regex", text) for text in REGEXES),
        *(make("number", text) for text in NUMBER_RANGES),
        *(make("semver", text) for text in SEMVER_RANGES),
        *[make("present")] * 3,
    ]


def _both(conditions: Sequence[Condition]) -> list[Condition]:
    """Every fourth is negated."""
    return [*conditions, *conditions, *conditions, *(dataclasses.replace(c, negate=True) for c in conditions)]


def _choices(kind: FieldKind, values: Sequence[str], *, present: bool) -> list[Condition]:
    tests = [Condition(kind, "exact", (value,)) for value in values]
    tests += [Condition(kind, "in", tuple(pair)) for pair in itertools.pairwise(values)]
    return _both([*tests, Condition(kind, "present")] if present else tests)


METHOD_CONDITIONS = _choices("method", METHODS, present=False)
HEADER_CONDITIONS = [_both(_tests("header", name)) for name in HEADER_NAMES]
QUERY_CONDITIONS = [_both(_tests("query", name)) for name in QUERY_NAMES]
PATH_CONDITIONS = _both([
    *(Condition("path", "exact", (path,)) for path in PATHS),
    *(Condition("path", "path_prefix", (path,)) for path in PATHS),
    *(Condition("path", "suffix", (path,)) for path in PATHS),
    *(Condition("path", "in", pair) for pair in itertools.pairwise(PATHS)),
    *(Condition("path", "regex", (text,)) for text in PATH_REGEXES),
])  # fmt: skip
CONDITIONS: list[list[Condition]] = [
    *HEADER_CONDITIONS[:3],
    *(_both(_tests("cookie", name)) for name in COOKIE_NAMES),
    *QUERY_CONDITIONS,
    *HEADER_CONDITIONS[3:],
    *(_both(_tests("metadata", name)) for name in METADATA_NAMES),
    _both(_tests("mark", "")),
    PATH_CONDITIONS,
    METHOD_CONDITIONS,
    _choices("api_version", API_VERSIONS, present=True),
    _choices("device", DEVICES, present=True),
    [*_choices("grpc_service", GRPC_SERVICES, present=True), *_both(_tests("grpc_service", ""))],
    [*_choices("grpc_method", GRPC_METHODS, present=True), *_both(_tests("grpc_method", ""))],
    _both([Condition("client_ip", "cidr", nets) for nets in [*zip(NETWORKS), *itertools.pairwise(NETWORKS)]]),
]
ROUTE_CONDITIONS = [
    METHOD_CONDITIONS,
    *([c for c in pool if c.list_name is None] for pool in (*HEADER_CONDITIONS, *QUERY_CONDITIONS)),
]


# ---- snapshots -------------------------------------------------------------------------------------------------------


def make_snapshot(choose: Chooser) -> Snapshot:
    """One to three services behind up to nine routes, mostly one of them for everything else."""
    services = tuple(_service(choose, f"service-{n}") for n in range(choose.number(1, 3)))
    routes = [_route(choose, n, services) for n in range(choose.number(1, 8))]
    if not choose.chance(5):
        routes.append(Route("rest", "*", "prefix", "/", service=services[0].name))
    listeners = tuple(Listener("127.0.0.1:0", name=name) for name in LISTENERS)
    return Snapshot(1, listeners, tuple(routes), services)


def _route(choose: Chooser, number: int, services: Sequence[Service]) -> Route:
    kind = choose.one(PATH_KINDS)
    path = choose.one(tuple(PATH_REGEXES)) if kind == "regex" else choose.one(PATHS)
    match = Match(tuple(choose.one(choose.one(ROUTE_CONDITIONS)) for _ in range(max(0, choose.number(-3, 2)))))
    name = f"{choose.one(('b', 'a', 'c'))}{number}"
    here = choose.some(LISTENERS, 1, 2) if choose.chance(3) else ()
    if choose.chance(12):
        redirect = choose.one((Redirect(), Redirect(301, "https", "example.com:8443", "/new")))
        return Route(name, choose.one(HOSTS), kind, path, match, redirect=redirect, listeners=here)
    rewrite = "/new" if kind == "prefix" and choose.chance(5) else None
    service = choose.one(services).name
    return Route(name, choose.one(HOSTS), kind, path, match, service, rewrite_prefix=rewrite, listeners=here)


def _service(choose: Chooser, name: str) -> Service:
    versions = VERSIONS[: choose.one((3, 2, 1, 5, len(VERSIONS)))]
    rules = [_rule(choose, f"rule-{n}", versions) for n in range(choose.number(0, 7))]
    rules.sort(key=lambda rule: -rule.priority)
    return Service(
        name=name,
        stable=choose.one(versions),
        split=None if choose.chance(4) else _split(choose, versions),
        sticky=choose.some(STICKY, 0, 3),
        fallback=choose.one(FALLBACKS),
        policy=choose.one(("weighted", "least_request")),
        rules=tuple(rules),
        lists=tuple(LISTS.items()),
        instances=tuple(_instance(choose, n, versions) for n in range(choose.number(0, 9))),
    )


def _instance(choose: Chooser, number: int, versions: Sequence[str]) -> Instance:
    weight = choose.one((100, 100, 1, 0, 7))
    return Instance(f"127.0.0.1:{9000 + number}", choose.one(versions), weight, choose.one(METADATA))


def _rule(choose: Chooser, name: str, versions: Sequence[str]) -> Rule:
    groups = tuple(_conditions(choose, 1, 2) for _ in range(max(0, choose.number(-3, 2))))
    match = Match(_conditions(choose, 0 if choose.chance(12) else 1, 3), groups)
    fallback = choose.one((None, None, *FALLBACKS))
    priority = choose.one((0, 0, 10, -5))
    if choose.chance(3):
        return Rule(name, match, None, _split(choose, versions), priority, fallback)
    return Rule(name, match, choose.one(SUBSETS), None, priority, fallback)


def _conditions(choose: Chooser, low: int, high: int) -> tuple[Condition, ...]:
    return tuple(choose.one(choose.one(CONDITIONS)) for _ in range(choose.number(low, high)))


def _split(choose: Chooser, versions: Sequence[str]) -> Split:
    """Reached by one or two allocations, so that stacks have several runs."""
    weights = tuple({choose.one(versions): choose.one((95, 5, 0.01, 50)) for _ in range(choose.number(1, 4))}.items())
    return Split(weights, choose.one(SALTS), _slots(weights, choose.one(versions) if choose.chance(2) else None))


@functools.lru_cache(4096)
def _slots(weights: tuple[tuple[str, float], ...], former: str | None) -> str:
    previous = allocate(None, {former: 1, "former": 2}, former) if former is not None else None
    return str(allocate(previous, dict(weights), former))


# ---- requests --------------------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A request while it is put together."""

    path: str = "/"
    method: str = "GET"
    client_ip: str = CLIENT_IPS[0]
    listener: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    query: list[str] = field(default_factory=list)


NOISE: tuple[tuple[str, str], ...] = (
    ("Cookie", " ; uid; =x;exp = a b ;uid=\"42\""),
    ("cookie", 'uid="";UID=Beta; uid=beta2'),
    ("COOKIE", 'exp="be"ta"; a=b=c; exp=42'),
    ("X-User-Id", ""),
    ("x-user-id", "42"),
    ("User-Group", "beta"),
    ("USER-GROUP", ""),
    ("x-user", "beta"),
    ("content-type", "application/grpc"),
    ("Content-Type", "Application/gRPC+proto"),
    ("content-type", "text/plain"),
    ("accept", "text/html, application/vnd.acme.v2+json;q=0.5, application/vnd.acme.v1+json"),
    ("Accept", "application/vnd.a.b.v2.1+xml"),
    ("Accept", "Application/VND.acme.V1+json, application/vnd.v1+json,application/vnd.x.2+json"),
    ("accept", "application/vnd.acme.v10"),
    ("sec-ch-ua-mobile", "?1"),
    ("Sec-CH-UA-Mobile", "?0"),
    ("baggage", "a=b,x-service-version = v%32 ;p=1, x-service-version=v1"),
    ("Baggage", "x-service-version;v=1,X-Service-Version=v1"),
    ("baggage", "x-service-version=a+b%zz%2"),
    ("X-Service-Version", "v1"),
    *(("User-Agent", agent) for agent in USER_AGENTS),
)  # fmt: skip


def make_request(choose: Chooser, snapshot: Snapshot) -> Request:
    """For one of the snapshot's routes and, mostly, for the conditions of one or two rules of its service."""
    route = choose.one(snapshot.routes)
    draft = _Draft(path=_path(choose, route.path_kind, route.path), method=choose.one(METHODS))
    draft.client_ip = choose.one(CLIENT_IPS)
    draft.listener = choose.one((*route.listeners, *LISTENERS, None))
    rules = [rule.match for service in snapshot.services if service.name == route.service for rule in service.rules]
    aims = [route.match, *(choose.some(rules, 0, 2) if rules else ())]
    wanted = [condition for match in aims for condition in match.all]
    wanted += [condition for match in aims for group in match.none if choose.chance(3) for condition in group]
    for condition in wanted:
        if condition.negate == choose.chance(8):
            _aim(choose, condition, draft)
    draft.headers += choose.some(NOISE, 0, 2)
    return _finished(choose, draft, _host(choose, route.host))


def _host(choose: Chooser, pattern: str) -> str:
    if pattern == "*":
        return choose.one(("localhost", "example.com", "a.b.c.example.com:1"))
    if pattern.startswith("*."):
        pattern = choose.one(("x", "x.y", "a", "X")) + pattern[1:] if not choose.chance(4) else pattern[2:]
    forms: tuple[str, ...] = ("{}", "{}:8080", "{}.", "{}.:80", "x{}")
    host = choose.one(forms[:2] if pattern.startswith("[") else forms).format(pattern)
    return host.upper() if choose.chance(4) else host


def _path(choose: Chooser, kind: PathKind, path: str) -> str:
    if kind == "regex":
        return choose.one(PATH_REGEXES[path])
    if kind == "exact":
        return choose.one((path, path, path + "x", path + "/"))
    stem = path.rstrip("/")
    return choose.one((stem or "/", stem + "/", stem + "/abc", stem + "x" if stem else "/x", stem + "//", "/" + path))


def _aim(choose: Chooser, condition: Condition, draft: _Draft) -> None:
    """Puts a value into the draft that satisfies the condition, or nearly does."""
    hits, misses = _values(condition)
    value = choose.one(misses if choose.chance(4) else hits)
    kind, name = condition.kind, condition.name
    if kind in ("header", "metadata"):
        draft.headers.append((choose.one((name, name.upper(), name.title())), value))
    elif kind == "cookie":
        draft.cookies.append(choose.one(("{}={}", "{}={}", '{}="{}"', " {} = {}\t")).format(name, value))
    elif kind == "query":
        draft.query.append(f"{_escaped(choose, name)}={_escaped(choose, value)}" if value else _escaped(choose, name))
    elif kind == "mark":
        forms = (("X-Service-Version", value), ("baggage", f"k=v, x-service-version={quote(value.encode())};p"))
        draft.headers.append(choose.one(forms))
    elif kind == "path":
        draft.path = value if value.startswith("/") and " " not in value else "/" + value.replace(" ", "")
    elif kind == "method":
        draft.method = value
    elif kind == "client_ip":
        draft.client_ip = value
    elif kind == "api_version":
        if choose.chance(2):
            draft.headers.append(("Accept", f"text/html,application/vnd.acme.{value}+json; q=1"))
        else:
            draft.path = choose.one(("/api/{}/x", "/{}", "/api/{}", "/{}/api", "/apis/{}")).format(value)
    elif kind == "device":
        draft.headers.append(("user-agent", choose.one(USER_AGENTS)))
    _aim_grpc(choose, condition, value, draft)


def _aim_grpc(choose: Chooser, condition: Condition, value: str, draft: _Draft) -> None:
    if condition.kind in ("grpc_service", "grpc_method"):
        path_value = quote(value.encode()) or "x"
        service = path_value if condition.kind == "grpc_service" else choose.one(GRPC_SERVICES)
        method = path_value if condition.kind == "grpc_method" else choose.one(GRPC_METHODS)
        draft.path = choose.one(("/{}/{}", "/{}/{}", "/{}/{}", "/{}/{}/", "/{}")).format(service, method)
    if condition.kind in ("grpc_service", "grpc_method", "metadata") and not choose.chance(5):
        draft.headers.insert(0, ("Content-Type", "application/grpc+proto"))


def _values(condition: Condition) -> tuple[Sequence[str], Sequence[str]]:
    """Values that satisfy the operator (or may), and near misses."""
    if condition.op == "present":
        return ({"api_version": API_VERSIONS, "device": DEVICES}.get(condition.kind, TEXTS),) * 2
    if condition.kind == "method":
        return condition.values, METHODS
    values = LISTS[condition.list_name] if condition.list_name is not None else condition.values
    first = values[0] if values else "x"
    if condition.op in ("exact", "in"):
        return values or ("x",), (first + "x", first[:-1], first.upper(), "")
    if condition.op == "regex":
        pool = (PATH_REGEXES if condition.kind == "path" else REGEXES)[first]
        return pool[:1], pool
    if condition.op == "path_prefix":
        return (first.rstrip("/") + "/x", first), (first + "x", "/x" + first)
    if condition.op in ("number", "semver", "cidr"):
        pool = {"number": NUMBER_TEXTS, "semver": SEMVER_TEXTS, "cidr": CLIENT_IPS}[condition.op]
        return pool, pool
    return (first, "z" + first if condition.op == "suffix" else first + "z"), ("z" + first, first + "z", first[:-1])


def _escaped(choose: Chooser, text: str) -> str:
    """One of the forms that decode to the same text, and some with broken escapes."""
    full = "".join(f"%{byte:02x}" for byte in text.encode())
    form = quote(text.encode(), safe="")
    forms = (
        form,
        form.replace("%20", "+"),
        full,
        full.upper(),
        form + "%",
        form + "%4",
        "%zz" + form,
    )
    return choose.one(forms[:4] if not choose.chance(6) else forms)


def _finished(choose: Chooser, draft: _Draft, host: str) -> Request:
    headers = [("Host", host), *draft.headers]
    if draft.cookies and choose.chance(3):
        headers += [("Cookie", cookie) for cookie in draft.cookies]
    elif draft.cookies:
        headers.append(("Cookie", choose.one(("; ", ";")).join(draft.cookies)))
    query = "&".join(draft.query)
    if choose.chance(6):
        query = (
            choose.one(("", "&&=&uid", "uid=42&uid=beta", "x?y=/&exp=beta", "uid", "exp=a+b&u%69d=4%32")) + "&" + query
        )
    target = quote(draft.path, safe="/%:@!$&'()*+,;=-._~[]") + (f"?{query}" if query or choose.chance(9) else "")
    raw = [(name, value.encode().decode("latin-1").strip(" \t")) for name, value in headers]
    return Request(draft.method, target, tuple(raw), draft.client_ip, draft.listener)


# ---- what tests use --------------------------------------------------------------------------------------------------


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    return make_snapshot(_drawing(draw))


@st.composite
def requests(draw: st.DrawFn, snapshot: Snapshot) -> Request:
    return make_request(_drawing(draw), snapshot)


@st.composite
def cases(draw: st.DrawFn, size: int = 12) -> tuple[Snapshot, list[Request]]:
    """A snapshot and `size` requests for it; a snapshot costs more to draw than a request."""
    choose = _drawing(draw)
    snapshot = make_snapshot(choose)
    return snapshot, [make_request(choose, snapshot) for _ in range(size)]


def random_cases(seed: int, count: int, size: int) -> Iterator[tuple[Snapshot, list[Request]]]:
    """`count` snapshots with `size` requests each."""
    choose = Chooser(random.Random(seed).randint)
    for _ in range(count):
        snapshot = make_snapshot(choose)
        yield snapshot, [make_request(choose, snapshot) for _ in range(size)]
