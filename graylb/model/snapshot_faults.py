"""Faults that are injected, as a snapshot has them. Frozen, like `snapshot`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delay:
    """Requests that wait before they go to an instance."""

    time: float  # seconds
    percent: float = 100.0  # in steps of 0.01
    max: int = 1000  # at once, of each worker; any more go on without waiting


@dataclass(frozen=True, slots=True)
class Abort:
    """Requests that are answered by graylb instead of an instance."""

    status: int = 503
    grpc_status: str = "unavailable"  # of snapshot.GRPC_STATUSES
    percent: float = 100.0


@dataclass(frozen=True, slots=True)
class Fault:
    delay: Delay | None = None
    abort: Abort | None = None
