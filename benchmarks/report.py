"""Raw results -> one Markdown page. Pure: the same JSON gives the same text."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.failure import BenchError
from benchmarks.load.cases import CASES, LAWS, Law
from benchmarks.stats import Spread, round_ratios, spread

Row = Mapping[str, Any]
Page = Callable[[Row, Mapping[str, str]], str]
OURS = "graylb"
DISTURBED = 0.03
"""Share of the proxy's core beyond which other work makes the figures no good."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column aligned left, all others right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows]) + "\n"


def number(value: float) -> str:
    """Three significant digits or all before the point, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value: Spread) -> str:
    return f"**{value.median:.2f}** ({value.low:.2f}–{value.high:.2f})"


def verdict(held: bool) -> str:
    return "holds" if held else "**broken**"


def by_round(runs: Sequence[Row], case: str, peer: str, figure: str) -> dict[int, float]:
    """round -> figure. Raises BenchError when a round stands twice."""
    found: dict[int, float] = {}
    for run in runs:
        if run["case"] == case and run["peer"] == peer:
            if run["round"] in found:
                raise BenchError(f"{case}, {peer}: round {run['round']} stands twice in the results")
            found[run["round"]] = float(run[figure])
    return found


def median_of(runs: Sequence[Row], case: str, peer: str, figure: str) -> str:
    """The median over rounds, or a dash where the peer has no part in the case."""
    found = by_round(runs, case, peer, figure)
    return number(spread(list(found.values()), f"{case}, {peer}, {figure}").median) if found else "–"


def ratio_of(runs: Sequence[Row], case: str, other: str, figure: str, ours: str = OURS) -> str:
    """`ours` to `other`, within rounds; a dash where one of them has no part in the case."""
    mine, theirs = by_round(runs, case, ours, figure), by_round(runs, case, other, figure)
    return ratio(round_ratios(mine, theirs, f"{case}, {ours}/{other}, {figure}")) if mine and theirs else "–"


def figures(result: Row, titles: Mapping[str, str], figure: str, *, compare: bool) -> str:
    """Medians of `figure` by case and peer; with `compare` a second table of graylb's ratio to each other peer."""
    settings, runs = result["settings"], result["runs"]
    names: list[str] = settings["peers"]
    cases = settings["cases"]
    rows = [[titles.get(case, case), *(median_of(runs, case, name, figure) for name in names)] for case in cases]
    text = table(["case", *(titles.get(name, name) for name in names)], rows)
    others = [name for name in names if name != OURS]
    if not compare or OURS not in names or not others:
        return text
    ratios = [[titles.get(case, case), *(ratio_of(runs, case, other, figure) for other in others)] for case in cases]
    return text + "\n" + table(["graylb to", *(titles.get(name, name) for name in others)], ratios)


def memories(result: Row, titles: Mapping[str, str]) -> str:
    """MiB: PSS where the kernel tells it for all runs, else RSS."""
    figure = "rss_kib" if any(run["pss_kib"] is None for run in result["runs"]) else "pss_kib"
    scaled = [{**run, "mib": run[figure] / 1024} for run in result["runs"]]
    return f"{'PSS' if figure == 'pss_kib' else 'RSS'} in MiB.\n\n" + figures(
        {**result, "runs": scaled}, titles, "mib", compare=False
    )


def stamp_lines(result: Row) -> str:
    """What it was measured on, as a list."""
    stamp = result["stamp"]
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    libraries = ", ".join(f"{name} {version}" for name, version in stamp["libraries"].items())
    lines = [
        f"{stamp['date']}, commit {stamp['commit'][:12]}{' with uncommitted changes' if stamp['dirty'] else ''}",
        f"{stamp['cpu']}, {stamp['cores']} cores, {stamp['memory']}, Linux {stamp['kernel']} {stamp['machine']}",
        f"Python {stamp['python']}, {libraries}" + (f"; {versions}" if versions else ""),
    ]
    return "".join(f"- {line}\n" for line in lines)


