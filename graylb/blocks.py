"""One service -> its block: the part of a table image that is its own, and that an unchanged service keeps.

Pure. A block is the service's rulebook and, behind it, what its instances and splits make. With a `Kept` the rulebook
of rules that did not change is taken over as it is, and of an instance that is the very same object nothing is made
again: a change of one instance among many costs a few passes over all of them at C level.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import compress
from typing import Any

import orjson

from graylb import _fast, _link
from graylb.layout import COLUMN, GROUP, INSTANCE, NONE, SERVICE, TARGET, Arena
from graylb.model.snapshot import (
    GRPC_STATUSES,
    IDEMPOTENT,
    Instance,
    Retries,
    Service,
    Split,
    Subset,
    bare,
    instance_digest,
    service_digest_of,
    settings_digest,
)
from graylb.model.snapshot_faults import Fault
from graylb.model.snapshot_limits import NO_LIMITS
from graylb.release.columns import columns
from graylb.release.selectors import picks
from graylb.release.slots import Slots
from graylb.rulebook import FALLBACKS, Rulebook, rulebook

SPARE_SEEN = 256
"""Instances that are no more and that are remembered still."""
DIGEST = 32
WEIGHT = 3
"""Its place among the numbers of an instance's record."""
SPARE_KINDS = 1024
"""Kinds that no instance is of any more and that are remembered still."""


@dataclass(frozen=True, slots=True)
class Block:
    """One service compiled by itself; `_link.place` fits it into an image.

    Offsets count from the block's beginning, instances, splits and patterns from its own first one.
    """

    service: Service
    data: bytes
    record: bytes  # of the service
    instances: bytes  # records
    n_instances: int
    splits: tuple[str, ...]  # names
    patterns: tuple[str, ...]
    digest: bytes  # of the service


@dataclass(frozen=True, slots=True)
class Row:
    """All instances of a service in a row, as its block has them. base: where their texts begin in it.

    ordered: those of one version side by side, those of weight 0 apart, so that most subsets are runs of neighbours.
    runs: version -> (first, number) of those that have weight. versions: name -> number, in the order of the row.
    """

    instances: tuple[Instance, ...]
    base: int
    ordered: list[Instance]
    runs: dict[str, tuple[int, int]]
    versions: dict[str, int]
    texts: bytes
    records: bytes

    @classmethod
    def of(cls, instances: tuple[Instance, ...], base: int) -> Row:
        ordered, runs = _link.arranged(instances)
        versions: dict[str, int] = {}
        texts, records = _link.members(ordered, versions, base)
        return cls(instances, base, ordered, runs, versions, texts, records)

    def after(self, instances: tuple[Instance, ...], base: int) -> Row | None:
        """The row of these, if they differ in nothing but the weight of one that has some before and after."""
        n = len(instances)
        start, end = _link.alike(self.instances, instances)
        if n != len(self.instances) or base != self.base or start + end < n - 1:
            return None
        if start == n:
            return self
        old, new = self.instances[start], instances[start]
        if (old.address, old.version, old.weight > 0) != (new.address, new.version, new.weight > 0):
            return None
        place = _link.place_of(self.ordered, old)
        ordered = self.ordered.copy()
        ordered[place] = new
        records = bytearray(self.records)
        struct.pack_into("=I", records, place * INSTANCE.size + 4 * WEIGHT, new.weight)
        return replace(self, instances=instances, ordered=ordered, records=bytes(records))


