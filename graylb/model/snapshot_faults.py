"""Faults that are injected and requests that are mirrored, as a snapshot has them. Frozen, like `snapshot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graylb.model.snapshot import Subset


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


@dataclass(frozen=True, slots=True)
class Mirror:
    """Requests of which a copy goes to another version, whose answer nobody sees."""

    to: Subset
    percent: float = 100.0
    max: int = 100  # copies at once, of each worker
    body: int = 65536  # bytes of a request's body; requests with more are not copied
    methods: tuple[str, ...] = ()  # (): all
    timeout: float = 15.0  # seconds that a copy may take in all
