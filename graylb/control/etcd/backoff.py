"""How long to wait between attempts: full jitter (Marc Brooker, "Exponential Backoff And Jitter", 2015)."""

from __future__ import annotations

import random


class Backoff:
    """Ceilings double from `base` to `cap` seconds; each wait is drawn evenly between 0 and the ceiling.

    Waits of nearly 0 are fine: the sum grows all the same, and many who lost one server do not return together.
    """

    def __init__(self, base: float, cap: float, chance: random.Random) -> None:
        if not 0 < base <= cap:
            raise ValueError(f"backoff: expected 0 < base <= cap, not {base:g} and {cap:g}")
        self._base, self._cap, self._chance = base, cap, chance
        self.failures = 0

    @property
    def ceiling(self) -> float:
        """Of the next wait, seconds."""
        # 2**64 times anything is over any cap; larger powers would overflow a float in the end
        return min(self._cap, self._base * 2.0 ** min(self.failures, 64))

    @property
    def cap(self) -> float:
        return self._cap

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        wait = self._chance.uniform(0, self.ceiling)
        self.failures += 1
        return wait

    def reset(self) -> None:
        """Things went well for a while."""
        self.failures = 0
