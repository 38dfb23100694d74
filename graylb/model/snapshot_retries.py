"""Retries as a snapshot has them: see `graylb.model.snapshot`, which these belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RETRY_CONDITIONS: Final = (
    "connect-failure", "refused-stream", "reset", "timeout", "gateway-error", "5xx", "retriable-4xx",
)  # fmt: skip
"""What a service may have retried, in Envoy's words."""

IDEMPOTENT: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE")
"""RFC 9110 section 9.2.2."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before a second attempt, doubled for each one after it up to `max`: drawn between nothing and that."""

    base: float = 0.025
    max: float = 0.25


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Retries of a service, in each worker: so many in a hundred requests, or so many a second, whichever is more."""

    percent: float = 20.0
    min_per_second: float = 3.0


@dataclass(frozen=True, slots=True)
class Hedge:
    """Requests whose answer is late are sent to a second instance too, and the first answer counts."""

    delay: float  # seconds from an attempt to when its answer is late


@dataclass(frozen=True, slots=True)
class Retries:
    """When a request is sent once more. What nobody can have looked at is sent again whatever this says."""

    on: tuple[str, ...] = ("connect-failure", "refused-stream", "reset")  # of RETRY_CONDITIONS, in their order
    statuses: tuple[int, ...] = ()  # sorted
    grpc_status: tuple[str, ...] = ()  # of GRPC_STATUSES, in their order
    attempts: int = 2  # in all
    methods: tuple[str, ...] = IDEMPOTENT  # sorted
    per_try_timeout: float = 0.0  # seconds from a try's request to its answer's head; 0: none
    backoff: Backoff = Backoff()
    budget: RetryBudget = RetryBudget()
    other_version: bool = False  # the stable version is asked after another one has failed
    same_instance: bool = False  # one that has failed is asked again where no other is left
    buffer: int = 65536  # bytes of a request's body that are kept to be sent once more
    hedge: Hedge | None = None
