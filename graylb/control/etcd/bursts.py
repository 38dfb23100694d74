"""When to read many changes at once. Pure.

While a watch stands, etcd sends each change by itself, and to take a response costs a hundred times what another change
in one does. A watch that begins anew is sent all that it missed in one. So whoever hears too many responses rests, and
begins anew after the last change that was seen.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MANY: Final = 50
WITHIN: Final = 0.25
"""Seconds for so many responses: more often than that is a storm, and so are so many changes in the first one after a
rest."""
REST: Final = 0.15
"""Seconds. etcd takes up to 0.1 s more to send what was missed."""


class Bursts:
    """`rest` is told of every response."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MANY)
        self._rested = False

    def rest(self, changes: int, now: float) -> bool:
        """Whether to rest after a response of so many changes. now: seconds, by any one clock."""
        if not changes:
            return False
        rested, self._rested = self._rested, False
        self._times.append(now)
        often = len(self._times) == MANY and now - self._times[0] <= WITHIN
        if often or (rested and changes >= MANY):
            self._times.clear()
            self._rested = True
        return self._rested
