"""The parts of a document that are about the proxy itself: listeners, administration, forwarding, limits."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from graylb.model import values
from graylb.model.base import Part
from graylb.model.certificates import ListenerTlsPart
from graylb.model.snapshot import PROTOCOLS, Protocol
from graylb.model.values import deeper, fault

_ROLES = ("edge", "inbound", "outbound")
_TELLING = ("append", "replace", "off")

RoleName = Annotated[
    Literal["edge", "inbound", "outbound"],
    PlainValidator(values.choice(*_ROLES)),
    WithJsonSchema({"enum": list(_ROLES)}),
]
Telling = Annotated[
    Literal["append", "replace", "off"],
    PlainValidator(values.choice(*_TELLING)),
    WithJsonSchema({"enum": list(_TELLING)}),
]


MIN_WATCHDOG: Final = 0.5


def _watchdog(value: Any) -> float:
    """Seconds; 0 for off, which plain YAML reads as false."""
    if value is False or value == "off":
        return 0.0
    with_unit = "off, or a time from 500ms up to 7 days"
    try:
        seconds = values.duration(value)
    except ValueError:
        raise fault(with_unit) from None
    if seconds < MIN_WATCHDOG:
        raise fault(with_unit)
    return seconds


Watchdog = Annotated[
    float,
    PlainValidator(_watchdog),
    PlainSerializer(lambda seconds: seconds or "off"),
    WithJsonSchema({"type": ["number", "string", "boolean"]}),
]
RequestIds = Annotated[
    Literal["pass", "generate", "replace"],
    PlainValidator(values.choice("pass", "generate", "replace")),
    WithJsonSchema({"enum": ["pass", "generate", "replace"]}),
]


class ProxyProtocolPart(Part):
    """Whose PROXY headers are believed."""

    trusted: Annotated[tuple[values.Network, ...], values.AT_LEAST_ONE] = Field(
        description="Networks of the proxies in front. Connections from elsewhere are taken as they come."
    )


EVERYBODY = ProxyProtocolPart.model_construct(trusted=())
"""`proxy_protocol: true`."""


def _proxy_protocol(value: Any) -> Any:
    if isinstance(value, bool):
        return EVERYBODY if value else None
    if value is not None and not isinstance(value, dict | ProxyProtocolPart):
        raise fault("true, false, or {trusted: [NETWORK, ...]}")
    return value


def _proxy_protocol_data(part: ProxyProtocolPart | None) -> bool | dict[str, list[str]]:
    return {"trusted": list(part.trusted)} if part is not None and part.trusted else part is not None


ProxyProtocol = Annotated[
    ProxyProtocolPart | None,
    BeforeValidator(_proxy_protocol, json_schema_input_type=values.Bool | ProxyProtocolPart),
    PlainSerializer(_proxy_protocol_data),
]


def _protocols(value: Any) -> tuple[Protocol, ...]:
    """In one order, however they are written."""
    known = f"a list of {' and '.join(PROTOCOLS)}, or of one of them"
    if not isinstance(value, list | tuple) or not value:
        raise fault(known)
    for index, each in enumerate(value):
        with deeper(index):
            values.choice(*PROTOCOLS)(each)
            if each in value[:index]:
                raise fault("each protocol once", f"{each} is there twice")
    return tuple(each for each in PROTOCOLS if each in value)


_Protocols = Annotated[
    tuple[Protocol, ...],
    PlainValidator(_protocols),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"enum": list(PROTOCOLS)}, "minItems": 1}),
]


class ListenerPart(Part):
    """An address that clients connect to."""

    address: values.SocketAddress = Field(
        description="IP address and port (port 0 lets the system choose), or `unix:/path`."
    )
    mode: values.Mode | None = Field(
        default=None, description='Permissions of a Unix socket, such as `"0660"`. Default: as the umask leaves them.'
    )
    role: RoleName = Field(
        default="edge", description="`edge` faces clients; `inbound` and `outbound` are the two sides of a sidecar."
    )
    name: values.Name | None = Field(
        default=None, description="What `listeners` of routes refer to; several may share one. Default: the role."
    )
    proxy_protocol: ProxyProtocol = Field(
        default=None,
        description="`true`: every connection begins with a PROXY header, version 1 or 2, that names the client. "
        "Default: `false`.",
    )
    protocols: _Protocols | None = Field(
        default=None,
        description="`http/1.1`, `h2` or both. Without TLS a client of `h2` begins with HTTP/2 (prior knowledge); "
        "there is no upgrade. Default: both, as far as this build of graylb has them.",
    )
    grpc_health: values.Bool = Field(
        default=False,
        description="`true`: graylb itself answers `grpc.health.v1.Health/Check`: for no service whether it takes "
        "calls, for a service of its own whether that has an instance. Default: such calls are routed like others.",
    )

    tls: ListenerTlsPart | None = Field(default=None, description="Default: plain HTTP.")

    @property
    def called(self) -> str:
        return self.name or self.role

    @model_validator(mode="after")
    def _of_one_family(self) -> Self:
        unix = self.address.startswith("unix:")
        if self.grpc_health and self.protocols is not None and "h2" not in self.protocols:
            with deeper("grpc_health"):
                raise fault("h2 among the protocols beside it", "gRPC goes by HTTP/2")
        if self.mode is not None and not unix:
            with deeper("mode"):
                raise fault("permissions only beside a unix: address", "a TCP port has no permissions")
        if unix and self.proxy_protocol is not None and self.proxy_protocol.trusted:
            with deeper("proxy_protocol"), deeper("trusted"):
                raise fault("proxy_protocol: true and a mode", "clients of a Unix socket have no address")
        return self


class SidecarPart(Part):
    """One instance of a service and its two sides: all that `preset: sidecar` has to know. Implies that preset."""

    service: values.Name = Field(description="The local service.")
    version: values.Version = Field(description="The version of the local app.")
    app: values.InstanceAddress = Field(description="Where the local app listens: address and port, or `unix:/path`.")
    inbound: values.SocketAddress = Field(
        default="0.0.0.0:15006", description="Where others call the local app: the listener `inbound`."
    )
    outbound: values.SocketAddress = Field(
        default="127.0.0.1:15001", description="Where the local app calls other services: the listener `outbound`."
    )
    namespace: values.HostName | None = Field(
        default=None,
        description="Of Kubernetes: other services then also answer to `NAME.NAMESPACE`, `NAME.NAMESPACE.svc` and "
        "`NAME.NAMESPACE.svc.DOMAIN`. Default: to `NAME` only.",
    )
    domain: values.HostName = Field(default="cluster.local", description="The cluster's, for those names.")

    @property
    def local(self) -> str:
        """The name of the service that stands in front of the local app."""
        return f"{self.service}-local"

    @model_validator(mode="after")
    def _short_name(self) -> Self:
        if not values.is_name(self.local):
            with deeper("service"):
                raise fault("a name of at most 122 characters")
        return self


class AdminTlsPart(Part):
    """TLS of the administration interface. Paths are relative to the document."""

    cert: values.Filled = Field(description="PEM file of the server's certificate and those between it and a root.")
    key: values.Filled = Field(description="PEM file of the certificate's key.")
    client_ca: values.Filled | None = Field(
        default=None,
        description="PEM file of those who may sign clients' certificates; such a certificate is as good as a token.",
    )


class AdminPart(Part):
    """The administration interface."""

    address: values.SocketAddress = Field(
        description="IP address and port (port 0 lets the system choose), or `unix:/path`, for its owner alone "
        "(mode 0600). Beyond loopback it takes a `token_file` or a `client_ca`."
    )
    token_file: values.Filled | None = Field(
        default=None,
        description="A file with a token in each line, `TOKEN` or `NAME: TOKEN`; clients send one as "
        "`Authorization: Bearer TOKEN`. Relative to the document; read again when it changes. Default: none is asked "
        "for.",
    )
    tls: AdminTlsPart | None = Field(default=None, description="Default: plain HTTP.")

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        unix = self.address.startswith("unix:")
        if unix and self.tls is not None:
            with deeper("tls"):
                raise fault("no tls beside a unix: address", "a Unix socket does not leave this machine")
        asks = self.token_file is not None or (self.tls is not None and self.tls.client_ca is not None)
        if not asks and not values.is_local(self.address):
            with deeper("address"):
                raise fault(
                    "a loopback address such as 127.0.0.1:9900, unix:/path, or beside it token_file or "
                    "tls: {cert, key, client_ca}",
                    f"others could reach the administration on {self.address} without a token or a certificate",
                )
        return self


def _prefix(value: Any) -> str:
    """Without a slash at its end."""
    found = values.filled(value).rstrip("/")
    if not found.startswith("/") or "//" in found:
        raise fault("a prefix of keys that begins with a slash, such as /graylb")
    return found


_Prefix = Annotated[str, PlainValidator(_prefix), WithJsonSchema({"type": "string", "pattern": "^/"})]


class EtcdServersPart(Part):
    """How an etcd is reached."""

    endpoints: Annotated[tuple[values.Filled, ...], values.AT_LEAST_ONE] = Field(
        default=("127.0.0.1:2379",), description="`host:port` of each member, with `https://` before it for TLS."
    )
    user: values.Filled | None = Field(default=None, description="Together with `password_file`.")
    password_file: values.Filled | None = Field(
        default=None, description="A file whose first line is the password. Paths are relative to the document."
    )
    ca: values.Filled | None = Field(
        default=None, description="PEM file of those who may sign the server's certificate."
    )
    cert: values.Filled | None = Field(default=None, description="PEM file of the client's certificate. Needs `key`.")
    key: values.Filled | None = Field(default=None, description="PEM file of the client certificate's key.")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise fault("user and password_file together, or neither")
        if (self.cert is None) != (self.key is None):
            raise fault("cert and key together, or neither")
        return self


class EtcdPart(EtcdServersPart):
    """An etcd whose keys are services, or parts of them, beside those of this document; see docs/etcd.md."""

    prefix: _Prefix = Field(default="/graylb", description="What all keys begin with.")
    node: values.Name | None = Field(
        default=None, description="What this proxy is called under `PREFIX/nodes/`. Default: the host's name."
    )
    required: values.Bool = Field(
        default=False,
        description="`true`: no start on this document's services alone while etcd cannot be reached.",
    )


class ForwardingPart(Part):
    """What instances are told about the client."""

    x_forwarded: Telling = Field(
        default="append",
        description="`X-Forwarded-For`, `-Proto` and `-Host`: `append` trusts what arrived and adds to it, `replace` "
        "starts anew, `off` leaves them alone.",
    )
    forwarded: Telling = Field(default="off", description="`Forwarded` of RFC 7239, in the same ways.")
    via: values.Bool = Field(default=False, description="`Via` on requests and responses.")
    request_id: RequestIds = Field(
        default="pass",
        description="`X-Request-Id`: `pass` leaves it as it comes, `generate` makes one where there is none, `replace` "
        "always makes one (a UUID of version 4).",
    )


_HeadSize = Annotated[int, PlainValidator(values.size(1024, 2**20)), WithJsonSchema({"type": ["integer", "string"]})]
_UriSize = Annotated[int, PlainValidator(values.size(256, 2**20)), WithJsonSchema({"type": ["integer", "string"]})]
_Headers = Annotated[
    int, PlainValidator(values.integer(1, 1000)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})
]
_Idle = Annotated[
    int, PlainValidator(values.integer(0, 65536)), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 65536})
]


_Streams = Annotated[
    int, PlainValidator(values.integer(1, 65536)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65536})
]
_Window = Annotated[int, PlainValidator(values.size(16384, 2**31 - 1)), WithJsonSchema({"type": ["integer", "string"]})]
_ConnectionWindow = Annotated[
    int, PlainValidator(values.size(65535, 2**31 - 1)), WithJsonSchema({"type": ["integer", "string"]})
]
_Burst = Annotated[
    int,
    PlainValidator(values.integer(10, 1_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 10, "maximum": 1_000_000}),
]


class H2LimitsPart(Part):
    """Bounds of a client's HTTP/2 connection. Whoever breaks one of the last two is disconnected."""

    streams: _Streams = Field(default=100, description="Requests at once; a client waits with any more.")
    window: _Window = Field(default=65536, description="Bytes of a request's body under way, of each stream.")
    connection_window: _ConnectionWindow = Field(default=1048576, description="The same of all streams together.")
    resets: _Burst = Field(
        default=500,
        description="Streams that the client resets, or makes graylb reset, at most so many within 10 s.",
    )
    control: _Burst = Field(
        default=2000,
        description="Frames that move nothing (PING, SETTINGS, PRIORITY, small WINDOW_UPDATE, empty DATA and unknown "
        "ones), at most so many within 1 s.",
    )


