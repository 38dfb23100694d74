"""Which versions answer what was decided, in shares, and how much of it changes hands between two decisions."""

from __future__ import annotations

from collections.abc import Mapping

from graylb.model.snapshot import Fallback, Service, Subset
from graylb.release.selectors import select

Shares = dict[str, float]
"""Version (or NOBODY) -> share; the sum is 1."""

NOBODY = "503"
ANY = "any instance"
NOBODY = "503 (no instance)"
"""In the place of a version: no name of one holds a space."""


def served(service: Service, wanted: Subset, fallback: Fallback | None = None) -> Shares:
    """The versions that answer requests for a subset: its own, else down the fallback ladder, by instance weight.

    Instances of weight 0 answer nothing; health is not known here. Of a service without any instance the version that
    is wanted is told, as if it had some: they may be known elsewhere. fallback: of a rule, else the service's.
    """
    if not service.instances:
        return {wanted.version if wanted.version is not None else ANY: 1.0}
    ladder = [wanted]
    if (fallback := fallback or service.fallback) != "strict":
        ladder.append(Subset(version=service.stable))
    if fallback == "any":
        ladder.append(Subset())
    for subset in ladder:
        weights: dict[str, int] = {}
        for number in select(subset, service.instances):
            instance = service.instances[number]
            if instance.weight > 0:
                weights[instance.version] = weights.get(instance.version, 0) + instance.weight
        if weights:
            total = sum(weights.values())
            return {version: weight / total for version, weight in weights.items()}
    return {NOBODY: 1.0}


def mixed(parts: Mapping[str, float], shares: Mapping[str, Shares]) -> Shares:
    """Shares of a draw among parts with these weights, each of which has shares of its own."""
    total = sum(parts.values())
    found: Shares = {}
    for part, weight in parts.items():
        for version, share in shares[part].items():
            found[version] = found.get(version, 0.0) + share * weight / total
    return found


def shift(before: Shares, after: Shares) -> dict[tuple[str, str], float]:
    """(version before, version after) -> share of requests that no key names, such that as few as possible change.

    A version keeps what it has up to its new share. What is over goes to the versions that grow, in proportion to
    their growth: of a draw nobody can say more, as the same request may fall anywhere the next time.
    """
    found = {(name, name): min(share, after[name]) for name, share in before.items() if name in after}
    gives = {name: share - after.get(name, 0.0) for name, share in before.items() if share > after.get(name, 0.0)}
    takes = {name: share - before.get(name, 0.0) for name, share in after.items() if share > before.get(name, 0.0)}
    growth = sum(takes.values())
    for giver, over in gives.items():
        for taker, grown in takes.items():
            found[giver, taker] = over * grown / growth
    return {pair: share for pair, share in found.items() if share > 0}
