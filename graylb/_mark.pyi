from typing import Any

def arriving(
    settings: dict[str, Any], files: dict[str, bytes], role: str, address: bytes, head: bytes
) -> tuple[int, bytes | None, list[tuple[bytes, bytes]]]: ...