class Kept:
    """What one service's compilation leaves for its next one.

    seen: id of an instance -> (the instance, its digest, its kind). A kind is what selectors look at: a version with
    metadata. picked: for each subset, by kind, whether it picks such instances.
    """

    def __init__(self) -> None:
        self.rulebook: Rulebook | None = None
        self.seen: dict[int, tuple[Instance, bytes, int]] = {}
        self._instances: tuple[Instance, ...] = ()
        self._digests = b""
        self.kinds: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
        self.picked: dict[Subset, bytearray] = {}
        self._row: Row | None = None
        self._bare: Service | None = None
        self._digest = b""
        self._told: tuple[int, bytes] | None = None

    def settings_digest(self, service: Service) -> bytes:
        """That of what rules, lists and instances have no part in, which is what `told` goes by."""
        now = bare(service)
        if now != self._bare:
            self._bare, self._digest, self._told = now, settings_digest(now), None
        return self._digest

    def told(self, mirrored: int, tell: Callable[[], bytes]) -> bytes:
        """What the engine is told of the service, where that is made of its bare settings and this number alone."""
        if self._told is None or self._told[0] != mirrored:
            self._told = mirrored, tell()
        return self._told[1]

    def row_of(self, instances: tuple[Instance, ...], base: int) -> Row:
        row = self._row.after(instances, base) if self._row is not None else None
        self._row = row or Row.of(instances, base)
        return self._row

    def rules_of(self, service: Service) -> Rulebook:
        if self.rulebook is None or not self.rulebook.holds_for(service):
            self.rulebook = rulebook(service)
            self.picked = {}
        return self.rulebook

    def look_up(self, instances: tuple[Instance, ...]) -> bytes:
        """Takes note of all instances and forgets others, sooner or later; their digests in a row.

        Where they differ in a few neighbours from the time before, only those are looked at.
        """
        if len(self.kinds) > 2 * len(instances) + SPARE_KINDS:
            self.seen, self.kinds, self.picked, self._instances = {}, {}, {}, ()
        start, end = _link.alike(self._instances, instances)
        fresh = instances[start : len(instances) - end]
        if len(self.seen) + len(fresh) > len(instances) + SPARE_SEEN:
            self.seen, digests = _link.look_up(instances, self.seen, self._see)
        else:
            found, own = _link.look_up(fresh, self.seen, self._see)
            self.seen |= found
            after = self._digests[len(self._digests) - DIGEST * end :]
            digests = b"".join((self._digests[: DIGEST * start], own, after))
        self._instances, self._digests = instances, digests
        return digests

    def _see(self, x: Instance) -> tuple[Instance, bytes, int]:
        return x, instance_digest(x), self.kinds.setdefault((x.version, x.metadata), len(self.kinds))

    def kinds_of(self, instances: Sequence[Instance]) -> list[int]:
        seen = self.seen
        return [seen[id(x)][2] for x in instances]

    def picks(self, subset: Subset) -> bytearray:
        """By kind: 1 where the subset picks it."""
        found = self.picked.setdefault(subset, bytearray())
        if len(found) < len(self.kinds):
            picked = picks(subset)
            found += bytes(picked(*kind) for kind in list(self.kinds)[len(found) :])
        return found


def compile_service(service: Service, kept: Kept | None = None) -> Block:
    """ValueError when it is beyond what a table can hold (named in the message)."""
    return _Members(service, kept if kept is not None else Kept()).block()


