"""Of the snapshot: what bounds the traffic of services and the memory of workers. See `graylb.model.snapshot`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A limit on requests at once that is found from their times. min, max: of the whole proxy. Times in seconds."""

    min: int = 10
    max: int = 1000
    tolerance: int = 25  # percent that requests may take longer than the shortest time
    interval: float = 0.1  # between two looks
    probe: float = 60.0  # between two measurements of the shortest time


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a service, of each of its versions, or of each of its instances, in the whole proxy; 0: none."""

    requests: int = 0  # at once
    pending: int = 0  # requests that wait for a connection
    connections: int = 0
    adaptive: Adaptive | None = None  # not of instances


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a service is asked, or how often by each of those that a key tells apart. Of the whole proxy."""

    name: str
    rate: float  # requests a second
    burst: int = 1  # requests at once after a rest
    key: tuple[tuple[str, str], ...] = ()  # (kind, name) as in StickyKey; the first that is present; none: all are one
    rule: str | None = None  # requests whose version was chosen by this rule; None: all
    keys: int = 16384  # that are remembered


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    service: Bounds = Bounds()
    version: Bounds = Bounds()
    instance: Bounds = Bounds()
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a worker may have resident; 0: no mark."""

    soft: int = 0  # above it: no more connections
    hard: int = 0  # above it: no more requests either


NO_LIMITS = ServiceLimits()
NO_MARKS = Memory()
