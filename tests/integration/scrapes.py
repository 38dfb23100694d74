"""What /metrics of a real proxy tells."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse

from tests.integration import admins
from tests.integration.proxies import Proxy


def scrape(proxy: Proxy) -> dict[str, Counter[tuple[tuple[str, str], ...]]]:
    """{sample: {labels: value}} of /metrics."""
    with admins.client(proxy) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    found: dict[str, Counter[Any]] = {}
    for family in parse(answer.text):
        for sample in family.samples:
            of = found.setdefault(sample.name, Counter())
            of[tuple(sorted(sample.labels.items()))] = sample.value  # type: ignore[assignment]
    return found


def by(found: Counter[Any], label: str) -> Counter[str]:
    summed: Counter[str] = Counter()
    for labels, value in found.items():
        summed[dict(labels).get(label, "")] += value
    return +summed
