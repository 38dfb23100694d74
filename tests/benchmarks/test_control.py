"""The control plane's benchmark: quantiles, verdicts, what is put, and which runs are whole."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import parser, whole
from benchmarks.control import content, run, verdict
from benchmarks.control.node import field_of
from benchmarks.failure import BenchError
from graylb.model import keys

TRAFFIC = [{"p99_us": 2000.0, "requests": 1000}]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = verdict.quantile(values, share)
    need = math.ceil(share * len(values))
    assert sum(each <= found for each in values) >= need
    assert sum(each < found for each in values) < need


def storm(**changes: Any) -> dict[str, Any]:
    memory = [{"s": 0.0, "bytes": 50.0}, {"s": 20.0, "bytes": 100.0}, {"s": 60.0, "bytes": 104.0}]
    found = {"changes": 60_000, "sent_seconds": 60.0, "converged_s": 0.4, "memory": memory}
    traffic = {
        "calm": TRAFFIC,
        "unwatched": TRAFFIC,
        "traffic": [{"p99_us": 2900.0}],
        "cores": {"control": 0.3, "worker": 0.1},
    }
    return found | traffic | changes


LARGE = {"services": 1, "from_etcd_s": 2.5, "from_disk_s": 2.4, "cpu_s": 3.0, "control_ms": [9.0, 12.0, 90.0],
         "worker_ms": [1.0, 2.0, 3.0]}  # fmt: skip
OUTAGE = {"seconds": 600, "restart_s": 1.5, "moved": 0, "users": 200, "caught_up_s": 0.2, "traffic": TRAFFIC}
RESPAWN = {"kills": 2, "ms": [40.0, 60.0], "refused": 0, "cut": 2, "connections": 900}


@pytest.mark.parametrize(
    ("part", "found", "broken"),
    [
        ("latency", {"changes": 100, "ms": [20.0] * 99 + [90.0], "put_ms": [2.0]}, 0),
        ("latency", {"changes": 100, "ms": [20.0] * 98 + [90.0] * 2, "put_ms": [2.0]}, 1),
        ("storm", storm(), 0),
        ("storm", storm(traffic=[{"p99_us": 3100.0}]), 1),
        ("storm", storm(converged_s=1.2), 1),
        (
            "storm",
            storm(memory=[{"s": 0.0, "bytes": 1.0}, {"s": 20.0, "bytes": 100.0}, {"s": 60.0, "bytes": 106.0}]),
            1,
        ),
        ("large-1", LARGE, 0),
        ("large-100", LARGE | {"services": 100, "from_disk_s": 3.2}, 1),
        ("large-1", LARGE | {"control_ms": [19.0]}, 1),
        ("outage", OUTAGE, 0),
        ("outage", OUTAGE | {"restart_s": 2.1, "moved": 1}, 2),
        ("respawn", RESPAWN, 0),
        ("respawn", RESPAWN | {"ms": [40.0, 201.0], "refused": 1}, 2),
    ],
)
def test_the_control_plane_is_judged(part: str, found: dict[str, Any], broken: int) -> None:
    rows = verdict.rows({"parts": {part: found}})
    assert [row[-1] for row in rows].count("**broken**") == broken
    assert all(len(row) == len(verdict.HEAD) for row in rows)


def test_what_is_put_can_be_read_and_is_as_much_as_promised() -> None:
    found = content.front(1, 2) | content.many(7, 100, 50)
    read = [keys.decode(keys.ROOT + key, orjson.dumps(value), prefix="/x/") for key, value in found.items()]
    assert [sum(each.part == part for each in read) for part in ("instances", "rules", "service")] == [102, 51, 8]
    assert len({each.value.address for each in read if each.part == "instances"}) == 102


def test_which_upstream_answered() -> None:
    assert field_of(b"HTTP/1.1 200 OK\r\nX-Version: v2\r\nContent-Length: 1\r\n\r\nx", b"x-version") == "v2"
    for answer in (b"HTTP/1.1 503 No\r\nX-Version: v2\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nx-version: v2"):
        with pytest.raises(BenchError):
            field_of(answer, b"x-version")


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [
        (["control"], True),
        (["control", "--outage", "900"], True),
        (["control", "--quick"], False),
        (["control", "--only", "latency"], False),
        (["control", "--storm", "10"], False),
        (["control", "--per-second", "100"], False),
    ],
)
def test_only_whole_runs_stand_as_the_projects_figures(arguments: list[str], is_whole: bool) -> None:
    assert whole(parser().parse_args(arguments), "control") is is_whole


def test_short_forms_fill_what_is_not_given() -> None:
    asked = run.filled(parser().parse_args(["control", "--quick", "--changes", "7"]))
    assert (asked.changes, asked.storm, asked.outage) == (7, run.QUICK["storm"], run.QUICK["outage"])
