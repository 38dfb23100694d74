"""The validated, immutable configuration of one revision.

Plain frozen dataclasses: no pydantic, so every floor may read them. `graylb.model.build` makes them from a document;
`graylb.table` compiles them. Names are those of the release model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import orjson

from graylb.model.snapshot_faults import Fault, Mirror
from graylb.model.snapshot_health import Outliers, SlowStart
from graylb.model.snapshot_limits import NO_LIMITS, NO_MARKS, Memory, ServiceLimits
from graylb.model.snapshot_observe import AccessLog, Tracing
from graylb.model.snapshot_retries import IDEMPOTENT as IDEMPOTENT
from graylb.model.snapshot_retries import Backoff as Backoff
from graylb.model.snapshot_retries import Hedge as Hedge
from graylb.model.snapshot_retries import Retries as Retries
from graylb.model.snapshot_retries import RetryBudget as RetryBudget

SLOTS = 10_000
"""Buckets of a split's sticky keys; one slot is 0.01 %."""

CLIENT_CERTIFICATE = ":client-certificate"
"""The header that conditions on the client's certificate read. No request can have it: no name has a colon."""

FieldKind = Literal[
    "path",  # the target's path, as received, without the query
    "method",
    "header",  # by lower-case name; repeated lines are joined with ", "
    "cookie",  # by name; the first of that name
    "query",  # by name; percent-decoded, the first of that name
    "metadata",  # gRPC metadata: a header, only on gRPC requests (content-type application/grpc…)
    "grpc_service",  # `pkg.Service` of `/pkg.Service/Method`, only on gRPC requests
    "grpc_method",
    "client_ip",  # canonical text of the peer's address
    "api_version",  # `v1` of `/api/v1/…` or of `Accept: application/vnd.NAME.v1+json`
    "device",  # mobile | tablet | desktop | bot
    "mark",  # `x-service-version` header, else that key of W3C `baggage`
]
Operator = Literal[
    "exact", "prefix", "suffix", "regex", "present", "in",
    "path_prefix",  # prefix by whole path elements: /abc does not match /abcd
    "cidr",  # client_ip only; values: one or more networks
    "number",  # values: one range text, ">=10,<100"
    "semver",  # values: one range text, ">=1.2,<2 || 3.x"
]  # fmt: skip
Fallback = Literal["strict", "stable", "any"]
Policy = Literal["weighted", "least_request"]
Protocol = Literal["http/1.1", "h2"]
PROTOCOLS: tuple[Protocol, ...] = ("http/1.1", "h2")