def laws(result: Row, titles: Mapping[str, str], promised: Sequence[Law] = LAWS) -> str:
    """What is promised of the CPU per request, of the cases and peers that were measured."""
    runs, rows = result["runs"], []
    for law in promised:
        mine, theirs = (by_round(runs, law.case, name, "cpu_us") for name in (law.ours, law.other))
        if mine and theirs:
            names = f"{titles.get(law.ours, law.ours)} / {titles.get(law.other, law.other)}"
            found = round_ratios(mine, theirs, f"{law.case}, {names}")
            held = verdict(found.median <= law.bound)
            rows.append([titles.get(law.case, law.case), names, ratio(found), f"≤ {law.bound:.2f}", held])
    return table(["case", "CPU µs per request", "ratio", "bound", "verdict"], rows) if rows else "None was measured.\n"


def without_many(result: Row) -> Row:
    """The comparison of many rules has a case and a peer of its own, which stand among the laws only."""
    settings, many = result["settings"], {case.name for case in CASES if case.many}
    cases = [case for case in settings["cases"] if case not in many]
    names = [name for name in settings["peers"] if name != "graylb-10k"]
    return {**result, "settings": {**settings, "cases": cases, "peers": names}}


def sections(title: str, result: Row, parts: Sequence[tuple[str, str]], titles: Mapping[str, str]) -> str:
    """The section of a load benchmark: what it was measured on and whether anything disturbed it, then its tables."""
    settings = result["settings"]
    length = f"{settings['rounds']} rounds of {settings['seconds']} s for each case and proxy"
    cores = f"proxy on core {settings['proxy_cores']}, load and upstreams on {settings['load_cores']}"
    text = f"## {title}\n\n{stamp_lines(result)}- {length}; {cores}\n"
    if settings.get("missing"):
        text += (
            f"- not installed, so not measured: {', '.join(titles.get(each, each) for each in settings['missing'])}\n"
        )
    others = statistics.median(run["disturbance"] for run in result["runs"])
    if others > DISTURBED:
        text += f"- **disturbed**: others took {others:.0%} of the proxy's core in the median run\n"
    text += "\nMedians over rounds; a ratio is the median of the ratios within each round (lowest–highest).\n"
    text += "A dash: no part of the case (slow peers run some cases only).\n"
    return text + "".join(f"\n### {heading}\n\n{made}" for heading, made in parts)


def load_page(result: Row, titles: Mapping[str, str]) -> str:
    shown = without_many(result)
    parts = [
        ("Laws", laws(result, titles)),
        ("CPU µs per request (whole process tree)", figures(shown, titles, "cpu_us", compare=True)),
        ("Requests per second", figures(shown, titles, "rps", compare=True)),
        ("Median latency in µs, at saturation", figures(shown, titles, "p50_us", compare=False)),
        ("Memory of the whole process tree under load", memories(shown, titles)),
    ]
    return sections("Load", result, parts, titles)


def micro_page(result: Row, titles: Mapping[str, str]) -> str:
    settings, rows = result["settings"], []
    for name in settings["operations"]:
        values = [run["ns"] for run in result["runs"] if run["operation"] == name]
        found = spread(values, name)
        rows.append([name, number(found.median), f"{number(found.low)}–{number(found.high)}"])
    text = f"## Micro\n\n{stamp_lines(result)}- {settings['rounds']} interleaved rounds\n\n"
    text += table(["operation", "ns", "lowest–highest"], rows)
    growth = []
    for law in settings["growth"]:
        small, large = (
            {run["round"]: float(run["ns"]) for run in result["runs"] if run["operation"] == law[end]}
            for end in ("small", "large")
        )
        found = round_ratios(large, small, f"{law['large']} / {law['small']}")
        held = verdict(found.median < law["below"])
        growth.append([f"{law['large']} / {law['small']}", ratio(found), f"< {law['below']}", held])
    if growth:
        text += "\n" + table(["growth", "ratio", "law", "verdict"], growth)
    return text


def page(found: Mapping[str, Row], pages: Mapping[str, Page], titles: Mapping[str, str]) -> str:
    """The whole page: what `pages` makes of each raw result, in their order. `titles`: name -> what readers see."""
    text = "# Benchmark results\n\nGenerated by `make bench`; how to read it: `docs/performance.md`.\n"
    return text + "".join("\n" + make(found[kind], titles) for kind, make in pages.items() if kind in found)
