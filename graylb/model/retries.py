"""The `retries` part of a service."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from graylb.model import snapshot, values
from graylb.model.base import Part
from graylb.model.snapshot import GRPC_STATUSES
from graylb.model.snapshot_retries import IDEMPOTENT, RETRY_CONDITIONS
from graylb.model.values import deeper, fault

MAX_METHODS = 16
MIN_HEDGE, MAX_HEDGE = 0.001, 60.0
"""Seconds."""
_RETRIED = GRPC_STATUSES[1:]


def _ordered(known: tuple[str, ...], what: str) -> Any:
    """A list of known words: in the known order, each once."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise fault(f"a list of {what}")
        found = set(values.each(value, values.choice(*known)))
        return tuple(each for each in known if each in found)

    return check


def _words(known: tuple[str, ...], what: str) -> Any:
    return Annotated[
        tuple[str, ...],
        PlainValidator(_ordered(known, what)),
        PlainSerializer(list),
        WithJsonSchema({"type": "array", "items": {"enum": list(known)}}),
    ]


def _statuses(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise fault("a list of statuses, such as [502, 503]")
    found = set()
    for index, each in enumerate(value):
        with deeper(index):
            if isinstance(each, bool) or not isinstance(each, int) or not 400 <= each <= 599:
                raise fault("a status from 400 to 599")
            found.add(each)
    return tuple(sorted(found))


def _methods(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise fault("a list of methods, such as [GET, HEAD, PUT]")

    def check(each: Any) -> str:
        if not isinstance(each, str) or not each.isascii() or not each.isalpha() or len(each) > 20:
            raise fault("a method of up to 20 letters")
        if not each.isupper():
            raise fault("a method in capital letters, for methods differ by case", suggestion=each.upper())
        return each

    found = tuple(sorted(set(values.each(value, check))))
    if len(found) > MAX_METHODS:
        raise fault(f"at most {MAX_METHODS} methods", f"{len(found)} methods")
    return found


def time_or_none(value: Any) -> float:
    """Seconds; 0 for no limit."""
    is_nought = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
    return 0.0 if is_nought else values.duration(value)


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10_000:
        raise fault("a number from 0 to 10000")
    return float(value)


def _percent(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise fault("a number from 0 to 100")
    return float(value)


TimeOrNone = Annotated[
    float, PlainValidator(time_or_none), WithJsonSchema({"type": ["number", "string"], "minimum": 0})
]
_Percent = Annotated[float, PlainValidator(_percent), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})]
_Rate = Annotated[float, PlainValidator(_rate), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 10_000})]
_Buffer = Annotated[int, PlainValidator(values.size(0, 2**20)), WithJsonSchema({"type": ["integer", "string"]})]


