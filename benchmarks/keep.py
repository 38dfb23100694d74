"""The results folder: raw figures as JSON, and the page over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from benchmarks import report
from benchmarks.control import verdict as control
from benchmarks.faults import verdict as faults
from benchmarks.h2 import run as h2
from benchmarks.h2 import spec, streams, tls
from benchmarks.load import attribute, bodies, idle, observe, overload, pace, slow, workers
from benchmarks.load.cases import CASES
from benchmarks.load.peers import KINDS
from benchmarks.soak import verdict

RESULTS = Path(__file__).parent / "results"
TITLES = {case.name: case.title for case in CASES} | {name: kind.title for name, kind in KINDS.items()}
PAGES: dict[str, report.Page] = {
    "load": report.load_page,
    "bodies": bodies.page,
    "pace": pace.page,
    "workers": workers.page,
    "slow": slow.page,
    "overload": overload.page,
    "idle": idle.page,
    "observe": observe.page,
    "attribute": attribute.page,
    "micro": report.micro_page,
    "h2": h2.page,
    "tls": tls.page,
    "streams": streams.page,
    "h2spec": spec.page,
    "control": control.page,
    "soak": verdict.page,
    "faults": faults.page,
}
"""What is measured, in the order of the page."""


def keep(folder: Path, kind: str, result: dict[str, Any], complete: bool) -> None:
    """Writes the raw result, then the page over it and the other kinds' last ones."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "" if complete else "partial-"
    (folder / f"{prefix}{kind}.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    found: dict[str, dict[str, Any]] = {}
    for each in PAGES:
        raw = folder / f"{prefix}{each}.json"
        if raw.exists():
            found[each] = orjson.loads(raw.read_bytes())
    page = folder / ("latest.md" if complete else "partial.md")
    page.write_text(report.page(found, PAGES, TITLES))
    print(f"wrote {page}")
