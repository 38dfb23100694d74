"""Which instances a subset picks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graylb.model.snapshot import Instance, Subset
from graylb.release import semver


def picks(subset: Subset) -> Callable[[str, tuple[tuple[str, str], ...]], bool]:
    """Whether an instance of (version, metadata) agrees with all given parts of the subset.

    A SemVer range picks only versions that read as SemVer. Raises ValueError for a malformed range.
    """
    range_ = None if subset.semver is None else semver.parse_range(subset.semver)
    wanted = set(subset.metadata)

    def holds(version: str, metadata: tuple[tuple[str, str], ...]) -> bool:
        return (
            (subset.version is None or version == subset.version)
            and (range_ is None or semver.satisfies(version, range_))
            and wanted.issubset(metadata)
        )

    return holds


def select(subset: Subset, instances: Sequence[Instance]) -> tuple[int, ...]:
    """Indices of the instances that a subset picks; weights play no part. Raises ValueError as `picks`."""
    holds = picks(subset)
    return tuple(index for index, each in enumerate(instances) if holds(each.version, each.metadata))
