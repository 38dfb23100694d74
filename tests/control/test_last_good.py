"""What was good last is there after a restart, or is known not to be sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from graylb.control.last_good import Kept, LastGood
from graylb.control.sources import Fragment

KEPT = Kept(
    "/graylb/",
    17,
    "2026-01-01T00:00:00Z",
    (
        Fragment("services/users/instances/é", b'{"address": "10.0.0.1:80", "version": "v1"}', 16, 5),
        Fragment("services/users/split", b'{"v1": 1}', 17),
    ),
)


def test_there_and_back(tmp_path: Path) -> None:
    file = LastGood(tmp_path / "x.etcd")
    assert file.read("/graylb/") is None
    assert file.problem == ""
    file.write(KEPT)
    assert LastGood(file.path).read("/graylb/") == KEPT
    assert [each.name for each in tmp_path.iterdir()] == ["x.etcd"]


def test_it_is_not_used_for_another_prefix(tmp_path: Path) -> None:
    file = LastGood(tmp_path / "x.etcd")
    file.write(KEPT)
    assert file.read("/other/") is None
    assert "is of prefix /graylb/, not /other/" in file.problem


@pytest.mark.parametrize("at", [0, 3, 30, -1])
def test_whatever_is_damaged_is_not_used(tmp_path: Path, at: int) -> None:
    file = LastGood(tmp_path / "x.etcd")
    file.write(KEPT)
    data = bytearray(file.path.read_bytes())
    data[at] ^= 1
    file.path.write_bytes(data)
    assert file.read("/graylb/") is None
    assert "is damaged" in file.problem
    file.path.write_bytes(data[: len(data) // 2])
    assert file.read("/graylb/") is None


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = LastGood(tmp_path / "none" / "x.etcd")
    file.write(KEPT)
    assert "cannot be written" in file.problem
