"""What the score-card promises, held against what was measured, side by side with the others. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report
from benchmarks.faults.peers import NAMES, TITLES

OURS = "graylb"
Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is measured of each proxy. text: its figure in words. goal: in words, and `holds` judges it."""

    what: str
    text: Callable[[Figures], str]
    goal: str = ""
    holds: Callable[[Figures], bool] | None = None


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _of(bad: int, asked: int) -> str:
    return f"{bad:,} of {asked:,}"


def _fault(title: str, goal: str = "", holds: Callable[[Figures], bool] | None = None) -> Line:
    return Line(
        f"{title}: failed GETs, doubled POSTs",
        lambda x: f"{_of(x['failed_gets'], x['gets'])}, {x['doubled_posts']}",
        goal,
        holds,
    )


def _nothing_lost(x: Figures) -> bool:
    return bool(x["failed_gets"] == 0 and x["doubled_posts"] == 0)


def _respawn(x: Figures) -> str:
    if not x["lives"]:
        return "the proxy ends"
    return f"{statistics.median(x['ms']):.0f} ms, worst {max(x['ms']):.0f} ms; {x['refused']:,} refused"


def _drained(x: Figures) -> str:
    ends = "does not end" if x["ended_s"] is None else f"ends after {x['ended_s']:.1f} s"
    goaway = {None: "", True: ", GOAWAY", False: ", no GOAWAY"}[x["goaway"]]
    return f"{x['finished']} of {x['in_flight']} finish, {x['told_close']} with Connection: close{goaway}; {ends}"


def _drain_holds(x: Figures) -> bool:
    in_time = x["ended_s"] is not None and x["ended_s"] <= x["bound_s"] + 2.5
    return x["finished"] == x["told_close"] == x["in_flight"] and x["goaway"] is not False and in_time


def _phase(name: str) -> Callable[[Figures], Figures]:
    def find(x: Figures) -> Figures:
        found: Figures = x["phases"][name]
        return found

    return find


def _ill(x: Figures) -> str:
    half = _phase("half")(x)
    return f"{_of(half['failed'], half['asked'])}; {half['ill']:.0%} to ill ones"


def _panic(x: Figures) -> str:
    found = _phase("three of four")(x)
    return f"{found['largest']:.0%} to the busiest, {_of(found['failed'], found['asked'])} failed"


def _again(x: Figures) -> str:
    found = _phase("none again")(x)
    return f"{_of(found['failed'], found['asked'])}; {found['largest']:.0%} to the busiest"


def _crowd(x: Figures) -> str:
    stayed = f"; {x['closed']:,} closed" if "closed" in x else ""
    last = f", the last after {x['longest']:.1f} s" if x.get("closed") else ""
    return f"{x['ratio']:.2f} ({x['p99_ms']:.1f} ms) beside {x['crowd']:,}{stayed}{last}"


def _broken(x: Figures) -> str:
    failed = "" if x["failed"] is None else f", {x['failed']} failed"
    return f"{'goes on' if x['lives'] else 'exits'}{failed}; back after {_seconds(x['recovered_s'])}"


def _unbroken(x: Figures) -> bool:
    return bool(x["lives"]) and not x["failed"] and x["recovered_s"] is not None and x["recovered_s"] <= 1.0


