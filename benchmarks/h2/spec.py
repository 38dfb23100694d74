"""h2spec, strict cases included, against graylb and the peers: what of RFC 9113 and RFC 7541 each holds."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import programs, report, stamp
from benchmarks.failure import BenchError
from benchmarks.h2.peers import KINDS, Side
from benchmarks.h2.scene import all_up, scene
from benchmarks.load.stage import my_cores

PATIENCE = 2
"""Seconds that h2spec waits for a reaction."""


def parse(text: str) -> dict[str, Any]:
    """`tests`, `passed`, and `failed`: "section: case" of each that did not pass, of a JUnit report.

    h2spec writes what it received into the report as it is, control characters included, which XML forbids.
    """
    cases = list(ET.fromstring(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]", "?", text)).iter("testcase"))
    failed = [
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    ]
    return {"tests": len(cases), "passed": len(cases) - len(failed), "failed": failed}


def examine(port: int, work: Path, name: str, *, tls: bool = False, path: str = "/64") -> dict[str, Any]:
    """h2spec against 127.0.0.1:`port`. Raises BenchError when it does not report."""
    to = work / f"h2spec-{name}.xml"
    command = [programs.find("h2spec"), "-S", "-h", "127.0.0.1", "-p", str(port), "-P", path, "-o", str(PATIENCE),
               "-j", str(to), *(("-t", "-k") if tls else ())]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    except subprocess.TimeoutExpired:
        raise BenchError(f"h2spec, {name}: did not end within 400 s") from None
    if not to.exists():
        raise BenchError(f"h2spec, {name}: no report, status {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    found = parse(to.read_text(errors="replace"))
    if not found["tests"]:
        raise BenchError(f"h2spec, {name}: it tested nothing")
    return found


def run(names: Sequence[str]) -> dict[str, Any]:
    """The raw result, ready for JSON; each proxy over cleartext, in front of the benchmark's HTTP/2 upstream."""
    used = ("h2spec", *(KINDS[name].program for name in names if KINDS[name].program))
    environment = stamp.environment(used)
    rows = []
    side = Side("h2")
    with scene(my_cores()) as on:
        for name in names:
            with all_up(on, [name], [side]) as up:
                found = examine(up[name, side].port, on.work, name)
            rows.append({"round": 1, "case": "h2spec", "peer": name, **found})
            print(f"{name:8} {found['passed']} of {found['tests']}", *found["failed"], sep="\n    ", flush=True)
    return {"kind": "h2spec", "stamp": environment, "settings": {"peers": list(names)}, "runs": rows}


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    titles = {**titles, **{name: kind.title for name, kind in KINDS.items()}}
    rows = []
    for run in result["runs"]:
        ours = run["peer"] == report.OURS
        verdict = report.verdict(not run["failed"]) if ours else ""
        rows.append([titles[run["peer"]], f"{run['passed']} / {run['tests']}", "none fails" if ours else "", verdict])
    text = f"## HTTP/2 conformance\n\n{report.stamp_lines(result)}\nh2spec with its strict cases, over cleartext.\n\n"
    text += report.table(["proxy", "passed", "bound", "verdict"], rows)
    for run in result["runs"]:
        if run["peer"] == report.OURS and run["failed"]:
            text += "\n" + "".join(f"- {each}\n" for each in run["failed"])
    return text
