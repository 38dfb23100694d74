"""Comparisons of mirrored answers: asks the workers for both answers to some requests, for a while, and reports.

One at a time for each service. Workers stop by themselves, at the end of the time or of the number; what they cannot
hand over because the control process does not keep up is dropped, and counted.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from graylb.release.answer_diff import Report, Settings, answer

GRACE: Final = 1.0
"""Seconds that answers may take after the end."""
LOOK_EVERY: Final = 0.5


class _Worker(Protocol):
    def tell_mirror(self, told: dict[str, Any]) -> None: ...


class Busy(Exception):
    """Somebody compares answers of this service already."""


@dataclass
class _Comparison:
    report: Report
    requests: int
    dropped: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)


class Comparisons:
    """Those under way. workers: those that are told."""

    def __init__(self, workers: Callable[[], Iterable[_Worker]]) -> None:
        self._workers = workers
        self._under_way: dict[str, _Comparison] = {}

    async def run(
        self,
        service: str,
        seconds: float,
        requests: int,
        settings: Settings,
        gone: Callable[[], Awaitable[bool]],
    ) -> dict[str, Any]:
        """The report after so many seconds or requests, or when the caller is gone. Raises Busy."""
        if service in self._under_way:
            raise Busy(f"answers of service {service} are being compared already")
        comparison = self._under_way[service] = _Comparison(Report(settings), requests)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        try:
            self._tell(service, seconds, requests)
            while (left := end + GRACE - loop.time()) > 0 and not await gone():
                try:
                    await asyncio.wait_for(comparison.full.wait(), min(left, LOOK_EVERY))
                    break
                except TimeoutError:
                    continue
        finally:
            del self._under_way[service]
            self._tell(service, 0, 0)
        return {"service": service, "dropped": comparison.dropped, **comparison.report.told()}

    def take(self, told: dict[str, Any]) -> None:
        """Both answers to one request, as a worker tells them."""
        comparison = self._under_way.get(told["service"])
        if comparison is None or comparison.full.is_set():
            return
        comparison.dropped += told["dropped"]
        one, two = (
            answer(
                each["status"],
                base64.b64decode(each["head"]),
                base64.b64decode(each["body"]),
                each["size"],
                base64.b64decode(each["trailers"]),
                each["complete"],
            )
            for each in told["answers"]
        )
        comparison.report.add(told["line"], one, two)
        if comparison.report.compared >= comparison.requests:
            comparison.full.set()

    def _tell(self, service: str, seconds: float, requests: int) -> None:
        for worker in self._workers():
            worker.tell_mirror({"service": service, "seconds": seconds, "requests": requests})
