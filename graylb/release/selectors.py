"""Which instances a subset picks."""

from __future__ import annotations

from collections.abc import Sequence

from graylb.model.snapshot import Instance, Subset
from graylb.release import semver


def select(subset: Subset, instances: Sequence[Instance]) -> tuple[int, ...]:
    """Indices of the instances on which all given parts of the subset agree; weights play no part.

    A SemVer range picks only versions that read as SemVer. Raises ValueError for a malformed range.
    """
    range_ = None if subset.semver is None else semver.parse_range(subset.semver)
    wanted = set(subset.metadata)
    return tuple(
        index
        for index, instance in enumerate(instances)
        if (subset.version is None or instance.version == subset.version)
        and (range_ is None or semver.satisfies(instance.version, range_))
        and wanted.issubset(instance.metadata)
    )
