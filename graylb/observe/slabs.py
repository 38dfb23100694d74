"""The slabs of a supervisor's workers: made here, handed over with the role, kept for a successor, read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import orjson

from graylb import _slab

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One series, all workers' figures of it together. values: one number; a histogram's `Sum` is asked itself."""

    name: str
    kind: str  # counter, gauge or histogram
    labels: Labels
    value: int
    cells: _slab.Sum | None = None  # of a histogram
    exemplars: _slab.Sum | None = None  # of its times


class Slabs:
    """One slab for each worker number, for as long as this object is open."""

    def __init__(self, workers: int, size: int = 0) -> None:
        """Raises OSError."""
        self.fds: list[int] = []
        try:
            for number in range(workers):
                self.fds.append(_slab.create(f"graylb-{number}", size))
            self._readers = [_slab.Reader(fd) for fd in self.fds]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def refused(self) -> int:
        """Series that found no room of their own, and are counted in those whose labels say `(other)`."""
        return sum(reader.refused for reader in self._readers)

    def used(self) -> int:
        """Bytes that workers have written to."""
        return sum(reader.used for reader in self._readers)

    def read(self, gone_after: int = _slab.GONE_AFTER) -> list[Series]:
        """Every series of every worker, summed over the workers, while they go on counting.

        gone_after: seconds that a series is told of still after nobody counts in it any more.
        """
        sums: dict[tuple[int, int, bytes], _slab.Sum] = {}
        for reader in self._readers:
            reader.add_to(sums, gone_after)
        exemplars = {text: found for (kind, _, text), found in sums.items() if _slab.KINDS[kind] == "exemplar"}
        return [each for (kind, _, text), found in sums.items() for each in _told(kind, text, found, exemplars)]


def _told(kind: int, text: bytes, found: _slab.Sum, exemplars: dict[bytes, _slab.Sum]) -> Iterator[Series]:
    said = _slab.KINDS[kind]
    if said == "exemplar":
        return
    name, labels, dimension, values = _parsed(text)
    if said == "histogram":
        yield Series(name, said, labels, 0, found, exemplars.get(text))
    elif dimension is None:
        yield Series(name, said, labels, found[0])
    else:
        for i, value in enumerate(values):
            yield Series(name, said, (*labels, (dimension, value)), found[i])


@lru_cache(maxsize=1 << 16)
def _parsed(text: bytes) -> tuple[str, Labels, str | None, tuple[str, ...]]:
    name, labels, dimension, values = orjson.loads(text)
    return name, tuple((label, value) for label, value in labels), dimension, tuple(values)
