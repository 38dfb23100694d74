"""Types of the compiled module; behaviour and errors are described in _tls.pyx. It may be missing from a build."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

class TlsError(ValueError):
    part: str
    entry: int

class Certificates:
    names: tuple[tuple[str, ...], ...]
    def __init__(self, entries: Sequence[Mapping[str, Any]], protocols: Sequence[str] = ("h2", "http/1.1")) -> None: ...
    def find(self, name: str) -> int: ...

class Origination:
    server_name: str | None
    verify: bool
    def __init__(
        self,
        *,
        ca: bytes | None = None,
        cert: bytes | None = None,
        key: bytes | None = None,
        server_name: str | None = None,
        verify: bool = True,
        min_version: str = "1.2",
        ciphers: str | None = None,
    ) -> None: ...

class Origin:
    origination: Origination
    def __init__(self, origination: Origination, host: str) -> None: ...

def random_ticket_key() -> bytes: ...
def set_ticket_keys(keys: Iterable[bytes]) -> None: ...
def describe(pem: bytes, part: str = "cert") -> list[dict[str, Any]]: ...
def names_host(pem: bytes, host: str) -> bool: ...

CIPHERS: str
api: object
