"""When to rest between revisions, so that a storm of changes leaves the processor to traffic. Pure."""

from __future__ import annotations

from typing import Final

REST: Final = 3.0
"""In a storm, the pause after each revision: so many times what it took."""
LONGEST: Final = 0.25
"""Seconds of a pause at most: what a change waits for in a storm."""
ALLOWED: Final = 0.5
"""Seconds of pauses that may be owed: changes now and then, be they close together, are applied at once."""


class Pace:
    """What is owed grows with work and shrinks with time. `rest` after each revision."""

    def __init__(self) -> None:
        self._owed = 0.0
        self._at = 0.0

    def rest(self, began: float, ended: float) -> float:
        """Seconds to rest after work from `began` to `ended`, by any one clock."""
        self._owed = max(0.0, self._owed - (began - self._at)) + REST * (ended - began)
        self._at = ended
        return max(0.0, min(LONGEST, self._owed - ALLOWED))
