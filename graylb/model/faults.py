"""The `fault` part of a service and of a rule."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from graylb.model import snapshot, snapshot_faults, values
from graylb.model.base import Part
from graylb.model.values import deeper, fault

MAX_DELAY = 3600.0
"""Seconds."""


def _percent(value: Any) -> float:
    expected = "a number of percent from 0 to 100, in steps of 0.01"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise fault(expected)
    if abs(value * 100 - round(value * 100)) > 1e-6:
        raise fault(expected)
    return round(value * 100) / 100


Percent = Annotated[float, PlainValidator(_percent), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})]
Most = Annotated[
    int,
    PlainValidator(values.integer(1, 1_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
]
_Status = Annotated[
    int, PlainValidator(values.integer(400, 599)), WithJsonSchema({"type": "integer", "minimum": 400, "maximum": 599})
]
_FAILURES = snapshot.GRPC_STATUSES[1:]
_GrpcStatus = Annotated[
    str,
    PlainValidator(values.choice(*_FAILURES)),
    WithJsonSchema({"enum": list(_FAILURES)}),
]


class DelayPart(Part):
    """Requests that wait before they go to an instance. They have no connection to one meanwhile."""

    time: values.Duration = Field(description="How long they wait; at most an hour.")
    percent: Percent = Field(default=100.0, description="Of the requests, in steps of 0.01.")
    max: Most = Field(
        default=1000, description="Most that wait at once, of each worker; any more go on without waiting."
    )

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if not 0 < self.time <= MAX_DELAY:
            with deeper("time"):
                raise fault("a time above 0 and of at most an hour")
        return self


class AbortPart(Part):
    """Requests that get an error of graylb's instead of an instance's answer."""

    status: _Status = Field(default=503, description="Status of the answer, from 400 to 599.")
    grpc_status: _GrpcStatus = Field(default="unavailable", description="Likewise for gRPC calls.")
    percent: Percent = Field(default=100.0, description="Of the requests, in steps of 0.01.")


class FaultPart(Part):
    """Failures made on purpose, to see what callers make of them. Delay and abort are drawn independently."""

    delay: DelayPart | None = Field(default=None, description="Some wait. Default: none does.")
    abort: AbortPart | None = Field(default=None, description="Some get an error. Default: none does.")

    def build(self) -> snapshot_faults.Fault | None:
        if self.delay is None and self.abort is None:
            return None
        return snapshot_faults.Fault(
            snapshot_faults.Delay(**dict(self.delay)) if self.delay is not None else None,
            snapshot_faults.Abort(**dict(self.abort)) if self.abort is not None else None,
        )


def build(part: FaultPart | None) -> snapshot_faults.Fault | None:
    return part.build() if part is not None else None
