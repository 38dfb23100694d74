"""Prometheus's face of the figures: the workers' slabs and what the control process adds, by prometheus_client.

`render` takes some 5 us a line, so whoever serves it does so beside its event loop. What nobody needs is left out: a
histogram without observations, errors and statuses that have not occurred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

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
            counts = zip((*LE, "+Inf"), (*each.cells.up_to(EDGES), total), strict=True)
            histogram.add_metric([value for _, value in each.labels], list(counts), each.cells[_slab.BUCKETS] / 1e6)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if members[0].kind == "counter":
        family = CounterMetricFamily(name.removesuffix("_total"), text, labels=labels)
    else:
        family = GaugeMetricFamily(name, text, labels=labels)
    for each in members:
        family.add_metric([value for _, value in each.labels], each.value)
    return family
