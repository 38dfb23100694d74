"""The `services` part of a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from graylb.model import values
from graylb.model.base import OneKey, Part
from graylb.model.certificates import Origination
from graylb.model.conditions import Match
from graylb.model.faults import FaultPart
from graylb.model.health import HealthPart
from graylb.model.limits import ServiceLimitsPart
from graylb.model.marks import ServiceMarkPart
from graylb.model.mirror import MirrorPart
from graylb.model.outliers import SlowStart
from graylb.model.problems import shown
from graylb.model.retries import RetriesPart, TimeOrNone
from graylb.model.snapshot import Tunnels
from graylb.model.sticky import StickyPart
from graylb.model.targets import To
from graylb.model.values import deeper, fault
from graylb.release.slots import Slots

FallbackName = Annotated[
    Literal["strict", "stable", "any"],
    PlainValidator(values.choice("strict", "stable", "any")),
    WithJsonSchema({"enum": ["strict", "stable", "any"]}),
]
PolicyName = Annotated[
    Literal["weighted", "least_request"],
    PlainValidator(values.choice("weighted", "least_request")),
    WithJsonSchema({"enum": ["weighted", "least_request"]}),
]


class PathPattern(OneKey):
    """A path that a route is for: a mapping of exactly one kind."""

    noun: ClassVar[str] = "kind"

    exact: values.Path_ | None = Field(default=None, description="The whole path.")
    prefix: values.PathPrefix | None = Field(
        default=None, description="The path's beginning by whole elements: `/abc` matches `/abc/d`, not `/abcd`."
    )
    regex: values.Regex | None = Field(default=None, description="A regular expression (RE2) for the whole path.")


def _prefix(value: Any) -> Any:
    if isinstance(value, dict | PathPattern):
        return value
    if not isinstance(value, str):
        raise fault("a path, or a mapping of exact, prefix or regex")
    return {"prefix": value}


ROOT = PathPattern(prefix="/")

Paths = Annotated[
    tuple[
        Annotated[PathPattern, BeforeValidator(_prefix, json_schema_input_type=values.PathPrefix | PathPattern)], ...
    ],
    values.AT_LEAST_ONE,
]
Hosts = Annotated[tuple[values.HostPattern, ...], values.AT_LEAST_ONE]
ListenerNames = Annotated[tuple[values.Name, ...], values.AT_LEAST_ONE]


class SplitPart(Part):
    """Weights of versions; the full form also gives salt and slots."""

    weights: dict[values.VersionKey, values.Weight] = Field(
        description="Version to weight: any numbers from 0 up, their sum is the whole. 0 means never."
    )
    salt: values.Salt | None = Field(
        default=None,
        description="Names the cohort: under one salt a caller has one slot. Chosen when absent.",
    )
    slots: values.SlotsText | None = Field(
        default=None, description="Which version owns which of the 10,000 slots, as `graylb` writes it. Needs `salt`."
    )

    @model_validator(mode="after")
    def _has_weight(self) -> Self:
        if not any(self.weights.values()):
            got = "every weight is 0" if self.weights else "no version has a weight"
            with deeper("weights"):
                raise fault("at least one weight above 0", got)
        if self.slots is not None:
            self._check_slots(self.slots)
        return self

    def _check_slots(self, text: str) -> None:
        with deeper("slots"):
            if self.salt is None:
                raise fault("a salt beside them", "slots without salt")
            owners = Slots.parse(text).counts().keys()
            weighted = {version for version, weight in self.weights.items() if weight}
            if owners != weighted:
                odd = min(owners ^ weighted)
                state = "owns slots but has no weight" if odd in owners else "has a weight but owns no slot"
                raise fault("slots of just the versions that have a weight", f"version {shown(odd)} {state}")


def full_split(value: Any) -> Any:
    """A bare map is the weights. Anything that looks like the full form is taken for it, misspelt or not."""
    if isinstance(value, SplitPart):
        return value
    if not isinstance(value, dict):
        raise fault("a mapping of versions to weights")
    looks_full = any(isinstance(each, dict) for each in value.values()) or any(
        isinstance(value.get(key), str) for key in ("salt", "slots")
    )
    return value if looks_full else {"weights": value}


Split = Annotated[
    SplitPart,
    BeforeValidator(full_split, json_schema_input_type=dict[str, values.Weight] | SplitPart),
]


class Rule(Part):
    """An exact decision: requests that match go to a subset, or to a split of the rule's own."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["to"]}, {"required": ["split"]}]})

    name: values.Name = Field(description="Unique within the service.")
    priority: values.Priority = Field(default=0, description="Higher goes first; rules of one priority go as written.")
    match: Match = Field(description="Conditions that must all hold; `{}` holds for every request.")
    to: To | None = Field(
        default=None,
        description="A version, or a subset of the instances. Either this or `split`.",
    )
    split: Split | None = Field(default=None, description="Weights of the rule's own. Either this or `to`.")
    fallback: FallbackName | None = Field(default=None, description="Instead of the service's.")
    fault: FaultPart | None = Field(
        default=None, description="Failures made on purpose, in place of the service's, for requests that match."
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.to is None) == (self.split is None):
            raise fault("either to or split", "the rule has neither" if self.to is None else "the rule has both")
        return self


