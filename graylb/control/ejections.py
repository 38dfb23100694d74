"""What workers tell of the instances that they have ejected: kept for whoever asks, logged when it changes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from graylb.control.logs import log


class Worker(Protocol):
    """As `control.workers` has it."""

    number: int
    ejected: list[dict[str, Any]]


def taken(worker: int, former: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ejected of a worker, and `until` when. former: what this gave before. told: as the engine has them."""
    now = datetime.now(UTC)
    known = {_key(each): each for each in former}
    found = []
    for each in told:
        one = {name: value for name, value in each.items() if name != "seconds"}
        before = known.pop(_key(each), None)
        if before is not None and before["times"] == each["times"]:
            one["until"] = before["until"]
        else:
            one["until"] = (now + timedelta(seconds=each["seconds"])).isoformat(timespec="seconds")
            log.warning(
                "outliers: worker %d ejects instance %s of %s (%s) for %g s: %s",
                *(worker, each["address"], each["service"], each["version"], round(each["seconds"], 1), each["why"]),
            )
        found.append(one)
    for each in known.values():
        log.info("outliers: worker %d has instance %s of %s back", worker, each["address"], each["service"])
    return found


def _key(each: dict[str, Any]) -> tuple[str, str, str]:
    return each["service"], each["address"], each["version"]


def of(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """Of all of them, each with its worker's number."""
    return [{"worker": worker.number, **each} for worker in workers for each in worker.ejected]
