"""What a number of requests came to, in short."""

from __future__ import annotations

from collections import Counter

from tests.integration.engines import Rig


async def statuses(rig: Rig, count: int) -> Counter[tuple[int, str | None]]:
    """(status, version that answered) -> how many of `count` requests, one after the other."""
    caller = await rig.caller()
    found: Counter[tuple[int, str | None]] = Counter()
    for _ in range(count):
        answer = await caller.ask()
        found[answer.status, answer.get("x-graylb-version")] += 1
    return found
