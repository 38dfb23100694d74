"""`python -m benchmarks [load|micro|all]`: measure, keep the raw figures, generate the table.

A whole run writes load.json, micro.json and latest.md into the results folder; one that was cut short by an option
(--quick, --only, --peers, --seconds, --rounds) writes partial-*.json and partial.md, which are not kept in git.
Exit status: 0 measured, 1 a run failed and nothing was written for it, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks import report
from benchmarks.failure import BenchError
from benchmarks.load import run as load
from benchmarks.load.cases import CASES
from benchmarks.load.peers import NAMES
from benchmarks.micro import run as micro

RESULTS = Path(__file__).parent / "results"
TITLES = {case.name: case.title for case in CASES}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of graylb.")
    made.add_argument("what", nargs="?", choices=("load", "micro", "all"), default="all")
    made.add_argument("--quick", action="store_true", help="a few cases in short rounds")
    made.add_argument("--rounds", type=positive, help="rounds (default: 7, quick: 3)")
    made.add_argument("--seconds", type=positive, help="seconds of each load run (default: 2, quick: 1)")
    known = [*TITLES, *micro.GROUPS]
    made.add_argument("--only", action="append", choices=known, help="this case or micro group alone; repeatable")
    made.add_argument("--peers", type=peer_list, default=NAMES, help=f"comma-separated (default: {','.join(NAMES)})")
    made.add_argument("--out", type=Path, default=RESULTS, help="results folder")
    return made


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def peer_list(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(NAMES)}")
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError("a name stands twice")
    return names


def load_plan(options: argparse.Namespace) -> load.Plan:
    wanted = options.only or [case.name for case in CASES if case.quick or not options.quick]
    return load.Plan(
        cases=[case for case in CASES if case.name in wanted],
        peers=options.peers,
        rounds=options.rounds or (3 if options.quick else 7),
        seconds=options.seconds or (1 if options.quick else 2),
    )


def whole(options: argparse.Namespace) -> bool:
    """Whether figures are fit to stand as the project's own."""
    cut = options.quick or options.only or options.rounds or options.seconds
    return not cut and set(options.peers) == set(NAMES)


def keep(folder: Path, kind: str, result: dict[str, Any], complete: bool) -> None:
    """Writes the raw result, then the page over it and the other kind's last one."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "" if complete else "partial-"
    (folder / f"{prefix}{kind}.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    found = {}
    for each in ("load", "micro"):
        raw = folder / f"{prefix}{each}.json"
        found[each] = orjson.loads(raw.read_bytes()) if raw.exists() else None
    page = folder / ("latest.md" if complete else "partial.md")
    page.write_text(report.page(found["load"], found["micro"], TITLES))
    print(f"wrote {page}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.what in ("micro", "all") and (groups := micro.wanted(options.only)):
            keep(options.out, "micro", micro.run(groups, options.rounds, quick=options.quick), whole(options))
        if options.what in ("load", "all") and (plan := load_plan(options)).cases:
            keep(options.out, "load", load.run(plan), whole(options))
    except BenchError as error:
        print(f"benchmark failed: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
