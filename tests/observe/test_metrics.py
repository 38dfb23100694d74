"""The table of metrics: its page, its names, and what the code counts."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from graylb import _slab
from graylb.control.alarms import ALARMS
from graylb.observe.exposition import EDGES, families, render
from graylb.observe.metrics import BOUNDS, BY_NAME, METRICS, Metric, page
from graylb.observe.slabs import Slabs

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current() -> None:
    """Made by `graylb.observe.metrics.page()`."""
    assert (ROOT / "docs" / "metrics.md").read_text() == page()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_are_as_prometheus_wants_them(metric: Metric) -> None:
    """https://prometheus.io/docs/practices/naming: counters end in _total, units are base units, in the plural."""
    assert re.fullmatch(r"graylb_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert not re.search(r"_(ms|us|milliseconds|microseconds|kb|percent)(_|$)", metric.name)
    assert metric.kind != "histogram" or metric.name.endswith("_seconds")
    assert metric.text.endswith(".")
    assert all(re.fullmatch(r"[a-z_]+", label) and label not in ("le", "instance", "job") for label in metric.labels)


def test_what_the_code_counts_is_in_the_table() -> None:
    """And what workers are said to count is counted somewhere."""
    found = set()
    for path in (*ROOT.glob("graylb/*.pyx"), *ROOT.glob("graylb/control/**/*.py")):
        found |= set(re.findall(r'"(graylb_[a-z0-9_]+)"', path.read_text()))
    assert found == set(BY_NAME), found ^ set(BY_NAME)


def test_every_alarm_is_told_of() -> None:
    assert set(re.findall("`([a-z_]+)`", BY_NAME["graylb_alarms_total"].text)) == ALARMS.keys()


def test_no_name_is_there_twice() -> None:
    assert len(BY_NAME) == len(METRICS)


def test_bounds_are_met_within_their_error() -> None:
    for bound, bucket in zip(BOUNDS, EDGES, strict=True):
        assert abs(_slab.bucket_end(bucket - 1) / 1e6 - bound) <= bound / 32


def test_the_text_is_what_was_counted() -> None:
    of = (("service", 'a "quoted" one'), ("version", "v\\1\n"))
    slabs = Slabs(1)
    try:
        slab = _slab.Slab(_slab.Memory(slabs.fds[0]))
        slab.add_several("graylb_requests_total", (*of, ("rule", "r")), "code", ("none", "1xx", "2xx", "5xx"), 2, 7)
        for us in (100, 3000, 3000, 90_000_000):
            slab.observe("graylb_request_duration_seconds", of, us)
        slab.add("_hidden", (), 1)
        slab.add("graylb_of_somebody_else_total", (), 1)
        text, kind = render(slabs.read(), [("graylb_config_revision", (), 17)])
    finally:
        slabs.close()
    assert kind.startswith("text/plain")
    found = {(s.name, tuple(s.labels.items())): s.value for family in parse(text.decode()) for s in family.samples}
    assert not any(name.startswith("_") for name, _ in found)
    assert found["graylb_config_revision", ()] == 17
    assert found["graylb_of_somebody_else_total", ()] == 1
    requests = {dict(labels)["code"]: n for (name, labels), n in found.items() if name == "graylb_requests_total"}
    assert requests == {"2xx": 7, "5xx": 0}
    buckets = {dict(labels)["le"]: n for (name, labels), n in found.items() if name.endswith("duration_seconds_bucket")}
    assert buckets["0.0005"] == buckets["0.0025"] == 1
    assert buckets["0.005"] == buckets["60.0"] == 3
    assert buckets["+Inf"] == found["graylb_request_duration_seconds_count", of] == 4
    assert found["graylb_request_duration_seconds_sum", of] == pytest.approx(90.0061)


def test_openmetrics_shows_the_newest_exemplar_of_each_bucket_within_its_bounds() -> None:
    of = (("service", "s"), ("version", "v1"))
    slabs = Slabs(1)
    now = time.monotonic()
    times = [100, 400, 501, 700, 2500, 2501, 4900, 5001, 800_000, 90_000_000]
    try:
        slab = _slab.Slab(_slab.Memory(slabs.fds[0]))
        for number, us in enumerate(times):
            slab.observe("graylb_request_duration_seconds", of, us)
            at = round((now - 60 + number) * 1e6)
            slab.show("graylb_request_duration_seconds", of, us, at, b"%032x" % us, b"%016x" % us)
        text, kind = render(slabs.read(), (), "application/openmetrics-text; version=1.0.0")
        plain, _ = render(slabs.read(), ())
    finally:
        slabs.close()
    assert kind.startswith("application/openmetrics-text")
    assert b"trace_id" not in plain
    shown = {}
    below = 0.0
    for family in parse_openmetrics(text.decode()):
        for sample in family.samples:
            if sample.name == "graylb_request_duration_seconds_bucket":
                le = float(sample.labels["le"])
                if sample.exemplar is not None:
                    us = int(sample.exemplar.labels["trace_id"], 16)
                    assert below < sample.exemplar.value == us / 1e6 <= le
                    assert int(sample.exemplar.labels["span_id"], 16) == us
                    assert abs(float(sample.exemplar.timestamp) - (time.time() - 60)) < 30
                    shown[le] = us
                below = le
    # one is kept of each doubling of microseconds: 501 took the place of 400, 2501 of 2500, 5001 of 4900
    assert shown == {0.0005: 100, 0.001: 700, 0.005: 2501, 0.01: 5001, 1.0: 800_000, math.inf: 90_000_000}


def test_families_come_in_the_order_of_the_table() -> None:
    samples = [("graylb_build_info", (("version", "1"), ("python", "3")), 1.0), ("graylb_config_revision", (), 1.0)]
    assert [each.name for each in families((), samples)] == ["graylb_config_revision", "graylb_build_info"]
