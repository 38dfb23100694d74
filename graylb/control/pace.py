"""When to rest between revisions and within one, so that a storm of changes leaves the processor to traffic."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

T = TypeVar("T")

REST: Final = 3.0
"""In a storm, the pause after each revision: so many times what it took."""
LONGEST: Final = 0.8
"""Seconds of a pause at most: what a change waits for in the midst of a storm."""
QUIET: Final = 0.3
"""Seconds without a change after which a storm is over, and so is the pause: in one, etcd is asked some four times in
a second."""
LOOK_EVERY: Final = 0.05
ALLOWED: Final = 0.5
"""Seconds of pauses that may be owed: changes now and then, be they close together, are applied at once."""
APART: Final = 0.02
"""In a storm, seconds between two workers that are handed a table: on one processor both would swap at once, which
holds up the clients of each for as long as both take."""
SPREAD: Final = 0.1
"""Seconds between the first and the last of them at most, however many there are."""
LATELY: Final = 1.5
"""Seconds from when a rest began that count as the same storm: longer than it and the next revision take."""


class Pace:
    """What is owed grows with work and shrinks with time. `rest` after each revision."""

    def __init__(self) -> None:
        self._owed = 0.0
        self._at = 0.0

    def rest(self, began: float, ended: float) -> float:
        """Seconds to rest after work from `began` to `ended`, by any one clock."""
        self._owed = max(0.0, self._owed - (began - self._at)) + REST * (ended - began)
        self._owed = min(self._owed, ALLOWED + LONGEST)  # what cannot be paid is not owed once the storm is over
        self._at = ended
        return max(0.0, self._owed - ALLOWED)

    def apart(self, workers: int, now: float) -> float:
        """Seconds between two of so many workers that are handed a table; 0 unless the revision before had to rest."""
        storm = self._owed > ALLOWED and now - self._at < LATELY
        return min(APART, SPREAD / max(1, workers - 1)) if storm else 0.0


async def rested(seconds: float, last: Callable[[], float]) -> None:
    """The pause. last: when the newest change came, by the loop's clock."""
    now = asyncio.get_running_loop().time
    looks, rest = divmod(seconds, LOOK_EVERY)
    await asyncio.sleep(rest)
    for _ in range(int(looks)):
        if now() - last() >= QUIET:
            return
        await asyncio.sleep(LOOK_EVERY)


async def staggered(works: Iterable[Callable[[], Awaitable[T]]], apart: float) -> list[T]:
    """What they give, in order; each is begun so many seconds after the one before, whether that is done or not."""

    async def later(seconds: float, work: Callable[[], Awaitable[T]]) -> T:
        if seconds:
            await asyncio.sleep(seconds)
        return await work()

    return await asyncio.gather(*(later(number * apart, work) for number, work in enumerate(works)))


STRETCH: Final = 0.0003
"""Seconds of work without a pause, where it is not urgent: what a worker waits for at most on the same processor."""
PAUSE: Final = 0.0005
PAUSES: Final = 0.25
"""Seconds of all pauses of one work, which take longer on a busy machine; then it only lets others go first."""

Breath = Callable[[], object]
"""Called every now and then in the middle of work."""


def none() -> None:
    """For work that is urgent."""


class Pauses:
    """A `Breath` for a thread that has time."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._left = PAUSES

    def __call__(self) -> None:
        now = time.perf_counter()
        if now - self._since < STRETCH:
            return
        if self._left > 0:
            time.sleep(PAUSE)
        else:
            os.sched_yield()
        self._since = time.perf_counter()
        self._left -= self._since - now
