"""The `health` part of a service."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from graylb.model import snapshot, values
from graylb.model.base import Part
from graylb.model.outliers import OutliersPart
from graylb.model.values import deeper, fault

_STATUS = "a status such as 200, or a range such as 200-399"
_Percent = Annotated[
    int, PlainValidator(values.integer(0, 100)), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 100})
]
_Times = Annotated[
    int, PlainValidator(values.integer(1, 100)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100})
]


def _range(value: Any) -> tuple[int, int]:
    first, dash, last = str(value).partition("-")
    if isinstance(value, bool) or not first.isdecimal() or (dash and not last.isdecimal()):
        raise fault(_STATUS)
    low, high = int(first), int(last) if dash else int(first)
    if not 100 <= low <= high <= 599:
        raise fault(f"{_STATUS}, from 100 to 599")
    return low, high


def _statuses(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list | tuple):
        value = [value]
    if not value:
        raise fault("at least one status")
    found = []
    for index, each in enumerate(value):
        if isinstance(each, tuple):
            found.append(each)
            continue
        with deeper(index):
            found.append(_range(each))
    return tuple(found)


Statuses = Annotated[
    tuple[tuple[int, int], ...],
    PlainValidator(_statuses),
    PlainSerializer(lambda found: [f"{low}-{high}" if low != high else low for low, high in found]),
    WithJsonSchema(
        {
            "anyOf": [
                values.SCALAR,
                {"type": "array", "items": values.SCALAR, "minItems": 1},
            ]
        }
    ),
]


class CheckPart(Part):
    """How each instance is asked whether it is well: exactly one of `http`, `tcp` and `grpc`."""

    KINDS: ClassVar[tuple[str, ...]] = ("http", "tcp", "grpc")

    http: values.Path_ | None = Field(default=None, description="A path; HTTP/1.1 GET, over TLS where calls are.")
    tcp: values.AlwaysTrue | None = Field(default=None, description="`true`: the port takes a connection.")
    grpc: values.Text | None = Field(
        default=None,
        description="The gRPC health protocol; the service to ask for, or an empty text for the server as a whole.",
    )
    host: values.Filled | None = Field(default=None, description="Host header of `http`. Default: the address.")
    statuses: Statuses = Field(
        default=((200, 399),),
        description="Of `http`: statuses that are well, each a number or a range.",
        json_schema_extra={"default": ["200-399"]},
    )
    interval: values.Duration = Field(default=5.0, description="Between two checks, give or take a tenth.")
    timeout: values.Duration = Field(default=1.0, description="For one check.")
    unhealthy: _Times = Field(
        default=3, description="Failures in a row that make an instance ill. A failure of the very first is enough."
    )
    healthy: _Times = Field(default=2, description="Successes in a row that make it well again.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in self.KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise fault("exactly one of http, tcp and grpc", f"{' and '.join(kinds)}" if kinds else "none of them")
        for name in ("host", "statuses"):
            if self.http is None and getattr(self, name) != type(self).model_fields[name].default:
                with deeper(name):
                    raise fault(f"{name} only beside http")
        if self.interval <= 0:
            with deeper("interval"):
                raise fault("a time above 0")
        if self.timeout <= 0:
            with deeper("timeout"):
                raise fault("a time above 0")
        return self

    def build(self) -> snapshot.Check:
        return snapshot.Check(
            kind="http" if self.http is not None else "tcp" if self.tcp is not None else "grpc",
            path=self.http or "",
            service=self.grpc or "",
            host=self.host or "",
            statuses=self.statuses,
            interval=self.interval,
            timeout=self.timeout,
            unhealthy=self.unhealthy,
            healthy=self.healthy,
        )


class HealthPart(Part):
    """Which instances are well. Ill ones get no requests; the shares of versions stay as they are."""

    check: CheckPart | None = Field(default=None, description="Asks each instance. Default: nobody is asked.")
    panic: _Percent = Field(
        default=50,
        description="When fewer than so many percent of a version's instances are well, all of them get requests "
        "again, for the few would not bear it; likewise when no instance of the service is well. 0: never.",
    )
    outliers: OutliersPart = Field(
        default=OutliersPart(), description="Which ones are ejected for a time, for how they answer."
    )

    def build(self) -> snapshot.Health:
        check = self.check.build() if self.check is not None else None
        return snapshot.Health(check, self.panic, self.outliers.build())
