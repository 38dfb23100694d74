"""Splits in keys: what is asked for, and what a complete one says. Pure; for the leader and for commands."""

from __future__ import annotations

from graylb.control.state import StoredSplit, positive
from graylb.model import keys
from graylb.model.build import SplitRequest
from graylb.model.keys import Entry
from graylb.model.problems import ConfigErrors
from graylb.model.services import SplitPart


def request(entry: Entry, split: SplitPart, stable: str | None, former: StoredSplit | None) -> SplitRequest:
    """What is asked for. The stable version is the service's own, else the heaviest of the former split."""
    weights = positive(split.weights)
    if stable is None:
        before = former.weights if former is not None else weights
        stable = max(before, key=lambda version: before[version])
    rule = entry.name if entry.part == "rules" else None
    return SplitRequest(entry.service, rule, tuple(weights.items()), split.salt, None, stable)


def complete_in(key: str, value: bytes) -> SplitPart | None:
    """The complete split in a key's value, if there is one."""
    try:
        entry = keys.decode(key, value)
    except ConfigErrors:
        return None
    return entry.split if entry.complete else None


def stored(split: SplitPart) -> StoredSplit:
    """Of a complete one."""
    assert split.salt is not None
    assert split.slots is not None
    return StoredSplit(positive(split.weights), split.salt, split.slots)