@dataclass(frozen=True, slots=True)
class IdList:
    """Texts for `in`, each once, in order. file: where they were read, None for those in the document."""

    ids: tuple[str, ...]
    file: str | None = None


ReadFile = Callable[[str], str]


def _id_list(value: Any, info: ValidationInfo) -> IdList:
    if isinstance(value, IdList):
        return value
    if isinstance(value, list):
        return IdList(tuple(dict.fromkeys(values.each(value, values.filled))))
    if not isinstance(value, dict):
        raise fault("a list of ids, or {file: PATH}")
    for key in value:
        if key != "file":
            with deeper(key):
                raise fault("only the key file", f"unknown key {shown(key)}", values.near(key, ("file",)))
    with deeper("file"):
        file = value.get("file")
        if not isinstance(file, str) or not file:
            raise fault("the path of a file with one id a line")
        return IdList(read_ids(file, (info.context or {}).get("read_file")), file)


def read_ids(file: str, read_file: ReadFile | None) -> tuple[str, ...]:
    """One id a line; blank lines and what follows ` #` are left out."""
    if read_file is None:
        raise fault("ids written here", f"file {shown(file)} cannot be read in this place")
    try:
        text = read_file(file)
        text.encode()  # UnicodeEncodeError, a ValueError
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise fault("a readable text file", f"file {shown(file)} cannot be read: {reason}") from None
    lines: Iterable[str] = map(str.strip, text.removeprefix("\ufeff").split("\n"))
    if "#" in text:
        lines = (" " + line if line[:1] == "#" else line for line in lines)
        lines = (line.replace("\t#", " #").partition(" #")[0].rstrip() for line in lines)
    return tuple(dict.fromkeys(line for line in lines if line))


