"""`python -m benchmarks [WHAT]`: measure, keep the raw figures, generate the page.

WHAT: load, bodies, pace, workers, slow, idle, attribute, micro, or all of these (the default); or control, which takes
long and is run by itself. A whole run writes WHAT.json and latest.md into the results folder; one that was cut short by
an option (--quick, --only, --peers, --seconds, fewer --rounds) writes partial-*.json and partial.md, which are not kept
in git.
Exit status: 0 measured, 1 a run failed and nothing was written for it, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.control import run as control
from benchmarks.failure import BenchError
from benchmarks.keep import RESULTS, keep
from benchmarks.load import attribute, bodies, idle, pace, slow, workers
from benchmarks.load import run as load
from benchmarks.load.cases import CASES
from benchmarks.load.peers import NAMES, STANDARD, present
from benchmarks.micro import run as micro

MEASURED = ("micro", "load", "bodies", "pace", "workers", "slow", "idle", "attribute")
ROUNDS = {"load": 5, "bodies": 3, "pace": 5, "workers": 5, "slow": 2, "micro": 15}
QUICK_ROUNDS = {"load": 3, "bodies": 1, "pace": 2, "workers": 2, "slow": 1, "micro": 5}
SECONDS = 2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of graylb.")
    made.add_argument("what", nargs="?", choices=(*MEASURED, "control", "all"), default="all")
    made.add_argument("--quick", action="store_true", help="a few cases in short rounds")
    made.add_argument("--rounds", type=positive, help="rounds (default: 3 to 15, by what is measured)")
    made.add_argument("--seconds", type=positive, help=f"seconds of each load run (default: {SECONDS}, quick: 1)")
    known = [*(case.name for case in CASES), *bodies.TITLES, *micro.GROUPS, *control.PARTS]
    made.add_argument(
        "--only", action="append", choices=known, help="this case, micro group or part of control alone; repeatable"
    )
    made.add_argument("--peers", type=peer_list, help=f"comma-separated, of {','.join(NAMES)} (default: the first 8)")
    control.add_arguments(made)
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


def whole(options: argparse.Namespace, kind: str) -> bool:
    """Whether figures are fit to stand as the project's own."""
    if kind == "control":
        return not options.only and control.whole(options)
    cut = options.quick or options.only or options.seconds or (options.rounds or 99) < ROUNDS.get(kind, 1)
    return not cut and (options.peers is None or set(options.peers) >= set(STANDARD))


def choose_peers(asked: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(peers, those that are missing from this machine). One that was asked for by name must be there."""
    names, missing = present(asked or STANDARD)
    if asked and missing:
        raise BenchError(f"asked for, but not installed: {', '.join(missing)}; pip install 'graylb[bench]'")
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}; pip install 'graylb[bench]'", flush=True)
    return names, missing


def load_plan(options: argparse.Namespace, names: Sequence[str], rounds: int) -> load.Plan:
    wanted = options.only or [case.name for case in CASES if case.quick or not options.quick]
    return load.Plan(
        cases=[case for case in CASES if case.name in wanted],
        peers=names,
        rounds=rounds,
        seconds=options.seconds or (1 if options.quick else SECONDS),
        chosen=bool(options.only),
    )


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The raw result of one kind, or None when `--only` leaves nothing of it. Raises BenchError."""
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS).get(kind, 1)
    seconds = options.seconds or (1 if options.quick else SECONDS)
    only = options.only
    if kind == "micro":
        groups = micro.wanted(only)
        return micro.run(groups, rounds) if groups else None
    if kind == "control":
        return control.run(options)
    if only and kind not in ("load", "bodies"):
        return None
    if kind == "workers":
        return workers.run(rounds, seconds)
    if kind == "attribute":
        return attribute.run(seconds)
    names, missing = choose_peers(options.peers)
    if kind == "load":
        plan = load_plan(options, names, rounds)
        found = load.run(plan) if plan.cases else None
    elif kind == "bodies":
        found = bodies.run(names, rounds, only) if not only or set(only) & set(bodies.TITLES) else None
    elif kind == "pace":
        found = pace.run(names, rounds, max(2, seconds))
    elif kind == "slow":
        found = slow.run([name for name in names if name in slow.PEERS], rounds, max(2, seconds))
    else:
        found = idle.run(names, 1_000 if options.quick else idle.CONNECTIONS)
    if found is not None:
        found["settings"]["missing"] = missing
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    kinds: list[str] = list(MEASURED) if options.what == "all" else [options.what]
    try:
        for kind in kinds:
            result = measure(kind, options)
            if result is not None:
                keep(options.out, kind, result, whole(options, kind))
    except BenchError as error:
        print(f"benchmark failed: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