@dataclass(frozen=True, slots=True)
class Condition:
    """One test of one field. It holds when (value OP values) is true, or with `negate` when that is false.

    An absent field satisfies no operator (so it satisfies every negated one). `list_name` names a list of the service
    that takes the place of `values` for operator `in`.
    """

    kind: FieldKind
    op: Operator
    values: tuple[str, ...] = ()
    name: str = ""
    negate: bool = False
    list_name: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """Holds when every condition of `all` holds and, for every group of `none`, not all of its conditions hold."""

    all: tuple[Condition, ...] = ()
    none: tuple[tuple[Condition, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Subset:
    """Instances of one service. All given parts must agree; with none given: every instance."""

    version: str | None = None
    semver: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()  # sorted by key


@dataclass(frozen=True, slots=True)
class Split:
    """A weighted decision among versions. `slots` in the text form of `graylb.release.slots`, always complete.

    weights: version -> weight > 0, in document order; zero weights are left out.
    """

    weights: tuple[tuple[str, float], ...]
    salt: str
    slots: str


@dataclass(frozen=True, slots=True)
class StickyKey:
    kind: Literal["header", "cookie", "query", "metadata", "client_ip"]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """`to` or `split`, never both. Rules of a service stand in decision order: priority descending, then as written."""

    name: str
    match: Match
    to: Subset | None = None
    split: Split | None = None
    priority: int = 0
    fallback: Fallback | None = None  # None: the service's
    fault: Fault | None = None  # None: the service's


@dataclass(frozen=True, slots=True)
class Instance:
    """`address` is canonical `host:port` (IPv6 in brackets) or `unix:/path`; (service, address) is the identity."""

    address: str
    version: str
    weight: int = 100  # 0 takes it out
    metadata: tuple[tuple[str, str], ...] = ()  # sorted by key
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    connect: float = 5.0
    response: float = 15.0  # from the end of the request to the response head
    idle: float = 300.0  # no byte in either direction while a body is under way
    request: float = 0.0  # from its head to the answer's end; 0: as long as it takes


class Pem(str):
    """A PEM text, by its SHA-256 (hex) wherever it is told of: keys stay out of digests, tables and answers.

    name: of its file, as the document has it; "" for one that is written in the document.
    """

    __slots__ = ("name", "text")
    name: str
    text: str

    @classmethod
    def of(cls, name: str, text: str) -> Self:
        made = cls(hashlib.sha256(text.encode()).hexdigest())
        made.name, made.text = name, text
        return made

    def __deepcopy__(self, memo: object) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class Certificate:
    """For clients that ask for these names; of a listener the first is for all others too."""

    names: tuple[str, ...]
    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth: Literal["require", "optional", "none"] = "none"
    min_version: Literal["1.2", "1.3"] = "1.2"
    ciphers: str | None = None


@dataclass(frozen=True, slots=True)
class Origination:
    """How instances are called over TLS."""

    ca: Pem | None = None  # whose certificates are good; None: the system's store
    server_name: str | None = None  # to ask for and to verify; None: the host of each instance's address
    cert: Pem | None = None  # ours, for instances that ask for one, and its key
    key: Pem | None = None
    verify: bool = True
    min_version: Literal["1.2", "1.3"] = "1.2"


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections to each instance, in each worker. Times in seconds."""

    max: int = 0  # 0: as many as are needed
    queue: int = 1024  # requests that may wait for one when `max` are busy
    queue_timeout: float = 1.0
    warm: int = 0  # opened in advance and kept
    idle: int = 1024  # unused ones that are kept
    idle_timeout: float = 60.0
    proxy_protocol: Literal["off", "v1", "v2"] = "off"  # told at the beginning of each; such are not shared by clients
    protocol: Literal["auto", "http1", "h2"] = "auto"  # auto: gRPC requests by HTTP/2, all others by HTTP/1.1
    streams: int = 100  # most at once on one HTTP/2 connection
    tls: Origination | None = None


GRPC_STATUSES = (
    "ok", "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
    "permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
    "internal", "unavailable", "data_loss", "unauthenticated",
)  # fmt: skip
"""By their codes."""


@dataclass(frozen=True, slots=True)
class Check:
    """How an instance is asked whether it is well. Times in seconds."""

    kind: Literal["http", "tcp", "grpc"]
    path: str = ""  # of http
    service: str = ""  # of grpc, as the health protocol names it; empty: the server as a whole
    host: str = ""  # of http; empty: the instance's address
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)  # of http: ranges that are well, ends included
    interval: float = 5.0
    timeout: float = 1.0
    unhealthy: int = 3  # failures in a row that make an instance ill
    healthy: int = 2  # successes in a row that make it well again


@dataclass(frozen=True, slots=True)
class Health:
    check: Check | None = None
    panic: int = 50  # percent of a version's instances that must be well for health to count; 0: it always counts
    outliers: Outliers = field(default_factory=Outliers)


@dataclass(frozen=True, slots=True)
class Tunnels:
    """What becomes of open tunnels (WebSocket) when their version is given no more traffic, or their instance goes."""

    policy: Literal["keep", "drain", "cut"] = "keep"
    seconds: float = 0.0  # of `drain`: then they are cut


MARK_RULE = "mark:"
"""What the names of rules begin with that marks are, and that nobody has written: no name has a colon."""
LAST = -(1 << 31)


@dataclass(frozen=True, slots=True)
class Marks:
    """The mark, as all services have it."""

    headers: tuple[str, ...] = ("x-service-version",)  # lower case; the first that is there is read, all are written
    baggage: str | None = "x-service-version"  # its key there; None: it is not there
    trusted: tuple[str, ...] = ()  # networks whose marks are believed at the edge
    key: Pem | None = None  # the secret of marks that are signed
    signature: str = ""  # the header of the signature
    memory: float = 60.0  # seconds that the mark of an inbound trace is remembered for outbound calls; 0: it is not


@dataclass(frozen=True, slots=True)
class ServiceMarks:
    """What marks do at one service. headers, baggage: for its instances; None: as all have them; "": not in baggage."""

    prefer: bool = True
    otherwise: Literal["stable", "split"] = "stable"
    carry: bool | tuple[tuple[str, str], ...] = True  # versions and their marks; True: every version but the stable one
    headers: tuple[str, ...] | None = None
    baggage: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    stable: str
    split: Split | None  # None: everything to the stable version
    sticky: tuple[StickyKey, ...] = ()
    fallback: Fallback = "stable"
    policy: Policy = "weighted"
    rules: tuple[Rule, ...] = ()
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    instances: tuple[Instance, ...] = ()
    timeouts: Timeouts = Timeouts()
    connections: Connections = Connections()
    retries: Retries = field(default_factory=Retries)
    tunnels: Tunnels = Tunnels()
    health: Health = Health()
    fault: Fault | None = None
    mirror: Mirror | None = None
    slow_start: SlowStart | None = None
    limits: ServiceLimits = NO_LIMITS
    marks: ServiceMarks | None = None  # None: there are no marks

    @property
    def written_rules(self) -> tuple[Rule, ...]:
        """Without those that marks are, which stand behind them."""
        return tuple(each for each in self.rules if not each.name.startswith(MARK_RULE))


@dataclass(frozen=True, slots=True)
class Redirect:
    """Parts left None stay as the request has them."""

    status: int = 302
    scheme: str | None = None
    host: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One host pattern and one path pattern to one service or redirect; a document's several become several routes.

    host: exact name, `*.suffix` (any depth), or `*`. path_kind `prefix` is by whole path elements.
    """

    name: str
    host: str
    path_kind: Literal["exact", "prefix", "regex"]
    path: str
    match: Match = Match()  # method, header and query conditions only
    service: str | None = None
    redirect: Redirect | None = None
    rewrite_prefix: str | None = None  # takes the place of the matched prefix
    listeners: tuple[str, ...] = ()  # names of the listeners that it is for; none: every one


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What is told to upstreams about the client. `append` trusts what arrived and adds; `replace` starts anew."""

    x_forwarded: Literal["append", "replace", "off"] = "append"
    forwarded: Literal["append", "replace", "off"] = "off"  # RFC 7239
    via: bool = False  # RFC 9110 section 7.6.3, on requests and responses
    request_id: Literal["pass", "generate", "replace"] = "pass"  # x-request-id


@dataclass(frozen=True, slots=True)
class H2Limits:
    """Of one client's HTTP/2 connection. Windows in bytes; the last two are bursts, refilled within 10 s and 1 s."""

    streams: int = 100
    window: int = 65536  # of each stream
    connection_window: int = 1048576
    resets: int = 500  # streams that it resets, or makes the proxy reset
    control: int = 2000  # frames that move nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or unknown ones


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, counts and seconds of one client connection."""

    head_bytes: int = 65536
    headers: int = 100
    uri_bytes: int = 16384
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    body_timeout: float = 60.0
    half_close_grace: float = 1.0  # a client that shut its write side waits this long for the answer to begin
    client_connections: int = 0  # of each worker; 0: as many as its descriptors allow
    h2: H2Limits = H2Limits()
    memory: Memory = NO_MARKS
    descriptors: int = 90  # percent of a worker's descriptors, above which it takes no more clients; 0: never
    lag: float = 0.0  # requests that have waited longer than that for the worker's time are refused; 0: none


@dataclass(frozen=True, slots=True)
class Listener:
    """`address`: host:port (port 0 lets the kernel choose) or `unix:/path`. Several listeners may share a name."""

    address: str
    role: Literal["edge", "inbound", "outbound"] = "edge"
    name: str = "edge"  # what routes refer to; the role unless given
    proxy_protocol: bool = False  # every connection from `trusted` begins with a PROXY header
    trusted: tuple[str, ...] = ()  # networks whose PROXY header is believed, others are taken as they come; (): all
    mode: int | None = None  # permissions of a Unix socket; None: as the umask leaves them
    protocols: tuple[Protocol, ...] = PROTOCOLS  # h2: where this build has it
    grpc_health: bool = False  # answers the calls of grpc.health.v1 itself
    tls: tuple[Certificate, ...] = ()  # none: plain


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the administration interface. Files as the document names them; None: that is not asked for."""

    token_file: str | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    revision: int
    listeners: tuple[Listener, ...]
    routes: tuple[Route, ...]
    services: tuple[Service, ...]  # sorted by name
    admin: str | None = None
    access: Access = Access()
    workers: int = 1
    pin_workers: bool = False  # each to a CPU of its own
    watchdog: float = 10.0  # seconds; a worker that gives no sign of life for so long is replaced; 0: none is
    decision_headers: bool = False
    forwarding: Forwarding = field(default_factory=Forwarding)
    limits: Limits = field(default_factory=Limits)
    access_log: AccessLog | None = None
    marks: Marks | None = None  # None: there are none; headers of these names are like all others
    tracing: Tracing | None = None

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return orjson.dumps(self, option=orjson.OPT_SORT_KEYS)

    def digest(self) -> str:
        """Hex SHA-256 over the canonical forms of the services and of all else."""
        return digest_of(self, [service_digest(service) for service in self.services])


def service_digest(service: Service) -> bytes:
    """SHA-256 over the digests of the service's parts, so that each can be kept while it stays what it is."""
    members = b"".join([instance_digest(each) for each in service.instances])
    return service_digest_of(settings_digest(service), rules_digest(service), members)


def service_digest_of(settings: bytes, rules: bytes, instances: bytes) -> bytes:
    """`service_digest` of its parts' digests, those of the instances in a row."""
    return hashlib.sha256(settings + rules + hashlib.sha256(instances).digest()).digest()


def bare(service: Service) -> Service:
    """Without rules, lists and instances."""
    return replace(service, rules=(), lists=(), instances=())


def settings_digest(service: Service) -> bytes:
    """Of all but rules, lists and instances, or of what `bare` gives."""
    return _canonical(bare(service))


def rules_digest(service: Service) -> bytes:
    """Of rules and lists."""
    return _canonical((service.rules, service.lists))


def instance_digest(instance: Instance) -> bytes:
    return _canonical(instance)


def _canonical(value: object) -> bytes:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).digest()


def digest_of(snapshot: Snapshot, services: Sequence[bytes]) -> str:
    """`Snapshot.digest` when the digests of its services are known."""
    rest = orjson.dumps(replace(snapshot, services=()), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(b"".join([hashlib.sha256(rest).digest(), *services])).hexdigest()
