"""Many small pieces of work on an event loop, without holding up what shares the processor with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

S = TypeVar("S")
T = TypeVar("T")

STRETCH: Final = 0.0002
"""Seconds of work between two pauses."""
PAUSE: Final = 0.0005
"""Seconds. Only sleep lets all others go first: without, the kernel may let them wait for its next tick, 1 to 4 ms."""


async def in_pieces(make: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """What is made of each, in order; at once where it does not take long."""
    made: list[T] = []
    since = time.perf_counter()
    for each in items:
        made.append(make(each))
        if time.perf_counter() - since >= STRETCH:
            await asyncio.sleep(PAUSE)
            since = time.perf_counter()
    return made
