"""Slot ownership: who owns each of the 10,000 buckets of a split's sticky keys, and how a ramp changes it.

Ownership is state, not a function of the weights: only a history of who took what lets a ramp be monotone for three and
more versions. `allocate` is the pure step from one state to the next.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from urllib.parse import quote, unquote

from graylb.model.snapshot import SLOTS

Run = tuple[int, int]
"""First and last slot in the order of acquisition; descending when first > last."""

_RUN = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_EXPECTED = f"expected 'VERSION:RUNS …' with runs like '0-9499,9600' that name each slot 0..{SLOTS - 1} once"


@dataclass(frozen=True)
class Slots:
    """Each version's stack of slots, oldest first, as runs; versions sorted by name, runs as long as possible.

    Text form: `v1:0-9499 v2:9999-9500`, version names percent-escaped outside letters, digits and `_.-~`.
    """

    stacks: tuple[tuple[str, tuple[Run, ...]], ...]

    @classmethod
    def parse(cls, text: str) -> Slots:
        """Inverse of `str`. Raises ValueError unless each slot has exactly one owner."""
        stacks: dict[str, list[Run]] = {}
        owned = bytearray(SLOTS)
        for word in text.split():
            escaped, colon, runs = word.partition(":")
            name = _unescape(escaped)
            if not (name and colon and runs):
                raise ValueError(f"slots: cannot read {_short(word)}; {_EXPECTED}")
            if name in stacks:
                raise ValueError(f"slots: version {name!r} is named twice; {_EXPECTED}")
            stacks[name] = [_claim(run, owned, name) for run in runs.split(",")]
        missing = owned.find(0)
        if missing >= 0:
            raise ValueError(f"slots: slot {missing} has no owner; {_EXPECTED}")
        return cls.of(stacks)

    @classmethod
    def of(cls, stacks: Mapping[str, Iterable[Run]]) -> Slots:
        """In canonical form, without checks; versions without slots are left out."""
        merged = ((name, _merge(runs)) for name, runs in sorted(stacks.items()))
        return cls(tuple((name, runs) for name, runs in merged if runs))

    def __str__(self) -> str:
        return " ".join(f"{quote(name, safe='')}:{','.join(map(_run_text, runs))}" for name, runs in self.stacks)

    def owners(self) -> list[str]:
        """The version of each slot, 10,000 entries."""
        owners = [""] * SLOTS
        for name, runs in self.stacks:
            for first, last in runs:
                low, high = min(first, last), max(first, last)
                owners[low : high + 1] = [name] * (high - low + 1)
        return owners

    def counts(self) -> dict[str, int]:
        """Slots of each version that owns any."""
        return {name: sum(map(_length, runs)) for name, runs in self.stacks}


def allocate(previous: Slots | None, weights: Mapping[str, float], stable: str | None = None) -> Slots:
    """The ownership that `weights` ask for, reached from `previous` with the fewest moves. Raises ValueError.

    A version's quota is 10,000 × weight / sum. Without `previous` everything begins with the stable version, or with
    the heaviest one. Why each law holds:

    * Monotone: a version within less than one slot of its quota keeps what it has; the others come to stand on either
      side of their quota without crossing it, so only versions above it (their share fell) give, and only versions
      below it (their share rose) take. What keepers' fractions leave over makes the others give or take less.
    * Nothing moves between two versions whose shares stay: after each call no version is a whole slot above its quota
      while another is a whole slot below (see `_targets`), so two unchanged ones never stand on opposite sides.
      For the same reason a second call with the same weights changes nothing.
    * Shares: the differences to the quotas add up to 0 and never reach 1 on both sides, hence each is smaller than
      the number of versions. With weights whose quotas are whole slots (steps of 0.01 %) every count is exact.
    * Weight 0 or missing: the target is 0. A positive weight: the target is at least 1.
    * LIFO: slots are popped from the givers' stacks and pushed on the takers'; givers go in order, takers in reverse,
      so the opposite step is the exact inverse and gives everyone back.
    * Deterministic: exact arithmetic, ties by name with the stable version first; the mapping's order plays no part.
    """
    quotas = _quotas(weights)
    if previous is None:
        base = stable if stable in quotas else min(quotas, key=lambda name: (-quotas[name], name))
        previous = Slots.of({base: [(0, SLOTS - 1)]})
    counts = previous.counts()
    targets = _targets(counts, quotas, stable)
    order = sorted(counts.keys() | quotas.keys(), key=lambda name: (name != stable, name))
    stacks = {name: list(runs) for name, runs in previous.stacks}
    moving: list[Run] = []
    for name in order:
        surplus = counts.get(name, 0) - targets.get(name, 0)
        if surplus > 0:
            rest, popped = _pop(stacks[name], surplus)
            stacks[name] = rest
            moving += popped
    for name in reversed(order):
        deficit = targets.get(name, 0) - counts.get(name, 0)
        if deficit > 0:
            # Popping from the reversed sequence takes from its beginning, in order.
            backwards, taken = _pop([(last, first) for first, last in reversed(moving)], deficit)
            moving = [(last, first) for first, last in reversed(backwards)]
            stacks[name] = stacks.get(name, []) + taken
    return Slots.of(stacks)


def default_salt(
    service: str,
    previous_weights: Mapping[str, float] | None,
    weights: Mapping[str, float],
    previous_salt: str | None,
) -> str:
    """The salt of the release that `weights` belong to; `service` may carry a rule's name too (`users/ab`).

    A release begins when a split goes from one version to several; until then and while it is in flight the salt stays,
    because a new one would send callers elsewhere. It is derived from the service and the set of versions: another
    release draws another cohort, the same release tried again the same one.
    """
    versions = sorted(name for name, weight in weights.items() if weight > 0)
    if previous_salt is not None:
        in_flight = sum(weight > 0 for weight in (previous_weights or {}).values()) > 1
        if in_flight or len(versions) < 2:
            return previous_salt
    return hashlib.sha256(json.dumps([service, versions]).encode()).hexdigest()[:16]


def _quotas(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Slots due to each version of positive weight, to a millionth of a slot so that 0.1 + 0.2 is 0.3."""
    for name, weight in weights.items():
        if not name or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights: {name!r}: {weight!r}; expected a version name and a finite number from 0 up")
    exact = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
    if not exact:
        raise ValueError("weights: no version has a weight; expected at least one greater than 0")
    if len(exact) > SLOTS:
        raise ValueError(f"weights: {len(exact)} versions; expected at most {SLOTS}, one slot each")
    total = sum(exact.values())
    return {name: round(SLOTS * weight / total, 6) for name, weight in exact.items()}