_Resident = Annotated[
    int,
    PlainValidator(lambda value: 0 if value == 0 else values.size(32 * 2**20, 2**50)(value)),
    WithJsonSchema({"type": ["integer", "string"]}),
]
_Percent = Annotated[
    int, PlainValidator(values.integer(0, 100)), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 100})
]


def _no_time(value: Any) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else values.duration(value)


_Lag = Annotated[float, PlainValidator(_no_time), WithJsonSchema({"type": ["number", "string"]})]


class MemoryPart(Part):
    """What each worker may use. Sizes in bytes or as `512MiB`, `2GiB`; 0: no limit."""

    soft: _Resident = Field(
        default=0, description="Above it idle clients are closed, and new connections are turned away with 503."
    )
    hard: _Resident = Field(default=0, description="Above it requests get 503, too.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.hard and self.hard < self.soft:
            with deeper("hard"):
                raise fault("a size from soft up")
        return self


class LimitsPart(Part):
    """Bounds of a connection. Sizes in bytes or as `64KiB`; times in seconds or as `250ms`, `5s`, `2m`."""

    client_connections: values.ClientConnections = Field(
        default=0,
        description="Of each worker; `auto`: as many as its descriptors allow.",
        json_schema_extra={"default": "auto"},
    )
    head_bytes: _HeadSize = Field(default=65536, description="Request line and header fields together.")
    headers: _Headers = Field(default=100, description="Header fields of a request.")
    uri_bytes: _UriSize = Field(default=16384, description="The request target.")
    header_timeout: values.Duration = Field(default=10.0, description="From a request's first byte to its head's end.")
    idle_timeout: values.Duration = Field(default=75.0, description="A client connection between requests.")
    body_timeout: values.Duration = Field(default=60.0, description="Without a byte of a body under way.")
    half_close_grace: values.Duration = Field(
        default=1.0, description="For the answer to begin, after a client has shut its side."
    )
    upstream_idle_timeout: values.Duration = Field(default=60.0, description="An unused connection to an instance.")
    upstream_idle_connections: _Idle = Field(
        default=1024, description="Unused connections kept for an instance, in each worker."
    )
    h2: H2LimitsPart = Field(default=H2LimitsPart(), description="Of HTTP/2 connections, beside all of the above.")
    memory: MemoryPart = Field(default=MemoryPart(), description="Of each worker: load is shed before it runs out.")
    descriptors: _Percent = Field(
        default=90,
        description="Percent of a worker's descriptors (`ulimit -n`). Above it idle clients and unused connections "
        "are closed, and new clients turned away with 503. 0: not before they have run out.",
    )
    lag: _Lag = Field(
        default=0.0,
        description="Requests that have waited longer than this for their worker, which is busy with others, get 503. "
        "0: none.",
        json_schema_extra={"default": 0},
    )
