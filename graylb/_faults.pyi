"""Types of the compiled module; behaviour and errors are described in _faults.pyx."""

from typing import Literal

def draws(kind: Literal["delay", "abort", "mirror"], percent: float, count: int, first: int = 0) -> list[bool]: ...
