"""What the versions of services do just now: the difference of two looks at the workers' counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Key = tuple[str, str]
"""Service and version."""


@dataclass
class Counts:
    """Of one version, of all workers together. times: end of a bucket in microseconds -> answers; failed_calls: those
    of gRPC that say so in their grpc-status.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    times: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    failed_calls: int = 0

    @property
    def requests(self) -> int:
        return self.statuses.total()


@dataclass(frozen=True)
class Row:
    """Of one version in between: per second, milliseconds, percent. None: nothing came, or there is no split."""

    service: str
    version: str
    requests: float
    errors: float  # 5xx, and failures of the server by grpc-status: percent of the answers
    p50: float | None
    p95: float | None
    p99: float | None
    in_flight: int
    wanted: float | None
    served: float | None

    def data(self) -> dict[str, Any]:
        return asdict(self)


def counts(stats: Iterable[Mapping[str, Any]]) -> dict[Key, Counts]:
    """Of what `/stats` answers; workers that did not answer are left out."""
    found: dict[Key, Counts] = {}
    for worker in stats:
        if worker["stats"] is None:
            continue
        for each in worker["stats"]["versions"]:
            of = found.setdefault((each["service"], each["version"] or ""), Counts())
            of.statuses.update(each["statuses"])
            of.times.update(dict(each["times"]))
            of.failed_calls += each["failed_calls"]
        for each in worker["stats"]["instances"]:
            found.setdefault((each["service"], each["version"]), Counts()).in_flight += each["in_flight"]
    return found


def rows(
    before: Mapping[Key, Counts],
    now: Mapping[Key, Counts],
    seconds: float,
    splits: Mapping[str, Mapping[str, float] | None],
) -> list[Row]:
    """By service and version. splits: the weights of each service's split."""
    fresh = {key: _since(before.get(key, Counts()), each) for key, each in now.items()}
    of_service: Counter[str] = Counter()
    for (service, _), each in fresh.items():
        of_service[service] += each.requests
    made = []
    for (service, version), each in sorted(fresh.items()):
        split = splits.get(service) or {}
        whole = sum(split.values())
        p50, p95, p99 = (_percentile(each.times, share) for share in (0.5, 0.95, 0.99))
        made.append(
            Row(
                service,
                version,
                requests=each.requests / seconds if seconds else 0.0,
                errors=100 * (each.statuses["5xx"] + each.failed_calls) / each.requests if each.requests else 0.0,
                p50=p50,
                p95=p95,
                p99=p99,
                in_flight=each.in_flight,
                wanted=100 * split.get(version, 0) / whole if whole else None,
                served=100 * each.requests / of_service[service] if of_service[service] else None,
            )
        )
    return made


def _since(before: Counts, now: Counts) -> Counts:
    """A worker that was replaced counts anew: what is less than before is all new."""
    if now.requests < before.requests:
        return now
    return Counts(
        now.statuses - before.statuses, now.times - before.times, now.in_flight, now.failed_calls - before.failed_calls
    )


def _percentile(times: Counter[int], share: float) -> float | None:
    """Milliseconds: the end of the bucket that it falls into."""
    left = share * times.total()
    for end, count in sorted(times.items()):
        left -= count
        if left <= 0:
            return end / 1000
    return None
