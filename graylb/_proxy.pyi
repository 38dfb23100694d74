"""Types of the compiled module; shapes and errors are described in _proxy.pyx."""

from typing import Any, Literal

MAX_BYTES: int

def read(data: bytes) -> dict[str, Any] | Literal[-1] | None: ...
def write(
    version: Literal[1, 2],
    source: str = "::",
    destination: str = "::",
    source_port: int = 0,
    destination_port: int = 0,
    *,
    local: bool = False,
) -> bytes: ...
