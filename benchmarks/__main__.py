"""`python -m benchmarks [WHAT]`: measure, keep the raw figures, generate the page.

WHAT: load, bodies, pace, workers, slow, overload, observe, idle, attribute, micro, or all of these (the default); or
one that is run by itself: h2, tls, streams, h2spec, control. A whole run writes WHAT.json and latest.md into the
folder; one that was cut short by an option (--quick, --only, --peers, --seconds, fewer --rounds) writes
partial-*.json and partial.md, which are not kept in git.
Exit status: 0 measured, 1 a run failed and nothing was written for it, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.control import run as control
from benchmarks.failure import BenchError
from benchmarks.h2 import peers as h2_peers
from benchmarks.h2 import run as h2
from benchmarks.h2 import scene, spec, streams, tls
from benchmarks.h2.cases import CASES as H2_CASES
from benchmarks.h2.cases import Case as H2Case
from benchmarks.keep import RESULTS, keep
from benchmarks.load import attribute, bodies, idle, observe, overload, pace, slow, workers
from benchmarks.load import run as load
from benchmarks.load.cases import CASES
from benchmarks.load.peers import NAMES, STANDARD, present
from benchmarks.micro import run as micro

OWN = ("h2", "tls", "streams", "h2spec", "control")
MEASURED = ("micro", "load", "bodies", "pace", "workers", "slow", "overload", "observe", "idle", "attribute")
ROUNDS = {
    "h2": 5, "tls": 5, "load": 5, "bodies": 3, "pace": 5, "workers": 5, "slow": 2, "overload": 3, "observe": 10,
    "micro": 15,
}  # fmt: skip
QUICK_ROUNDS = {
    "h2": 2, "tls": 2, "load": 3, "bodies": 1, "pace": 2, "workers": 2, "slow": 1, "overload": 1, "observe": 4,
    "micro": 5,
}  # fmt: skip
SECONDS = 2
STANDARDS = {"h2": h2_peers.NAMES, "tls": tls.PEERS, "streams": h2_peers.NAMES, "h2spec": h2_peers.NAMES}
"""Peers of a whole run of what has its own."""
ALL_NAMES = tuple(dict.fromkeys((*NAMES, *h2_peers.NAMES)))
Chosen = TypeVar("Chosen", H2Case, tls.Case)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of graylb.")
    made.add_argument("what", nargs="?", choices=(*MEASURED, *OWN, "all"), default="all")
    made.add_argument("--quick", action="store_true", help="a few cases in short rounds")
    made.add_argument("--rounds", type=positive, help="rounds (default: 3 to 15, by what is measured)")
    made.add_argument("--seconds", type=positive, help=f"seconds of each load run (default: {SECONDS}, quick: 1)")
    cases = (*CASES, *H2_CASES, *tls.CASES)
    known = [*(case.name for case in cases), *bodies.TITLES, *micro.GROUPS, *control.PARTS]
    made.add_argument(
        "--only", action="append", choices=known, help="this case, micro group or part of control alone; repeatable"
    )
    made.add_argument(
        "--peers", type=peer_list, help=f"comma-separated, of {','.join(ALL_NAMES)} (default: by what is measured)"
    )
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
        if name not in ALL_NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(ALL_NAMES)}")
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError("a name stands twice")
    return names


def whole(options: argparse.Namespace, kind: str) -> bool:
    """Whether figures are fit to stand as the project's own."""
    if kind == "control":
        return not options.only and control.whole(options)
    cut = options.quick or options.only or options.seconds or (options.rounds or 99) < ROUNDS.get(kind, 1)
    return not cut and (options.peers is None or set(options.peers) >= set(STANDARDS.get(kind, STANDARD)))


def choose_peers(asked: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(peers, those that are missing from this machine). One that was asked for by name must be there."""
    names, missing = present(asked or STANDARD)
    if asked and missing:
        raise BenchError(f"asked for, but not installed: {', '.join(missing)}; pip install 'graylb[bench]'")
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}; pip install 'graylb[bench]'", flush=True)
    return names, missing


def choose_cases(options: argparse.Namespace, cases: Sequence[Chosen]) -> list[Chosen]:
    """Those that `--only` names, else with --quick the quick ones, else all."""
    if options.only:
        return [case for case in cases if case.name in options.only]
    return [case for case in cases if case.quick or not options.quick]


def over_h2(kind: str, options: argparse.Namespace, rounds: int, seconds: int) -> dict[str, Any] | None:
    """h2, tls, streams or h2spec, whose peers are others. Raises BenchError, also for a peer that has no part in it."""
    asked = options.peers or STANDARDS[kind]
    for name in asked:
        if name not in h2_peers.KINDS:
            raise BenchError(f"{kind}: {name} has no part in it, expected some of {', '.join(h2_peers.NAMES)}")
    names, missing = scene.present(asked, asked if options.peers else scene.NEEDED)
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}", flush=True)
    if kind == "h2":
        chosen = choose_cases(options, H2_CASES)
        found = h2.run(names, chosen, rounds, seconds) if chosen else None
    elif kind == "tls":
        some = choose_cases(options, tls.CASES)
        found = tls.run(names, some, rounds, seconds) if some else None
    elif kind == "streams":
        found = streams.run(names, streams.QUICK if options.quick else streams.Size())
    else:
        found = spec.run(names)
    if found is not None:
        found["settings"]["missing"] = missing
    return found


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
    if kind in STANDARDS:
        return over_h2(kind, options, rounds, seconds)
    if only and kind not in ("load", "bodies"):
        return None
    if kind == "workers":
        return workers.run(rounds, seconds)
    if kind == "overload":
        return overload.run(rounds, max(3, seconds))
    if kind == "observe":
        return observe.run(rounds, seconds)
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