LINES: dict[str, dict[str, Line]] = {
    "7": {
        "killed": _fault("one of two instances killed", "0, 0", _nothing_lost),
        "frozen": _fault("frozen", "–, 0", lambda x: x["doubled_posts"] == 0),
        "reset": _fault("resets on each request", "–, 0", lambda x: x["doubled_posts"] == 0),
        "refuse": _fault("port closed and opened", "–, 0", lambda x: x["doubled_posts"] == 0),
        "stall": _fault("moves nothing", "–, 0", lambda x: x["doubled_posts"] == 0),
        "garbage": _fault("answers no HTTP", "–, 0", lambda x: x["doubled_posts"] == 0),
        "half": _fault("answers cut in half", "–, 0", lambda x: x["doubled_posts"] == 0),
        "late": _fault("answers 300 ms late", "0, 0", _nothing_lost),
        "lossy": _fault("5 % of segments lost", "0, 0", _nothing_lost),
    },
    "8": {
        "killed": Line(
            "worker killed: nobody served for; connections refused", _respawn, "≤ 200 ms, 0",
            lambda x: x["lives"] and max(x["ms"]) <= 200 and x["refused"] == 0,
        ),
        "hung": Line(
            "worker hangs (watchdog of 1 s): found out and served again", lambda x: _seconds(x["served_s"]), "≤ 2 s",
            lambda x: x["served_s"] <= x["watchdog_s"] + 1.0 and x["hung"] == 1,
        ),
    },
    "10": {
        "drain": Line(
            "told to stop, one request never answered (graylb: --drain 4)", _drained,
            "all finish, told to close; ends in time", _drain_holds,
        ),
    },
    "15": {
        "heads": Line(
            "slow heads: p99 of the others to that before", _crowd, "≤ 2, shed ≤ 10.3 s",
            lambda x: x["ratio"] <= 2 and x["closed"] == x["crowd"] and x["longest"] <= 10.3,
        ),
        "bodies": Line("slow bodies: the same", _crowd, "≤ 2", lambda x: x["ratio"] <= 2),
        "readers": Line("slow readers: the same", _crowd, "≤ 2", lambda x: x["ratio"] <= 2),
    },
    "18": {
        "overload": Line(
            "3 × the capacity: answers in time a second, to the peak; p99 of the refused",
            lambda x: f"{x['goodput']:.0f} of {x['peak']:.0f}; {x['refused_p99_ms']:.0f} ms", "≥ 90 %, ≤ 100 ms",
            lambda x: x["goodput"] >= 0.9 * x["peak"] and x["refused_p99_ms"] <= 100,
        ),
    },
    "19": {
        "amplified": Line(
            "all instances answer 503, which is retried: requests that reach them, for each",
            lambda x: f"{x['times']:.2f}", "≤ 1.2", lambda x: x["times"] <= 1.2,
        ),
    },
    "20": {
        "panic": Line(
            "two of four instances ill: failed", _ill, "0; 0 %",
            lambda x: _phase("half")(x)["failed"] == 0 and _phase("half")(x)["ill"] == 0,
        ),
        "black hole": Line(
            "three of four ill (below the panic threshold of 50 %)", _panic, "≤ 50 % to the busiest",
            lambda x: _phase("three of four")(x)["largest"] <= 0.5,
        ),
        "back": Line("all well again after all were ill: failed", _again, "0",
                     lambda x: _phase("none again")(x)["failed"] == 0),
    },
    "21": {
        way: Line(f"1 GB to a slow {to}: memory for each connection", lambda x: f"{x['mib_each']:.2f} MiB", "≤ 2 MiB",
                  lambda x: x["mib_each"] <= 2)
        for way, to in (("download", "client"), ("upload", "instance"))
    },
    "22": {
        "descriptors": Line("worker out of descriptors", _broken, "goes on; ≤ 1 s", _unbroken),
        "control": Line("control process out of descriptors", _broken, "goes on; ≤ 1 s", _unbroken),
        "disk": Line("disk full", _broken, "goes on; ≤ 1 s", _unbroken),
        "clock": Line("wall clock a day ahead, a day behind", _broken, "goes on; ≤ 1 s", _unbroken),
        "certificate": Line("certificate replaced", _broken, "goes on; ≤ 1 s", _unbroken),
    },
}  # fmt: skip
"""Row of the score-card -> case -> what is told of it."""
SHARED = {"black hole": "panic", "back": "panic"}
"""Cases that are told from the figures of another."""
HEAD = ("row", "what", "goal", *(TITLES[name] for name in NAMES), "verdict")


def found(result: Figures, row: str, case: str, peer: str) -> Figures | None:
    rows = result["rows"].get(row, [])
    wanted = SHARED.get(case, case)
    return next((each for each in rows if each["case"] == wanted and each["peer"] == peer), None)


def rows(result: Figures, only: Sequence[str] = ()) -> list[list[str]]:
    """The cells below HEAD, of what was measured; a dash where a proxy has no part in it."""
    told = []
    for row, cases in LINES.items():
        for case, line in cases.items():
            figures = {name: found(result, row, case, name) for name in NAMES}
            if (only and row not in only) or not any(figures.values()):
                continue
            ours = figures[OURS]
            judged = ours is not None and line.holds is not None
            verdict = report.verdict(_is_held(line, ours)) if judged and ours is not None else ""
            cells = [_cell(line, each) for each in figures.values()]
            told.append([row, line.what, line.goal, *cells, verdict])
    return told


def _cell(line: Line, figures: Figures | None) -> str:
    if figures is None:
        return "–"
    return "failed" if "error" in figures else line.text(figures)


def _is_held(line: Line, figures: Figures) -> bool:
    return "error" not in figures and line.holds is not None and line.holds(figures)


def held(result: Figures) -> bool:
    """Whether all that was measured of graylb is as promised."""
    return not any(cells[-1] == report.verdict(False) for cells in rows(result))


def memories(result: Figures) -> list[list[str]]:
    """Growth of the whole process tree's memory under each fault of an instance, MiB."""
    told = []
    for case, line in LINES["7"].items():
        figures = [found(result, "7", case, name) for name in NAMES]
        if any(figures):
            cells = [f"{each['memory_mib']:.1f}" if each and "error" not in each else "–" for each in figures]
            told.append([line.what.partition(":")[0], *cells])
    return told


def page(result: Figures, titles: Mapping[str, str]) -> str:
    return f"## Faults\n\n{section(result)}"


def section(result: Figures) -> str:
    """What it was measured on, and the tables."""
    text = f"{report.stamp_lines(result)}\n"
    text += "What a proxy has no part in is a dash. Configurations: `benchmarks/faults/configs`.\n\n"
    text += report.table(HEAD, rows(result))
    grown = memories(result)
    if grown:
        names = [TITLES[name] for name in NAMES]
        text += "\nGrowth of memory (PSS of the process tree) while one of two instances breaks, MiB\n\n"
        text += report.table(["fault", *names], grown)
    return text
