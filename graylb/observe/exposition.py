"""Prometheus's face of the figures: the workers' slabs and what the control process adds, by prometheus_client.

`render` takes some 5 us a line, so whoever serves it does so beside its event loop. What nobody needs is left out: a
histogram without observations, errors and statuses that have not occurred.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Exemplar

from graylb import _slab
from graylb.observe.metrics import BOUNDS, BY_NAME, METRICS, SHOWN_AT_ZERO
from graylb.observe.slabs import Labels, Series

Sample = tuple[str, Labels, float]
"""Of the control process: name, labels, value."""
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

SPARSE = frozenset(("graylb_errors_total", "graylb_decisions_total"))
"""Many cells that are seldom anything but 0."""


def _edge(seconds: float) -> int:
    """The bucket whose beginning is next to a bound."""
    us = round(seconds * 1e6)
    bucket = _slab.bucket_of(us)
    begin, end = _slab.bucket_end(bucket - 1), _slab.bucket_end(bucket)
    return bucket + 1 if end - us < us - begin else bucket


EDGES = [_edge(bound) for bound in BOUNDS]
LE = [f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in BOUNDS]


def render(series: Iterable[Series], control: Iterable[Sample], accept: str = "") -> tuple[bytes, str]:
    """The page and its content type. accept: the request's header; it may ask for OpenMetrics."""
    encoder, content_type = choose_encoder(accept)
    return encoder(_Collected(lambda: families(series, control))), content_type


class _Collected:
    """What prometheus_client takes for a registry."""

    def __init__(self, collect: Callable[[], Iterator[Family]]) -> None:
        self.collect = collect


def families(series: Iterable[Series], control: Iterable[Sample]) -> Iterator[Any]:
    """Every family of the table that has samples, in its order, and then what the table does not know."""
    found: dict[str, list[Series]] = {}
    for each in series:
        if not each.name.startswith("_") and _tells(each):
            found.setdefault(each.name, []).append(each)
    for name, labels, value in control:
        metric = BY_NAME[name]
        found.setdefault(name, []).append(Series(name, metric.kind, labels, value))  # type: ignore[arg-type]
    order = {metric.name: number for number, metric in enumerate(METRICS)}
    for name in sorted(found, key=lambda name: (order.get(name, len(order)), name)):
        yield _family(name, found[name])


def _tells(each: Series) -> bool:
    """Whether a series is worth a line."""
    if each.cells is not None:
        return each.cells.total() > 0
    if each.value:
        return True
    last, value = each.labels[-1] if each.labels else ("", "")
    return each.name not in SPARSE and (last not in ("code", "grpc_code") or value in SHOWN_AT_ZERO)


def _family(name: str, members: list[Series]) -> Family:
    known = BY_NAME.get(name)
    text = known.text if known else ""
    labels = [label for label, _ in members[0].labels]
    if members[0].kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for each in members:
            assert each.cells is not None
            total = each.cells.total()
            counts = zip((*LE, "+Inf"), (*each.cells.up_to(EDGES), total), _exemplars(each.exemplars), strict=True)
            buckets = [(le, count, one) if one else (le, count) for le, count, one in counts]
            histogram.add_metric([value for _, value in each.labels], buckets, each.cells[_slab.BUCKETS] / 1e6)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if members[0].kind == "counter":
        family = CounterMetricFamily(name.removesuffix("_total"), text, labels=labels)
    else:
        family = GaugeMetricFamily(name, text, labels=labels)
    for each in members:
        family.add_metric([value for _, value in each.labels], each.value)
    return family


def _exemplars(of: _slab.Sum | None) -> list[Exemplar | None]:
    """One for each `le`, the newest that was more than the bound before and not more than it; None: there is none."""
    found: list[Exemplar | None] = [None] * (len(BOUNDS) + 1)
    newest = [0] * len(found)
    if of is None:
        return found
    offset = time.time() - time.monotonic()
    for us, at_us, trace_id, span_id in of.exemplars():
        number = bisect_left(BOUNDS, us / 1e6)
        if at_us > newest[number]:
            newest[number] = at_us
            labels = {"trace_id": trace_id, "span_id": span_id}
            found[number] = Exemplar(labels, us / 1e6, round(at_us / 1e6 + offset, 3))
    return found
