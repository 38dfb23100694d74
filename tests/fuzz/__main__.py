"""`python -m tests.fuzz [--seconds N] [--seed N] [--target NAME]…`: mutates the corpus until the time is over.

Run it over a build with sanitizers. An input that fails is printed and ends the run with status 1. What is new in what
a target answers cannot be seen from here, so inputs are kept by chance: the corpus drifts away from where it began.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from tests.fuzz.targets import TARGETS, mutate

KEPT = 2000


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, bytes | None]:
    """Inputs tried, and the one that failed; its traceback goes to stderr."""
    chance = random.Random(f"{name} {seed}")
    target, corpus = TARGETS[name].run, TARGETS[name].corpus()
    first = len(corpus)
    tried = 0
    end = time.monotonic() + seconds
    while tried < first or time.monotonic() < end:
        if tried < first:
            data = corpus[tried]
        else:
            data = mutate(chance.choice(corpus), chance.choice(corpus), chance)
        tried += 1
        try:
            target(data)
        except Exception:
            traceback.print_exc()
            return tried, data
        if len(data) < 20000 and chance.random() < 0.02 and name != "load":
            if len(corpus) < KEPT:
                corpus.append(data)
            else:
                corpus[chance.randrange(first, KEPT)] = data
    return tried, None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz every parser of the data plane.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    for name in names:
        tried, failed = fuzz(name, options.seconds / len(names), options.seed)
        print(f"{name}: {tried} inputs", flush=True)
        if failed is not None:
            print(f"{name} fails for {failed!r}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