class BackoffPart(Part):
    """How long an attempt waits that follows a failed one: a time drawn between nothing and the one given here."""

    base: TimeOrNone = Field(
        default=0.025, description="Before the second attempt; twice as much before each after it."
    )
    max: TimeOrNone = Field(default=0.25, description="Never more than this.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.base > self.max:
            with deeper("base"):
                raise fault("at most max", f"base is {self.base:g} s and max {self.max:g} s")
        return self


class BudgetPart(Part):
    """How many retries a service may have, in each worker: the larger of the two."""

    percent: _Percent = Field(default=20.0, description="So many in a hundred requests.")
    min_per_second: _Rate = Field(default=3.0, description="So many a second, however few requests there are.")


def _delay(value: Any) -> float:
    found = values.duration(value)
    if not MIN_HEDGE <= found <= MAX_HEDGE:
        raise fault("a time from 1 ms to 60 s")
    return found


class HedgePart(Part):
    """Requests whose answer is late are sent to a second instance too; the first answer counts, the other attempt is
    cancelled. Envoy's `hedge_policy`, gRPC's `hedgingPolicy`.

    Only with the `methods` of retries, and while the whole request is in their `buffer`. Second attempts count to
    `attempts` and are paid from `budget`.
    """

    delay: Annotated[float, PlainValidator(_delay), WithJsonSchema({"type": ["number", "string"]})] = Field(
        description="An answer is late when its head is not here so long after its request was sent; 1 ms to 60 s. "
        "A good one is the 95th percentile of the service's times."
    )


class RetriesPart(Part):
    """When a request is sent once more. What no instance can have looked at is sent again anyway."""

    on: _words(RETRY_CONDITIONS, "conditions, such as [reset, gateway-error]") = Field(  # type: ignore[valid-type]
        default=("connect-failure", "refused-stream", "reset"),
        description="`connect-failure` and `refused-stream` (nobody has looked at the request: retried anyway, at "
        "once), `reset` (the connection ends before any byte of the answer), `timeout` (`per_try_timeout` or "
        "`timeouts.response` is over), `gateway-error` (502, 503, 504), `5xx` (any such status, `reset`, `timeout`, "
        "an answer that is not HTTP), `retriable-4xx` (409).",
    )
    statuses: Annotated[
        tuple[int, ...],
        PlainValidator(_statuses),
        PlainSerializer(list),
        WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 400, "maximum": 599}}),
    ] = Field(default=(), description="Statuses that are retried besides.")
    grpc_status: _words(_RETRIED, "gRPC statuses, such as [unavailable]") = Field(  # type: ignore[valid-type]
        default=(),
        description="Of gRPC calls that fail with one of these before they begin, whatever their method: "
        "`unavailable`, `resource_exhausted` and so on.",
    )
    attempts: Annotated[
        int, PlainValidator(values.integer(1, 4)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 4})
    ] = Field(
        default=2,
        description="In all, each at another instance. Those that nobody can have looked at do not count, but "
        "there are never more than 4.",
    )
    methods: Annotated[
        tuple[str, ...],
        PlainValidator(_methods),
        PlainSerializer(list),
        WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
    ] = Field(
        default=IDEMPOTENT,
        description="Requests that may have been processed are retried only with these methods. Default: the "
        "idempotent ones. Others, such as `POST`, may then be carried out twice.",
    )
    per_try_timeout: TimeOrNone = Field(
        default=0.0, description="From a complete request to its answer's head, for each attempt. 0: none."
    )
    backoff: BackoffPart = Field(default=BackoffPart(), description="How long the next attempt waits.")
    budget: BudgetPart = Field(default=BudgetPart(), description="How many retries there may be.")
    other_version: values.Bool = Field(
        default=False,
        description="`true`: after a failure the stable version is asked, where the fallback is not `strict`. First "
        "attempts go where they always go.",
    )
    same_instance: values.Bool = Field(
        default=False, description="`true`: where no other instance is left, one that has failed is asked again."
    )
    buffer: _Buffer = Field(default=65536, description="Requests with a longer body are not retried.")
    hedge: HedgePart | None = Field(
        default=None, description="A second attempt before the first has failed. Default: none."
    )

    @model_validator(mode="after")
    def _room_for_a_hedge(self) -> Self:
        if self.hedge is None:
            return self
        if self.attempts < 2:
            with deeper("hedge"):
                raise fault("attempts of 2 at least, for a second attempt counts", f"attempts: {self.attempts}")
        if 0 < self.per_try_timeout <= self.hedge.delay:
            with deeper("hedge"), deeper("delay"):
                raise fault(
                    "a time below per_try_timeout, which ends the attempt",
                    f"delay is {self.hedge.delay:g} s and per_try_timeout {self.per_try_timeout:g} s",
                )
        return self

    def build(self) -> snapshot.Retries:
        own = dict(self) | {
            "backoff": snapshot.Backoff(self.backoff.base, self.backoff.max),
            "budget": snapshot.RetryBudget(self.budget.percent, self.budget.min_per_second),
            "hedge": snapshot.Hedge(self.hedge.delay) if self.hedge is not None else None,
        }
        return snapshot.Retries(**own)
