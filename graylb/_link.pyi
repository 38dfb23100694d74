"""Types of the compiled module; behaviour is described in _link.pyx."""

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
