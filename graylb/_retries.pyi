"""Types of the compiled module; behaviour is described in _retries.pyx."""

from collections.abc import Iterable
from typing import Any

CONDITIONS: dict[str, tuple[int, ...]]
STATUSES: dict[str, tuple[int, ...]]
CAUSE_NAMES: tuple[str, ...]
DEFAULTS: dict[str, Any]

def judged(settings: dict[str, Any], failure: dict[str, Any]) -> str: ...
def spent(settings: dict[str, Any], events: Iterable[tuple[int, int]]) -> list[bool]: ...
def backoff_us(settings: dict[str, Any], attempts: int, random: int) -> int: ...
