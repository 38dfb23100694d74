"""The `health.outliers` and `slow_start` parts of a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from graylb.model import snapshot_health as snapshot
from graylb.model import values
from graylb.model.base import Part
from graylb.model.values import deeper, fault

_MOST = 1_000_000


def _integer(low: int, high: int) -> Any:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Annotated[int, PlainValidator(values.integer(low, high)), WithJsonSchema(schema)]


def _factor(low: float, high: float) -> Any:
    return Annotated[
        float,
        PlainValidator(_number(low, high)),
        WithJsonSchema({"type": "number", "minimum": low, "maximum": high}),
    ]


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise fault(f"a number from {low:g} to {high:g}")

    return check


class SuccessRatePart(Part):
    """Ejects instances whose success rate, once an interval, is too far below that of their siblings."""

    instances: _integer(2, _MOST) = Field(  # type: ignore[valid-type]
        default=5, description="Of the version, with `requests` each; where there are fewer, nobody is judged."
    )
    requests: _integer(1, _MOST) = Field(default=100, description="Answers that an instance needs in an interval.")  # type: ignore[valid-type]
    stdev_factor: _factor(0.1, 100) = Field(  # type: ignore[valid-type]
        default=1.9, description="Standard deviations below the mean of the version's success rates."
    )

    def build(self) -> snapshot.SuccessRate:
        return snapshot.SuccessRate(**dict(self))


class LatencyPart(Part):
    """Ejects instances that take, on the mean of an interval, several times as long to answer as their siblings."""

    instances: _integer(2, _MOST) = Field(  # type: ignore[valid-type]
        default=3, description="Of the version, with `requests` each; where there are fewer, nobody is judged."
    )
    requests: _integer(1, _MOST) = Field(default=100, description="Answers that an instance needs in an interval.")  # type: ignore[valid-type]
    factor: _factor(1.1, 1000) = Field(default=3.0, description="Times the median of the siblings' means.")  # type: ignore[valid-type]

    def build(self) -> snapshot.Latency:
        return snapshot.Latency(**dict(self))


class OutliersPart(Part):
    """Instances that answer badly while their siblings do well get no requests for a time. Seen by each worker."""

    consecutive_gateway_failures: _integer(0, _MOST) = Field(  # type: ignore[valid-type]
        default=5,
        description="So many in a row eject an instance: it cannot be reached, does not answer in time, breaks off, or "
        "answers 502, 503 or 504. 0: off.",
    )
    consecutive_5xx: _integer(0, _MOST) = Field(  # type: ignore[valid-type]
        default=0, description="So many of these, or of any other 5xx, in a row. 0: off."
    )
    success_rate: SuccessRatePart | None = Field(default=None, description="`{}` for its defaults. Default: off.")
    latency: LatencyPart | None = Field(default=None, description="`{}` for its defaults. Default: off.")
    interval: values.Duration = Field(
        default=10.0,
        description="After which `success_rate` and `latency` are judged, and one ejection is forgiven.",
    )
    base_ejection_time: values.Duration = Field(default=30.0, description="Times the number of ejections in a row.")
    max_ejection_time: values.Duration = Field(default=300.0, description="At most so long.")
    max_ejection_percent: _integer(0, 100) = Field(  # type: ignore[valid-type]
        default=50,
        description="Of a version's instances that may be out, ill ones counted with them. One always may, unless it "
        "is alone; with 100 even that. 0: nobody is ejected.",
    )

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.max_ejection_time < self.base_ejection_time:
            with deeper("max_ejection_time"):
                raise fault("at least base_ejection_time")
        return self

    def build(self) -> snapshot.Outliers:
        parts = {**dict(self), "success_rate": None, "latency": None}
        if self.success_rate is not None:
            parts["success_rate"] = self.success_rate.build()
        if self.latency is not None:
            parts["latency"] = self.latency.build()
        return snapshot.Outliers(**parts)


class SlowStartPart(Part):
    """An instance that is new, or back, gets a share of its weight that grows. Shares of versions stay."""

    window: values.Duration = Field(default=30.0, description="After which it gets its whole weight.")
    aggression: _factor(0.1, 100) = Field(  # type: ignore[valid-type]
        default=1.0, description="1: it grows evenly; above: faster at first; the share is (age / window) ^ (1 / it)."
    )
    min_percent: _integer(1, 100) = Field(default=10, description="Of its weight, from the beginning.")  # type: ignore[valid-type]

    def build(self) -> snapshot.SlowStart:
        return snapshot.SlowStart(**dict(self))


def _bare_window(value: Any) -> Any:
    return value if isinstance(value, dict | SlowStartPart) else {"window": value}


SlowStart = Annotated[
    SlowStartPart, BeforeValidator(_bare_window, json_schema_input_type=values.Duration | SlowStartPart)
]