class _Members:
    """Subsets, splits and instances of one service: each written once, behind the rulebook that refers to them."""

    def __init__(self, service: Service, kept: Kept) -> None:
        self.service, self.kept = service, kept
        self.rules = kept.rules_of(service)
        self.digests = kept.look_up(service.instances)
        self.arena = Arena(0, len(self.rules.data))
        self.row = kept.row_of(service.instances, self.arena.base)
        self.weighted = sum(n for _, n in self.row.runs.values())
        self.records: list[bytes] = []
        self.subsets: dict[Subset, int] = {}
        self.versions = self.row.versions.copy()
        self.splits: list[str] = []
        self.weights: list[int] = []
        self._kinds: list[int] | None = None

    def block(self) -> Block:
        x, arena, rules = self.service, self.arena, self.rules
        records = self.row.records
        arena.add(self.row.texts)
        self.weights = memoryview(records).cast("I")[WEIGHT :: INSTANCE.size // 4].tolist()
        self._targets()
        mirrored = self._number(x.mirror.to) if x.mirror is not None else 0
        versions = b"".join(GROUP.pack(*arena.text(name)) for name in self.versions)
        digest = service_digest_of(self.kept.settings_digest(x), rules.digest, self.digests)
        settings = self._told(mirrored)
        record = SERVICE.pack(
            *rules.record, len(self.records), arena.add(b"".join(self.records)), rules.default, 0, 1,
            FALLBACKS[x.fallback], int(x.policy == "least_request"), len(x.sticky), rules.sticky,
            len(self.versions), arena.add(versions), x.health.panic, 0, len(x.instances),
            arena.add(digest), *arena.text(settings),
            x.timeouts.connect, x.timeouts.response, x.timeouts.idle,
        )  # fmt: skip
        return Block(
            x,
            rules.data + arena.data,
            record,
            records,
            len(x.instances),
            tuple(self.splits),
            rules.patterns,
            digest,
        )

    def _targets(self) -> None:
        """Those that the rulebook refers to, by its numbers, then those that only splits refer to."""
        wanted = self.rules.targets
        self.subsets = {target: n for n, target in enumerate(wanted) if isinstance(target, Subset)}
        self.records = [b""] * len(wanted)
        for n, target in enumerate(wanted):
            if isinstance(target, Subset):
                self.records[n] = self._subset(target)
            else:
                owner, split = target
                self.records[n] = self._split(owner, split if owner else self.service.split)

    def _version(self, name: str) -> int:
        return self.versions.setdefault(name, len(self.versions))

    def _number(self, subset: Subset) -> int:
        found = self.subsets.get(subset)
        if found is None:
            found = self.subsets[subset] = len(self.records)
            self.records.append(self._subset(subset))
        return found

    def _subset(self, subset: Subset) -> bytes:
        first, n, chosen = self._chosen(subset)
        weights = [self.weights[i] for i in chosen] if chosen else self.weights[first : first + n]
        items = self.arena.u32(chosen) if chosen else 0
        cells = self.arena.add(_fast.alias_cells(weights)) if len(set(weights)) > 1 else 0
        version = self._version(subset.version) if subset.version is not None else NONE
        label = self.arena.text(subset.version or subset.semver or "")
        return TARGET.pack(0, version, n, items, cells, 0, 0, 0, 0, *label, first, 0)

    def _chosen(self, subset: Subset) -> tuple[int, int, list[int]]:
        """(first, number, all of them unless they are neighbours) of the instances with weight that a subset picks."""
        if subset.semver is None and not subset.metadata:
            if subset.version is None:
                return 0, self.weighted, []
            return *self.row.runs.get(subset.version, (0, 0)), []
        if self._kinds is None:
            self._kinds = self.kept.kinds_of(self.row.ordered)
        picked = self.kept.picks(subset)
        flags = map(picked.__getitem__, self._kinds[: self.weighted])
        chosen = list(compress(range(self.weighted), flags))
        if not chosen:
            return 0, 0, []
        neighbours = chosen[-1] - chosen[0] + 1 == len(chosen)
        return chosen[0], len(chosen), [] if neighbours else chosen

    def _split(self, owner: str, split: Split | None) -> bytes:
        assert split is not None
        names = [name for name, weight in split.weights if weight > 0]
        items = b"".join(struct.pack("<II", self._version(n), self._number(Subset(version=n))) for n in names)
        columns_ = split_columns(tuple(weight for _, weight in split.weights if weight > 0))
        self.splits.append(f"{self.service.name}\0{owner}")
        seed = _fast.xxh64(split.salt.encode())
        block = self.arena.add(items), self.arena.add(columns_), self.arena.add(_owners(split.slots, tuple(names)))
        width = len(columns_) // COLUMN.size
        return TARGET.pack(1, NONE, len(names), *block, len(self.splits) - 1, width, seed, 0, 0, 0, 0)

    def _told(self, mirrored: int) -> bytes:
        def tell() -> bytes:
            return orjson.dumps(self._settings() | _mirror(self.service, mirrored))

        x = self.service
        own = not self.rules.faults and x.limits == NO_LIMITS and x.tunnels.policy == "keep"
        return self.kept.told(mirrored, tell) if own else tell()

    def _settings(self) -> dict[str, Any]:
        """What concerns connections and tunnels, for the engine. `traffic`: which versions are chosen by what."""
        x = self.service
        found: dict[str, Any] = {"name": x.name, "connections": asdict(x.connections), "tunnels": asdict(x.tunnels)}
        if x.retries != Retries():
            found["retries"] = _retries(x.retries)
        if x.timeouts.request:
            found["request_timeout"] = x.timeouts.request
        faults = [(-1, "", x.fault)] if x.fault is not None else []
        if faults or self.rules.faults:
            found["faults"] = [(n, name, _fault(fault)) for n, name, fault in (*faults, *self.rules.faults)]
        found["outliers"] = asdict(x.health.outliers)
        found["slow_start"] = asdict(x.slow_start) if x.slow_start is not None else None
        found["connections"]["bounds"] = asdict(x.limits.instance)
        found["limits"] = self._limits() if x.limits != NO_LIMITS else None
        if x.marks is not None:
            found["marks"] = {**asdict(x.marks), "stable": x.stable}
        if x.tunnels.policy != "keep":
            found["traffic"] = {
                "split": _weighted(x.split) if x.split is not None else [x.stable],
                "rules": {
                    rule.name: _weighted(rule.split) if rule.split is not None else self._found(rule.to)
                    for rule in x.rules
                },
            }
        return found

    def _limits(self) -> dict[str, Any]:
        """With numbers in the place of names: of rules, and of the fields of keys."""
        limits, rules = self.service.limits, [rule.name for rule in self.service.rules]
        rates = [
            asdict(rate) | {"fields": fields, "rule": rules.index(rate.rule) if rate.rule in rules else -1}
            for rate, fields in zip(limits.rates, self.rules.rates, strict=True)
            if rate.rule is None or rate.rule in rules
        ]
        return asdict(limits) | {"rates": rates}

    def _found(self, subset: Subset | None) -> list[str]:
        """The versions of the instances that a subset picks, be it without weight."""
        assert subset is not None
        picked = self.kept.picks(subset)
        here = set(self.kept.kinds_of(self.row.ordered))
        return sorted({version for (version, _), kind in self.kept.kinds.items() if kind in here and picked[kind]})


def _fault(fault: Fault) -> dict[str, Any]:
    """As a worker wants it: the gRPC status by its number."""
    told = asdict(fault)
    if fault.abort is not None:
        told["abort"]["grpc_status"] = GRPC_STATUSES.index(fault.abort.grpc_status)
    return told


def _mirror(x: Service, target: int) -> dict[str, Any]:
    """target: the number of the subset that copies go to."""
    mirror = x.mirror
    if mirror is None:
        return {}
    told = {name: getattr(mirror, name) for name in ("percent", "max", "body", "methods", "timeout")}
    return {"mirror": {**told, "target": target}}


def _retries(found: Retries) -> dict[str, Any]:
    """For `_retries.set_policy`."""
    told = asdict(found)
    names = told.pop("grpc_status")
    methods = list(found.methods) if found.methods != IDEMPOTENT else None
    return told | {"grpc": sum(1 << GRPC_STATUSES.index(each) for each in names), "methods": methods}


def _weighted(split: Split) -> list[str]:
    return [version for version, weight in split.weights if weight > 0]


@lru_cache(maxsize=64)
def split_columns(weights: tuple[float, ...]) -> bytes:
    """The alias table of a split; one with a version too light for intervals is built by Vose's method."""
    found = columns(weights)
    if found is None:
        cells = struct.iter_unpack("<II", _fast.alias_cells(list(weights)))
        found = [(threshold, own, alias) for own, (threshold, alias) in enumerate(cells)]
    return b"".join([COLUMN.pack(*column) for column in found])


@lru_cache(maxsize=64)
def _owners(slots: str, names: tuple[str, ...]) -> bytes:
    """By slot, the owner's place among the names."""
    place = {name: i for i, name in enumerate(names)}
    return struct.pack("<10000H", *[place[name] for name in Slots.parse(slots).owners()])
