"""`python -m benchmarks.faults`: rows of the score-card of docs/reliability.md, graylb beside its peers.

With --only ROW (repeatable) these rows alone; with --quick shorter ones, of graylb alone unless --peers says otherwise.
A whole run writes faults.json and latest.md into the results folder and the table of docs/reliability.md, any other
partial-faults.json and partial.md.
Exit status: 0 all is as promised, 1 something is not, or a run failed; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import compileall
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import graylb
from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.faults import bodies, deaths, drains, exhaustion, instances, overload, panic, verdict
from benchmarks.faults.peers import NAMES, present
from benchmarks.faults.scene import Scene
from benchmarks.keep import RESULTS, keep
from benchmarks.load import slow
from benchmarks.load.idle import raise_limit
from benchmarks.load.stage import my_cores

ROUNDS = 3
"""Of slow clients: of one, the 99th percentiles of two seconds each say little."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin; written by a whole `make faults` -->", "<!-- faults: end -->"
Figures = dict[str, Any]
Measured = Iterator[tuple[str, str, Callable[[], Figures]]]
"""(case, peer, what measures it)."""


def row_7(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for fault in ("killed", "reset", "late") if quick else instances.FAULTS:
        for name in names:
            yield (
                fault,
                name,
                partial(instances.measure, scene, name, fault, turns=3 if fault == "killed" and not quick else 1),
            )


def row_8(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for name in names:
        yield "killed", name, partial(deaths.killed, scene, name, kills=2 if quick else 5)
    if "graylb" in names:
        yield "hung", "graylb", partial(deaths.hung, scene)


def row_10(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    think, bound = (0.8, 2.0) if quick else (drains.THINK, drains.BOUND)
    for name in names:
        yield "drain", name, partial(drains.measure, scene, name, think=think, bound=bound)


def row_15(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    """By the suite of slow clients, with its medians of rounds; it has no configuration of Envoy that limits heads."""
    rounds = 1 if quick else ROUNDS
    crowds = {"heads": 500, "bodies": 100, "readers": 20} if quick else slow.CROWDS
    for name in names:
        if name in slow.PEERS:
            known: dict[str, list[Figures]] = {}
            for case in crowds:
                yield case, name, partial(_slow, name, case, crowds, rounds, known)


def _slow(name: str, case: str, crowds: Mapping[str, int], rounds: int, known: dict[str, list[Figures]]) -> Figures:
    """All of a proxy's crowds are measured with the first one."""
    if not known:
        for run in slow.run([name], rounds, 2, crowds)["runs"]:
            known.setdefault(run["case"], []).append(run)
    there, nobody = known[case], known["nobody"]
    figures: Figures = {"crowd": there[0]["crowd"]}
    if "closed" in there[0]:
        figures |= {"closed": min(run["closed"] for run in there), "longest": max(run["longest"] for run in there)}
    ratio = statistics.median(run["p99_us"] / quiet["p99_us"] for run, quiet in zip(there, nobody, strict=True))
    return {**figures, "ratio": ratio, "p99_ms": statistics.median(run["p99_us"] for run in there) / 1000}


def row_18(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for name in names:
        yield "overload", name, partial(overload.surplus, scene, name, seconds=2.0 if quick else 4.0)


def row_19(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for name in names:
        yield "amplified", name, partial(overload.amplified, scene, name, seconds=1.0 if quick else 3.0)


def row_20(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for name in names:
        yield "panic", name, partial(panic.measure, scene, name, seconds=0.5 if quick else 1.0)


def row_21(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for way in bodies.HEADS:
        for name in names:
            yield way, name, partial(bodies.measure, scene, name, way, seconds=1.5 if quick else 3.0)


def row_22(scene: Scene, names: Sequence[str], quick: bool) -> Measured:
    for what in exhaustion.TITLES:
        for name in names:
            if name == "graylb" or what not in exhaustion.ALONE:
                yield what, name, partial(exhaustion.measure, scene, name, what)


ROWS: dict[str, Callable[[Scene, Sequence[str], bool], Measured]] = {
    "7": row_7, "8": row_8, "10": row_10, "15": row_15, "18": row_18, "19": row_19, "20": row_20, "21": row_21,
    "22": row_22,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.faults", description="The fault suite of graylb.")
    made.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}; repeatable")
    made.add_argument("--peers", type=_names, help=f"comma-separated, of {','.join(NAMES)} (default: all)")
    made.add_argument("--quick", action="store_true", help="short, graylb alone")
    made.add_argument("--out", type=Path, default=RESULTS, help="results folder")
    return made


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(NAMES)}")
    return names


def placed(document: str, section: str) -> str:
    """The document with that section between its marks. Raises BenchError where there are none."""
    start, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{DOCUMENT.name} has no place for the figures, between {BEGIN!r} and {END!r}")
    return f"{start}{begin}\n{section}{end}{after}"


def attempt(measure: Callable[[], Figures]) -> Figures:
    """What it found; where it failed, why: the rest of a run of ten minutes goes on without it."""
    try:
        return measure()
    except BenchError as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        print(said, file=sys.stderr, flush=True)
        return {"error": said}


def run(wanted: Sequence[str], names: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """The raw result, ready for JSON; tells each row as it is known. Raises BenchError."""
    raise_limit(max(slow.CROWDS.values()) + 2_000)
    # as pip leaves it: where PYTHONDONTWRITEBYTECODE is set, each start from a checkout would compile all of graylb
    compileall.compile_dir(Path(graylb.__file__).parent, quiet=2)
    environment = stamp.environment(("cc", *(name for name in names if name != "graylb")))
    result: dict[str, Any] = {"kind": "faults", "stamp": environment, "settings": {"peers": list(names)}, "rows": {}}
    with tempfile.TemporaryDirectory(prefix="graylb-faults-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        scene = Scene(work, my_cores(), 0.5 if quick else 0.8)
        for row in wanted:
            began = time.monotonic()
            result["rows"][row] = []
            for case, name, measure in ROWS[row](scene, names, quick):
                print(f"row {row}, {case}, {name} …", flush=True)
                result["rows"][row].append({**attempt(measure), "case": case, "peer": name})
            print(f"\n{report.table(verdict.HEAD, verdict.rows(result, [row]))}", flush=True)
            print(f"({time.monotonic() - began:.0f} s)\n", flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    asked = options.peers or (("graylb",) if options.quick else NAMES)
    names, missing = present(asked)
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}; pip install 'graylb[bench]'", flush=True)
    wanted = [row for row in ROWS if not options.only or row in options.only]
    try:
        result = run(wanted, names, quick=options.quick)
    except BenchError as error:
        print(f"the fault suite failed: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("the fault suite was stopped", file=sys.stderr)
        return 130
    result["settings"]["missing"] = missing
    print(report.table(verdict.HEAD, verdict.rows(result)))
    whole = not options.quick and not options.only and set(names) == set(NAMES)
    keep(options.out, "faults", result, whole)
    if whole and options.out == RESULTS:
        DOCUMENT.write_text(placed(DOCUMENT.read_text(), verdict.section(result)))
    return 0 if verdict.held(result) else 1


if __name__ == "__main__":
    sys.exit(main())