Ids = Annotated[
    IdList,
    PlainValidator(_id_list),
    PlainSerializer(lambda found: list(found.ids)),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": values.SCALAR},
                {
                    "type": "object",
                    "properties": {"file": {"type": "string"}},
                    "required": ["file"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class InstancePart(Part):
    """One address of a service."""

    address: values.InstanceAddress = Field(
        description="IP address (IPv6 in brackets) or host name, and port; or `unix:/path`. Names are resolved again "
        "every 30 s."
    )
    version: values.Version = Field(description="A SemVer, an image tag or any name.")
    weight: values.InstanceWeight = Field(default=100, description="Share within its version; 0 takes it out.")
    metadata: dict[values.FilledKey, values.Text] = Field(
        default={}, description="Tags that `to` of a rule can ask for."
    )
    zone: values.Text = Field(default="", description="Where it runs.")


class TimeoutsPart(Part):
    """How long to wait for an instance. Seconds, or a text such as `250ms`, `5s`, `2m`."""

    connect: values.Duration = Field(default=5.0, description="For the connection.")
    response: values.Duration = Field(default=15.0, description="From the request's end to the response's head.")
    idle: values.Duration = Field(default=300.0, description="Without a byte while a body is under way.")
    request: TimeOrNone = Field(
        default=0.0,
        description="For all of it, attempts and waiting included: from the request's head to the answer's end. "
        "0: none.",
    )


_PROXY_VERSIONS = ("off", "v1", "v2")
_Count = Annotated[
    int, PlainValidator(values.integer(0, 65536)), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 65536})
]
_Queue = Annotated[
    int,
    PlainValidator(values.integer(0, 1_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 1_000_000}),
]
_UPSTREAM_PROTOCOLS = ("auto", "http1", "h2")
UpstreamProtocol = Annotated[
    Literal["auto", "http1", "h2"],
    PlainValidator(values.choice(*_UPSTREAM_PROTOCOLS)),
    WithJsonSchema({"enum": list(_UPSTREAM_PROTOCOLS)}),
]
_Streams = Annotated[
    int, PlainValidator(values.integer(1, 65536)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65536})
]
ProxyVersion = Annotated[
    Literal["off", "v1", "v2"],
    PlainValidator(values.choice(*_PROXY_VERSIONS)),
    WithJsonSchema({"enum": list(_PROXY_VERSIONS)}),
]


class ConnectionsPart(Part):
    """Connections to each instance, in each worker."""

    max: _Count = Field(default=0, description="At most so many; 0: as many as are needed.")
    queue: _Queue = Field(
        default=1024, description="Requests that may wait for one while `max` are busy; any more get 503."
    )
    queue_timeout: values.Duration = Field(default=1.0, description="How long they may wait before they get 503.")
    warm: _Count = Field(default=0, description="Opened in advance and kept. At most `max` and `idle`.")
    idle: _Count | None = Field(
        default=None, description="Unused ones that are kept. Default: `limits.upstream_idle_connections`."
    )
    idle_timeout: values.Duration | None = Field(
        default=None, description="How long an unused one is kept. Default: `limits.upstream_idle_timeout`."
    )
    proxy_protocol: ProxyVersion = Field(
        default="off",
        description="Each connection begins with a PROXY header of this version that names the client, and serves that "
        "client only.",
    )
    protocol: UpstreamProtocol = Field(
        default="auto",
        description="`auto`: gRPC requests go by HTTP/2, all others by HTTP/1.1. `http1`, `h2`: all go by that one.",
    )
    streams: _Streams = Field(
        default=100, description="Requests at once on one HTTP/2 connection; fewer where the instance says so."
    )


_TUNNELS = "keep, cut, or drain and a time, such as drain 30s"


def _tunnels(value: Any) -> Tunnels:
    if isinstance(value, Tunnels):
        return value
    if value == "keep" or value == "cut":
        return Tunnels(value)
    if isinstance(value, dict):
        for key in value:
            if key != "drain":
                with deeper(key):
                    raise fault("only the key drain", f"unknown key {shown(key)}", values.near(key, ("drain",)))
        if "drain" not in value:
            raise fault(_TUNNELS)
        with deeper("drain"):
            return Tunnels("drain", values.duration(value["drain"]))
    word, space, time = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if word != "drain" or not space:
        raise fault(_TUNNELS, suggestion=values.near(value, ("keep", "cut", "drain 30s")))
    try:
        return Tunnels("drain", values.duration(time.strip()))
    except PydanticCustomError:
        raise fault(_TUNNELS) from None


