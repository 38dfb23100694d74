"""The `limits` part of a service."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from graylb.model import snapshot_limits, values
from graylb.model.base import Part
from graylb.model.sticky import StickyPart
from graylb.model.values import deeper, fault

MAX_RATES = 16
MAX_KEY = 8
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?/ ?([smhd])")
_TEXT = "a rate such as 100/s, 30/m, 1000/h or 5000/d"
_LONGEST = 30 * 86400.0


_Many = Annotated[
    int,
    PlainValidator(values.integer(0, 10_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 10_000_000}),
]
_Some = Annotated[
    int,
    PlainValidator(values.integer(1, 10_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 10_000_000}),
]
_Burst = Annotated[
    int,
    PlainValidator(values.integer(1, 1_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
]
_Percent = Annotated[
    int,
    PlainValidator(values.integer(1, 1000)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000}),
]


def _rate(value: Any) -> float:
    """Requests a second."""
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < float(found[1]) / _UNITS[found[2]] <= 1e9:
        raise fault(_TEXT)
    return float(found[1]) / _UNITS[found[2]]


def _rate_text(rate: float) -> str:
    """In the first unit that makes it a number of at most six places."""
    for unit, seconds in _UNITS.items():
        number = round(rate * seconds, 6)
        if abs(number / seconds - rate) < 1e-9 * rate:
            return f"{number:.6f}".rstrip("0").rstrip(".") + f"/{unit}"
    return f"{rate * _UNITS['d']:.6f}/d"


RateValue = Annotated[
    float,
    PlainValidator(lambda value: value if isinstance(value, float) else _rate(value)),
    PlainSerializer(_rate_text),
    WithJsonSchema({"type": "string", "pattern": "^[0-9.]+ ?/ ?[smhd]$"}),
]


class AdaptivePart(Part):
    """A limit on requests at once that each worker finds from how long they take; `true` for the defaults."""

    min: _Some = Field(default=10, description="The limit is never lower.")
    max: _Some = Field(default=1000, description="Nor higher.")
    tolerance: _Percent = Field(
        default=25, description="Percent that requests may take longer than the shortest time before it is lowered."
    )
    interval: values.Duration = Field(default=0.1, description="Between two looks at it.")
    probe: values.Duration = Field(
        default=60.0,
        description="Between two measurements of the shortest time, for which the limit is halved a moment, if it "
        "is in use.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            with deeper("max"):
                raise fault("a number from min up")
        return self


def _adaptive(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    return value


Adaptive = Annotated[
    AdaptivePart | None, BeforeValidator(_adaptive, json_schema_input_type=values.Bool | AdaptivePart | None)
]


class BoundsPart(Part):
    """Circuit breakers. Numbers are for the whole proxy, each worker has its share, rounded up; 0: no limit."""

    requests: _Many = Field(default=0, description="At once, answers under way included; any more get 503.")
    pending: _Many = Field(
        default=0,
        description="Requests that wait for a connection; any more get 503. They wait where `per_instance.connections` "
        "or `connections.max` says so.",
    )
    connections: _Many = Field(
        default=0,
        description="To instances, unused ones included. At the limit an unused one of another instance makes room, "
        "and where there is none, requests that need one more get 503.",
    )


class AdaptiveBoundsPart(BoundsPart):
    """The same, with a limit that is found."""

    adaptive: Adaptive = Field(
        default=None,
        description="`true`, or how: a limit on requests at once that is found from how long they take. Default: "
        "`false`.",
    )

    def bounds(self) -> snapshot_limits.Bounds:
        found = snapshot_limits.Adaptive(**dict(self.adaptive)) if self.adaptive is not None else None
        return snapshot_limits.Bounds(self.requests, self.pending, self.connections, found)


class InstanceBoundsPart(BoundsPart):
    """Of each instance. Another one of the version is asked where one is full."""

    connections: _Many = Field(
        default=0,
        description="To each; requests that need one more wait, as beside `connections.max`. It is the lower of the "
        "two that holds.",
    )


class RatePart(Part):
    """How often requests may come: a token bucket in each worker, with its share of the rate."""

    name: values.Name = Field(description="Unique within the service; metrics tell of it.")
    rate: RateValue = Field(description="Requests in a time: `100/s`, `30/m`, `1000/h`, `5000/d`.")
    burst: _Burst | None = Field(
        default=None, description="Requests at once after a rest. Default: those of one second, and at least one."
    )
    key: Annotated[tuple[StickyPart, ...], values.AT_LEAST_ONE] | None = Field(
        default=None,
        description="What tells callers apart, as in `sticky`; the first that is present. Who has none of it is not "
        "limited. Default: all are one.",
    )
    rule: values.Name | None = Field(
        default=None, description="Only requests that this rule has chosen the version of. Default: all."
    )
    keys: _Some = Field(default=16384, description="Callers that each worker remembers; 32 bytes for each.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.key is not None and len(self.key) > MAX_KEY:
            with deeper("key"):
                raise fault(f"at most {MAX_KEY} sources")
        if self.full / self.rate > _LONGEST:
            with deeper("burst"):
                raise fault("as many as come within 30 days")
        return self

    @property
    def full(self) -> int:
        return self.burst if self.burst is not None else max(1, int(self.rate))

    def build(self) -> snapshot_limits.Rate:
        key = tuple((found.kind, found.name) for found in (source.build() for source in self.key or ()))
        return snapshot_limits.Rate(self.name, self.rate, self.full, key, self.rule, self.keys)


class ServiceLimitsPart(AdaptiveBoundsPart):
    """What a service is asked at once, and how often; over it the answer is a quick 503, or 429, with Retry-After."""

    per_version: AdaptiveBoundsPart = Field(default=AdaptiveBoundsPart(), description="The same for each version.")
    per_instance: InstanceBoundsPart = Field(default=InstanceBoundsPart(), description="For each instance.")
    rates: tuple[RatePart, ...] = Field(default=(), description="How often; a request must be within all of them.")

    @model_validator(mode="after")
    def _names(self) -> Self:
        seen: set[str] = set()
        for index, rate in enumerate(self.rates):
            with deeper("rates"), deeper(index):
                if index >= MAX_RATES:
                    raise fault(f"at most {MAX_RATES} rates")
                if rate.name in seen:
                    with deeper("name"):
                        raise fault("names that differ", f"{rate.name} is there twice")
            seen.add(rate.name)
        return self

    def build(self) -> snapshot_limits.ServiceLimits:
        per_instance = snapshot_limits.Bounds(**dict(self.per_instance))
        rates = tuple(rate.build() for rate in self.rates)
        return snapshot_limits.ServiceLimits(self.bounds(), self.per_version.bounds(), per_instance, rates)
