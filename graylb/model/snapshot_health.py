"""What a service does with instances that answer badly, and with those that are new. Part of the snapshot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Ejects those whose success rate in an interval is too far below that of their siblings."""

    instances: int = 5  # of the version, with so many requests each; where there are fewer, nobody is judged
    requests: int = 100
    stdev_factor: float = 1.9  # how many standard deviations below the mean


@dataclass(frozen=True, slots=True)
class Latency:
    """Ejects those that take too long, on the mean of an interval, compared with their siblings."""

    instances: int = 3
    requests: int = 100
    factor: float = 3.0  # times the median of the siblings


@dataclass(frozen=True, slots=True)
class Outliers:
    """Which instances are ejected for how they answer. Times in seconds."""

    consecutive_gateway_failures: int = 5  # no answer, or 502, 503, 504; 0: off
    consecutive_5xx: int = 0
    success_rate: SuccessRate | None = None
    latency: Latency | None = None
    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_percent: int = 50  # of a version's instances


@dataclass(frozen=True, slots=True)
class SlowStart:
    """An instance that is new or back gets a share of its weight that grows."""

    window: float  # seconds
    aggression: float = 1.0
    min_percent: int = 10