TunnelPolicy = Annotated[
    Tunnels,
    PlainValidator(_tunnels),
    PlainSerializer(lambda found: {"drain": found.seconds} if found.policy == "drain" else found.policy),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["keep", "cut"]},
                {"type": "string", "pattern": "^drain "},
                {
                    "type": "object",
                    "properties": {"drain": {"type": ["number", "string"]}},
                    "required": ["drain"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class ServicePart(Part):
    """A logical upstream."""

    hosts: Hosts | None = Field(
        default=None,
        description='Hosts of its route: names, `*.suffix`, `*`. Default `["*"]`; with no hosts, paths or listeners, a '
        "service that `routes` names gets no route of its own.",
    )
    paths: Paths | None = Field(default=None, description="Paths of its route. A bare text is a prefix. Default `[/]`.")
    listeners: ListenerNames | None = Field(
        default=None, description="Names of the listeners that its route is for. Default: every one."
    )
    sticky: Annotated[tuple[StickyPart, ...], values.AT_LEAST_ONE] | None = Field(
        default=None,
        description="What names a caller; the first that is present wins. Default: nobody is.",
    )
    stable: values.Version | None = Field(
        default=None,
        description="The version that gives and takes back shares, and that fallback leads to. Default: the heaviest "
        "version of the split, else the only version of the instances.",
    )
    split: Split | None = Field(
        default=None,
        description="Version to weight, or the full form. Default: all to the stable version.",
    )
    fallback: FallbackName = Field(
        default="stable",
        description="When no instance of the chosen version is available: `strict` (503), `stable` (the stable "
        "version), `any` (any instance).",
    )
    policy: PolicyName = Field(
        default="weighted",
        description="Choice within a version: `weighted` by instance weight, or `least_request` (the less loaded of "
        "two drawn).",
    )
    rules: tuple[Rule, ...] = Field(default=(), description="Exact decisions, before the split; the first wins.")
    lists: dict[values.NameKey, Ids] = Field(
        default={}, description="Texts that `in` refers to by name: written here, or `{file: PATH}` with one a line."
    )
    instances: tuple[InstancePart, ...] = Field(default=(), description="Where the service runs.")
    timeouts: TimeoutsPart = Field(default=TimeoutsPart(), description="How long to wait.")
    connections: ConnectionsPart = Field(default=ConnectionsPart(), description="How many to have.")
    retries: RetriesPart = Field(default=RetriesPart(), description="When a request is sent once more.")
    tls: Origination = Field(default=None, description="`true`: instances are called over TLS. Default: `false`.")
    mark: ServiceMarkPart = Field(default=ServiceMarkPart(), description="What marks do here.")
    health: HealthPart = Field(default=HealthPart(), description="Which instances are well.")
    fault: FaultPart | None = Field(default=None, description="Failures made on purpose. Default: none.")
    mirror: MirrorPart | None = Field(
        default=None, description="Copies of requests to another version, whose answers nobody sees. Default: none."
    )
    slow_start: SlowStart | None = Field(
        default=None,
        description="Spares instances that are new, or back from illness or ejection. A bare time is its window. "
        "Default: off.",
    )
    limits: ServiceLimitsPart = Field(
        default=ServiceLimitsPart(), description="How much it takes at once, and how often."
    )
    tunnels: TunnelPolicy = Field(
        default=Tunnels(),
        description="Open WebSockets when their version is given no more traffic or their instance goes: `keep`, "
        "`cut`, or `drain 30s` (also `{drain: 30s}`): cut after that time.",
        json_schema_extra={"default": "keep"},
    )

    @property
    def has_route(self) -> bool:
        """It is written to have a route of its own."""
        return not (self.hosts is None and self.paths is None and self.listeners is None)

    def stable_version(self) -> str | None:
        """As given, else the heaviest version of the split (the first of equals), else the instances' only version."""
        if self.stable is not None:
            return self.stable
        if self.split is not None:
            weights = self.split.weights
            return max(weights, key=lambda version: weights[version])
        versions = {instance.version for instance in self.instances}
        return versions.pop() if len(versions) == 1 else None
