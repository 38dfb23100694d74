from __future__ import annotations

import pytest

from graylb.model.snapshot import Instance, Subset
from graylb.release.selectors import select

INSTANCES = (
    Instance("127.0.0.1:1", "v1.2.0", metadata=(("env", "prod"),)),
    Instance("127.0.0.1:2", "v2.0.0-rc1", metadata=(("env", "gray"), ("zone", "a"))),
    Instance("127.0.0.1:3", "v2.1.0", weight=0, metadata=(("env", "gray"),)),
    Instance("127.0.0.1:4", "commit-abc123"),
    Instance("127.0.0.1:5", "v2"),
)


@pytest.mark.parametrize(
    ("subset", "picked"),
    [
        (Subset(), (0, 1, 2, 3, 4)),
        (Subset(version="v2"), (4,)),  # a name is a name: v2 is not v2.0.0
        (Subset(version="commit-abc123"), (3,)),
        (Subset(version="v3"), ()),
        (Subset(semver=">=1,<2"), (0,)),
        (Subset(semver="2.x"), (2, 4)),
        (Subset(semver=">=2.0.0-rc1"), (1, 2, 4)),
        (Subset(semver="!=1.2.0"), (1, 2, 4)),  # commit-abc123 is no SemVer
        (Subset(metadata=(("env", "gray"),)), (1, 2)),
        (Subset(metadata=(("env", "gray"), ("zone", "a"))), (1,)),
        (Subset(metadata=(("env", "gray"),), semver="2.x"), (2,)),
        (Subset(version="v1.2.0", metadata=(("env", "gray"),)), ()),
        (Subset(version="v2", semver="^2.1"), ()),
    ],
)
def test_all_given_parts_must_agree(subset: Subset, picked: tuple[int, ...]) -> None:
    assert select(subset, INSTANCES) == picked


def test_a_malformed_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected comparators"):
        select(Subset(semver=">>1"), INSTANCES)
