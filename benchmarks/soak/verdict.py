"""What a soak promises, and whether it held. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import report

SLOPE_BOUND = 1.0
"""MB of resident memory for each million requests."""
ENOUGH = 1_000_000
"""Requests below which a slope is noise and is not judged."""
SETTLE = 0.2
"""Part of the samples at the start that shows allocators filling up, not growth."""
FLAT = 2
"""Descriptors by which a quiet worker may differ from itself."""

Law = tuple[str, str, str, bool | None]
"""(what, figure, bound, whether it holds; None: not judged)."""


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: y for each x. 0 for fewer than two differing x."""
    if not points:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    across = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / across if across else 0.0


def settled(samples: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return samples[int(len(samples) * SETTLE) :]


def megabytes_per_million(samples: Sequence[Mapping[str, Any]]) -> float:
    return slope([(each["requests"] / 1e6, each["rss"] / 1e6) for each in settled(samples)])


def descriptor_range(samples: Sequence[Mapping[str, Any]]) -> int:
    """How far the worker's descriptors, without pooled connections, wander."""
    counts = [each["descriptors"] - each["pooled"] for each in settled(samples)]
    return max(counts) - min(counts) if counts else 0


def laws(result: Mapping[str, Any]) -> list[Law]:
    found: list[Law] = []
    samples = result.get("samples") or []
    if samples:
        requests, growth, wander = samples[-1]["requests"], megabytes_per_million(samples), descriptor_range(samples)
        judged = requests >= ENOUGH
        found.append(("requests answered", f"{requests:,}", "", None))
        found.append(("resident memory, MB per million requests", f"{growth:+.2f}", f"< {SLOPE_BOUND:.0f}",
                      growth < SLOPE_BOUND if judged else None))  # fmt: skip
        found.append(("range of the worker's descriptors", str(wander), f"≤ {FLAT}", wander <= FLAT))
        odd = result["unexpected"]
        found.append(("answers to misbehaviour that were not expected", str(len(odd)), "0", not odd))
    if tunnels := result.get("tunnels"):
        found.append(("changes applied under load", str(tunnels["changes"]), "", None))
        found.append(("requests during changes", f"{tunnels['requests']:,}", "", None))
        found.append(("of them failed", str(tunnels["failed"]), "0", tunnels["failed"] == 0))
        name = f"WebSockets cut, of {tunnels['opened']:,}"
        found.append((name, str(tunnels["cut"]), "0", tunnels["cut"] == 0))
    return found


def held(result: Mapping[str, Any]) -> bool:
    return all(holds is not False for *_, holds in laws(result))


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    verdicts = {None: "", True: report.verdict(True), False: report.verdict(False)}
    return [[what, figure, bound, verdicts[holds]] for what, figure, bound, holds in laws(result)]


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    table = report.table(["law", "figure", "bound", "verdict"], rows(result))
    return f"## Soak\n\n{report.stamp_lines(result)}\n{table}"
