"""Types of the compiled module; behaviour is described in _link.pyx."""

from collections.abc import Callable
from typing import Any, TypeVar

def place(
    image: bytearray,
    at: int,
    number: int,
    record: bytes,
    instances: bytes,
    first_instance: int,
    first_split: int,
    patterns: list[int],
) -> tuple[bytes, bytes]: ...

T = TypeVar("T")
S = TypeVar("S", bound=tuple[Any, bytes, int])

def arranged(instances: tuple[T, ...]) -> tuple[list[T], dict[str, tuple[int, int]]]: ...
def alike(a: tuple[object, ...], b: tuple[object, ...]) -> tuple[int, int]: ...
def place_of(instances: list[Any], x: Any) -> int: ...
def look_up(instances: tuple[T, ...], seen: dict[int, S], see: Callable[[T], S]) -> tuple[dict[int, S], bytes]: ...
def members(instances: list[Any], versions: dict[str, int], at: int) -> tuple[bytes, bytes]: ...