def _targets(counts: Mapping[str, int], quotas: Mapping[str, Fraction], stable: str | None) -> dict[str, int]:
    """How many slots each version shall own; the sum is 10,000.

    Movers (a slot or more away from their quota, or newcomers) get the whole slots of their quota, then the largest
    fractions one more. If that is too much or too little in total, the units in excess go in the order that the lists
    below give. Too much: nobody ends a whole slot above the quota, as movers stand below theirs and keepers move down
    only. Too little: nobody ends a whole slot below, as movers stand above theirs and keepers move up only.
    """
    keepers = {name for name, quota in quotas.items() if name in counts and abs(counts[name] - quota) < 1}
    movers = quotas.keys() - keepers
    growers = {name for name in movers if counts.get(name, 0) < quotas[name]}
    shrinkers = movers - growers
    targets = {name: counts[name] for name in keepers}
    targets |= {name: max(1, math.floor(quotas[name])) for name in movers}
    extra = SLOTS - sum(targets.values())

    def first(names: Iterable[str], sign: int) -> str | None:
        """Farthest below (sign 1) or above (-1) the quota; on ties the stable version, then by name."""
        rank = ((sign * (targets[name] - quotas[name]), name != stable, name) for name in names)
        return min(rank, default=(0, False, None))[2]

    while extra > 0:
        name = (
            first((n for n in movers if targets[n] < quotas[n]), 1)
            or first((n for n in shrinkers if targets[n] < counts[n]), 1)  # they give less
            or first(growers, 1)
            or (stable if stable in keepers else first(keepers, 1))
            or first(quotas, 1)
        )
        assert name is not None  # quotas is never empty
        targets[name] += 1
        extra -= 1
    while extra < 0:
        name = (
            first((n for n in growers if targets[n] > max(1, counts.get(n, 0))), -1)  # they take less
            or first((n for n in shrinkers if targets[n] > 1), -1)
            or (stable if stable in keepers and targets[stable] > 1 else None)
            or first((n for n in keepers if targets[n] > 1), -1)
            or first((n for n in growers if targets[n] > 1), -1)  # all others own a single slot
        )
        assert name is not None  # no more versions than slots: somebody owns two
        targets[name] -= 1
        extra += 1
    return targets


def _length(run: Run) -> int:
    return abs(run[1] - run[0]) + 1


def _pop(stack: list[Run], count: int) -> tuple[list[Run], list[Run]]:
    """What stays, and the `count` newest slots, newest first."""
    rest, popped = list(stack), []
    while count:
        first, last = rest.pop()
        length = _length((first, last))
        if length > count:
            step = 1 if first <= last else -1
            cut = last - step * (count - 1)
            rest.append((first, cut - step))
            first, length = cut, count
        popped.append((last, first))
        count -= length
    return rest, popped


def _merge(runs: Iterable[Run]) -> tuple[Run, ...]:
    merged: list[Run] = []
    for first, last in runs:
        if merged:
            start, end = merged[-1]
            steps = {_step(start, end), _step(first, last), first - end} - {0}
            if len(steps) == 1 and abs(first - end) == 1:
                merged[-1] = (start, last)
                continue
        merged.append((first, last))
    return tuple(merged)


def _step(first: int, last: int) -> int:
    """1 ascending, -1 descending, 0 for a single slot, which may become either."""
    return (last > first) - (last < first)


def _claim(text: str, owned: bytearray, name: str) -> Run:
    found = _RUN.fullmatch(text)
    if found is None:
        raise ValueError(f"slots: cannot read the run {_short(text)} of version {name!r}; {_EXPECTED}")
    first, last = int(found[1]), int(found[2] or found[1])
    low, high = min(first, last), max(first, last)
    if high >= SLOTS:
        raise ValueError(f"slots: slot {high} of version {name!r} does not exist; {_EXPECTED}")
    taken = owned.find(1, low, high + 1)
    if taken >= 0:
        raise ValueError(f"slots: slot {taken} of version {name!r} already has an owner; {_EXPECTED}")
    owned[low : high + 1] = b"\1" * (high - low + 1)
    return first, last


def _run_text(run: Run) -> str:
    first, last = run
    return str(first) if first == last else f"{first}-{last}"


def _unescape(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"slots: the version name {_short(text)} is not percent-escaped UTF-8; {_EXPECTED}") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
