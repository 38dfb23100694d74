from collections.abc import Iterable

from graylb._fast import Table

FIELDS: dict[str, int]

class Format:
    def __init__(self, json: bool, parts: Iterable[tuple[str, str]]) -> None: ...

def escaped(value: bytes, json: bool, room: int = ...) -> bytes: ...
def number(n: int) -> bytes: ...
def seconds(us: int) -> bytes: ...
def line_of(f: Format, head: bytes, address: str = "", wall_us: int = 0, port: int = 0) -> bytes: ...
def lines_of(
    f: Format,
    t: Table | None,
    head: bytes,
    requests: list[dict[str, int]],
    address: str = "",
    wall_us: int = 0,
    port: int = 0,
) -> list[tuple[bytes, bytes, bool]]: ...
