"""The records of a table image, and the image while it grows.

Pure. The records are those of `_fast.pxd`; `_check_layout` compares their sizes when this module is imported.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from graylb import _fast

NONE = 0xFFFFFFFF

HEADER = struct.Struct("<8sQQII4I14I")
FIELD_SET = struct.Struct("<6IQ")
FIELD = struct.Struct("<4I")
ENTRY = struct.Struct("<QII")
COND = struct.Struct("<HBB3I")
NETWORK = struct.Struct("<16sII")
NUMBER = struct.Struct("<dII")
VERSION = struct.Struct("<3Q6I")
GROUP = struct.Struct("<II")
RULE = struct.Struct("<8I")
TARGET = struct.Struct("<8IQ4I")
COLUMN = struct.Struct("<IHH")
INSTANCE = struct.Struct("<6I")
SERVICE = struct.Struct("<26I3d")
ROUTE = struct.Struct("<22I")
NODE = struct.Struct("<8I")


def _check_layout() -> None:
    ours = {
        "ImageHeader": HEADER, "FieldSet": FIELD_SET, "Field": FIELD, "Entry": ENTRY, "Cond": COND, "Network": NETWORK,
        "NumberBound": NUMBER, "VersionBound": VERSION, "Group": GROUP, "Column": COLUMN, "Rule": RULE,
        "Target": TARGET, "Instance": INSTANCE, "Service": SERVICE, "Route": ROUTE, "Node": NODE,
    }  # fmt: skip
    for name, layout in ours.items():
        if layout.size != _fast.SIZES[name]:
            raise ImportError(f"table record {name}: {layout.size} bytes here, {_fast.SIZES[name]} in graylb._fast")


_check_layout()


class Arena:
    """The image while it grows. Every block begins 8-aligned; equal strings lie in it once.

    base: what lies before it, a multiple of 8; offsets count from there.
    """

    def __init__(self, reserve: int = 0, base: int = 0) -> None:
        self.data = bytearray(reserve)
        self.base = base
        self._texts: dict[bytes, tuple[int, int]] = {}

    def add(self, block: bytes | bytearray) -> int:
        """Appends a block and returns its offset."""
        self.data += b"\0" * (-len(self.data) % 8)
        at = self.base + len(self.data)
        self.data += block
        return at

    def text(self, value: str | bytes) -> tuple[int, int]:
        """(offset, length) of a string."""
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        found = self._texts.get(raw)
        if found is None:
            found = self._texts[raw] = (self.add(raw), len(raw))
        return found

    def u32(self, values: Iterable[int]) -> int:
        numbers_ = list(values)
        return self.add(struct.pack(f"<{len(numbers_)}I", *numbers_))

    def hash_table(self, entries: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """hash -> (value, n > 0) as open addressing; (offset, mask), mask 0 when there is nothing."""
        if not entries:
            return 0, 0
        mask = 3
        while mask < 2 * len(entries):
            mask = mask * 2 + 1
        cells: list[tuple[int, int, int]] = [(0, 0, 0)] * (mask + 1)
        for key, (value, n) in entries.items():
            k = key & 0xFFFFFFFF & mask
            while cells[k][2]:
                k = (k + 1) & mask
            cells[k] = (key, value, n)
        return self.add(b"".join(ENTRY.pack(*cell) for cell in cells)), mask


class Patterns:
    """Regular expressions of the whole table, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, pattern: str) -> int:
        return self.numbers.setdefault(pattern, len(self.numbers))
