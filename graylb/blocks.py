"""One service -> its block: the part of a table image that is its own, and that an unchanged service keeps.

Pure. The records are those of `_fast.pxd`; `_check_layout` compares their sizes when this module is imported.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from graylb import _fast
from graylb.model.snapshot import Condition, Match, Rule, Service, Split, StickyKey, Subset, service_digest
from graylb.release import numbers, semver
from graylb.release.columns import columns
from graylb.release.selectors import select
from graylb.release.slots import Slots

NONE = 0xFFFFFFFF
MAX_FIELDS = 256
MAX_LISTENERS = 32  # names: the bits of a route's word
INDEXED_LIST = 64  # an `in` list up to this long is indexed under each of its values

KINDS = {name: number for number, name in enumerate(_fast.KIND_NAMES)}
DERIVED = 8
OPS = {
    name: number
    for number, name in enumerate(
        ("exact", "prefix", "suffix", "regex", "present", "in", "path_prefix", "cidr", "number", "semver")
    )
}
BOUNDS = {"<": 0, "<=": 1, ">": 2, ">=": 3, "==": 4, "!=": 5}
EVERY = 6  # VersionBound.op of an alternative without bounds
FALLBACKS = {"strict": 0, "stable": 1, "any": 2}

HEADER = struct.Struct("<8sQQII4I14I")
FIELD_SET = struct.Struct("<6IQ")
FIELD = struct.Struct("<4I")
ENTRY = struct.Struct("<QII")
COND = struct.Struct("<HBB3I")
NETWORK = struct.Struct("<16sII")
NUMBER = struct.Struct("<dII")
VERSION = struct.Struct("<3Q6I")
GROUP = struct.Struct("<II")
RULE = struct.Struct("<8I")
TARGET = struct.Struct("<8IQ4I")
COLUMN = struct.Struct("<IHH")
INSTANCE = struct.Struct("<6I")
SERVICE = struct.Struct("<20I3d")
ROUTE = struct.Struct("<22I")
NODE = struct.Struct("<8I")


def _check_layout() -> None:
    ours = {
        "ImageHeader": HEADER, "FieldSet": FIELD_SET, "Field": FIELD, "Entry": ENTRY, "Cond": COND, "Network": NETWORK,
        "NumberBound": NUMBER, "VersionBound": VERSION, "Group": GROUP, "Column": COLUMN, "Rule": RULE,
        "Target": TARGET, "Instance": INSTANCE, "Service": SERVICE, "Route": ROUTE, "Node": NODE,
    }  # fmt: skip
    for name, layout in ours.items():
        if layout.size != _fast.SIZES[name]:
            raise ImportError(f"table record {name}: {layout.size} bytes here, {_fast.SIZES[name]} in graylb._fast")


_check_layout()


class Arena:
    """The image while it grows. Every block begins 8-aligned; equal strings lie in it once."""

    def __init__(self, reserve: int) -> None:
        self.data = bytearray(reserve)
        self._texts: dict[bytes, tuple[int, int]] = {}

    def add(self, block: bytes | bytearray) -> int:
        """Appends a block and returns its offset."""
        self.data += b"\0" * (-len(self.data) % 8)
        at = len(self.data)
        self.data += block
        return at

    def text(self, value: str | bytes) -> tuple[int, int]:
        """(offset, length) of a string."""
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        found = self._texts.get(raw)
        if found is None:
            found = self._texts[raw] = (self.add(raw), len(raw))
        return found

    def u32(self, values: Iterable[int]) -> int:
        numbers_ = list(values)
        return self.add(struct.pack(f"<{len(numbers_)}I", *numbers_))

    def hash_table(self, entries: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """hash -> (value, n > 0) as open addressing; (offset, mask), mask 0 when there is nothing."""
        if not entries:
            return 0, 0
        mask = 3
        while mask < 2 * len(entries):
            mask = mask * 2 + 1
        cells: list[tuple[int, int, int]] = [(0, 0, 0)] * (mask + 1)
        for key, (value, n) in entries.items():
            k = key & 0xFFFFFFFF & mask
            while cells[k][2]:
                k = (k + 1) & mask
            cells[k] = (key, value, n)
        return self.add(b"".join(ENTRY.pack(*cell) for cell in cells)), mask


class Patterns:
    """Regular expressions of the whole table, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, pattern: str) -> int:
        return self.numbers.setdefault(pattern, len(self.numbers))


FieldKey = tuple[str, str]


class Fields:
    """The fields that one service's rules and sticky keys (or the routes' conditions) read."""

    def __init__(self, keys: Iterable[FieldKey], owner: str) -> None:
        distinct = set(keys)
        ordered = sorted(distinct, key=lambda key: (KINDS[key[0]] >= DERIVED, KINDS[key[0]], key[1]))
        if len(ordered) > MAX_FIELDS:
            raise ValueError(f"{owner}: rules read {len(ordered)} different fields; at most {MAX_FIELDS} are possible")
        self.order: list[FieldKey] = ordered
        self.number = {key: n for n, key in enumerate(ordered)}
        self.indexed: set[int] = set()

    def write(self, arena: Arena) -> int:
        records = bytearray()
        named: list[tuple[int, int]] = []
        uses = bits = 0
        for n, (kind, name) in enumerate(self.order):
            raw = name.encode()
            records += FIELD.pack(KINDS[kind], n in self.indexed, *arena.text(raw))
            if KINDS[kind] < DERIVED:
                continue
            named.append((_fast.name_hash(raw), n + 1))
            if kind in ("header", "metadata"):
                uses |= 1
                bits |= _fast.sieve(raw)
            else:
                uses |= 2 if kind == "cookie" else 4
        mask = 3
        while mask < 2 * len(named):
            mask = mask * 2 + 1
        table = [(0, 0)] * (mask + 1)
        for hash_, field in named:
            k = hash_ & mask
            while table[k][1]:
                k = (k + 1) & mask
            table[k] = (hash_, field)
        at = arena.add(records)
        names = arena.add(b"".join(struct.pack("<II", *entry) for entry in table))
        derived = sum(1 for kind, _ in self.order if KINDS[kind] < DERIVED)
        return arena.add(FIELD_SET.pack(len(self.order), at, derived, mask, names, uses, bits))


class Conditions:
    """Writes conditions against one field set."""

    def __init__(self, arena: Arena, fields: Fields, patterns: Patterns, lists: dict[str, tuple[str, ...]]) -> None:
        self.arena, self.fields, self.patterns, self.lists = arena, fields, patterns, lists
        self.sets: dict[object, tuple[int, int, int]] = {}

    def block(self, conditions: Sequence[Condition]) -> tuple[int, int]:
        """(offset, count) of these conditions in a row."""
        packed = b"".join([self.one(condition) for condition in conditions])
        return (self.arena.add(packed) if packed else 0), len(conditions)

    def one(self, x: Condition) -> bytes:
        field = self.fields.number[x.kind, x.name]
        return COND.pack(field, OPS[x.op], x.negate, *self.operands(x))

    def operands(self, x: Condition) -> tuple[int, int, int]:
        if x.op in ("exact", "prefix", "suffix"):
            return (*self.arena.text(x.values[0]), 0)
        if x.op == "path_prefix":
            return (*self.arena.text(x.values[0].rstrip("/")), 0)
        if x.op == "regex":
            return (self.patterns.number(x.values[0]), 0, 0)
        if x.op == "in":
            return self.string_set(x)
        if x.op == "cidr":
            return self.networks(x.values)
        if x.op == "number":
            bounds = numbers.parse_range(x.values[0])
            packed = b"".join(NUMBER.pack(value, BOUNDS[op], 0) for op, value in bounds)
            return (self.arena.add(packed), len(bounds), 0)
        if x.op == "semver":
            return self.versions(x.values[0])
        return (0, 0, 0)

    def string_set(self, x: Condition) -> tuple[int, int, int]:
        key: object = x.list_name if x.list_name is not None else x.values
        found = self.sets.get(key)
        if found is None:
            values = self.lists[x.list_name] if x.list_name is not None else x.values
            raw = [value.encode("utf-8", "surrogateescape") for value in dict.fromkeys(values)]
            # the strings' place must be known before the table that points at them is built
            size = sum(map(len, raw))
            at = self.arena.add(b"\0" * size)
            table, mask, strings = _fast.string_set(raw, at)
            self.arena.data[at : at + size] = strings
            found = self.sets[key] = (self.arena.add(table), mask, len(raw))
        return found

    def networks(self, values: Sequence[str]) -> tuple[int, int, int]:
        packed = bytearray()
        for value in values:
            net = ipaddress.ip_network(value, strict=False)
            v4 = net.version == 4
            address = net.network_address.packed
            mapped = b"\0" * 10 + b"\xff\xff" + address if v4 else address
            packed += NETWORK.pack(mapped, net.prefixlen + (96 if v4 else 0), v4)
        return self.arena.add(packed), len(values), 0

    def versions(self, text: str) -> tuple[int, int, int]:
        packed = bytearray()
        n = 0
        for alternative, bounds in enumerate(semver.parse_range(text)):
            if not bounds:
                packed += VERSION.pack(0, 0, 0, EVERY, 0, 0, 0, alternative, 0)
                n += 1
            for x in bounds:
                pre = self.arena.text(x.pre) if x.pre else (0, 0)
                packed += VERSION.pack(x.major, x.minor, x.patch, BOUNDS[x.op], x.rank, *pre, alternative, 0)
                n += 1
        return self.arena.add(packed), n, 0


# ---- a service -------------------------------------------------------------------------------------------------------


def field_keys(match: Match) -> Iterable[FieldKey]:
    for condition in match.all:
        yield condition.kind, condition.name
    for group in match.none:
        for condition in group:
            yield condition.kind, condition.name


def _sticky_field(key: StickyKey) -> FieldKey:
    return key.kind, key.name


class Targets:
    """Subsets and splits of one service, each written once; the numbers that rules refer to."""

    def __init__(self, compiler: ServiceCompiler, service: Service) -> None:
        self.compiler, self.service = compiler, service
        # instances of one version side by side, those of weight 0 apart: then most subsets are runs of neighbours
        self.instances = sorted(service.instances, key=lambda x: (x.weight == 0, x.version))
        self.arena = compiler.arena
        self.records: list[bytes] = []
        self.subsets: dict[Subset, int] = {}
        self.versions: dict[str, int] = {}

    def version(self, name: str) -> int:
        return self.versions.setdefault(name, len(self.versions))

    def subset(self, subset: Subset) -> int:
        found = self.subsets.get(subset)
        if found is not None:
            return found
        chosen = [i for i in select(subset, self.instances) if self.instances[i].weight > 0]
        weights = [self.instances[i].weight for i in chosen]
        neighbours = bool(chosen) and chosen[-1] - chosen[0] + 1 == len(chosen)
        items = 0 if neighbours else self.arena.u32(chosen)
        cells = self.arena.add(_fast.alias_cells(weights)) if len(set(weights)) > 1 else 0
        version = self.version(subset.version) if subset.version is not None else NONE
        label = self.arena.text(subset.version or subset.semver or "")
        first = chosen[0] if chosen else 0
        self.records.append(TARGET.pack(0, version, len(chosen), items, cells, 0, 0, 0, 0, *label, first, 0))
        self.subsets[subset] = len(self.records) - 1
        return self.subsets[subset]

    def split(self, split: Split, owner: str) -> int:
        names = [name for name, weight in split.weights if weight > 0]
        items = b"".join(struct.pack("<II", self.version(n), self.subset(Subset(version=n))) for n in names)
        place = {name: i for i, name in enumerate(names)}
        owners = struct.pack("<10000H", *(place[name] for name in Slots.parse(split.slots).owners()))
        columns = split_columns([weight for _, weight in split.weights if weight > 0])
        number = self.compiler.new_split(f"{self.service.name}\0{owner}")
        seed = _fast.xxh64(split.salt.encode())
        block = (self.arena.add(items), self.arena.add(columns), self.arena.add(owners))
        width = len(columns) // COLUMN.size
        self.records.append(TARGET.pack(1, NONE, len(names), *block, number, width, seed, 0, 0, 0, 0))
        return len(self.records) - 1


def split_columns(weights: list[float]) -> bytes:
    """The alias table of a split; one with a version too light for intervals is built by Vose's method."""
    found = columns(weights)
    if found is None:
        cells = struct.iter_unpack("<II", _fast.alias_cells(weights))
        found = [(threshold, own, alias) for own, (threshold, alias) in enumerate(cells)]
    return b"".join(COLUMN.pack(*column) for column in found)


def _index(rules: Sequence[Rule], fields: Fields) -> tuple[dict[int, list[int]], list[int]]:
    """Files each rule under its rarest exact condition -> (hash -> rule numbers in order, the rest)."""

    def keys(x: Condition) -> list[tuple[int, str]]:
        if (
            x.negate
            or x.list_name is not None
            or not (x.op == "exact" or (x.op == "in" and len(x.values) <= INDEXED_LIST))
        ):
            return []
        return [(fields.number[x.kind, x.name], value) for value in dict.fromkeys(x.values)]

    seen: Counter[tuple[int, str]] = Counter()
    for rule in rules:
        for condition in rule.match.all:
            seen.update(keys(condition))
    lists: dict[int, list[int]] = {}
    rest: list[int] = []
    for n, rule in enumerate(rules):
        options = [found for condition in rule.match.all if (found := keys(condition))]
        if not options:
            rest.append(n)
            continue
        for field, value in min(options, key=lambda option: sum(seen[key] for key in option)):
            fields.indexed.add(field)
            hash_ = _fast.xxh64(value.encode("utf-8", "surrogateescape"), field + 1)
            # two values of one hash share a list: the rule's own conditions tell them apart
            if lists.setdefault(hash_, [])[-1:] != [n]:
                lists[hash_].append(n)
    return lists, rest


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
    settings: orjson.Fragment  # its entry of the table's meta: connections, tunnels, digest, number of instances
    digest: bytes  # of the service


def compile_service(service: Service) -> Block:
    """ValueError when it is beyond what a table can hold (named in the message)."""
    return ServiceCompiler(service).block()


class ServiceCompiler:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.arena = Arena(8)  # offset 0 is nothing's
        self.patterns = Patterns()
        self.splits: list[str] = []

    def new_split(self, name: str) -> int:
        self.splits.append(name)
        return len(self.splits) - 1

    def block(self) -> Block:
        x = self.service
        keys = [key for rule in x.rules for key in field_keys(rule.match)] + [_sticky_field(key) for key in x.sticky]
        fields = Fields(keys, f"service {x.name}")
        targets = Targets(self, x)
        stable = targets.subset(Subset(version=x.stable))
        anyone = targets.subset(Subset())
        default = targets.split(x.split, "") if x.split is not None else stable
        conditions = Conditions(self.arena, fields, self.patterns, dict(x.lists))
        rules = b"".join([self.rule(rule, conditions, targets) for rule in x.rules])
        lists, rest = _index(x.rules, fields)
        index = self.arena.hash_table(
            {key: (found[0] if len(found) == 1 else self.arena.u32(found), len(found)) for key, found in lists.items()}
        )
        instances = b"".join(
            INSTANCE.pack(*self.arena.text(each.address), targets.version(each.version), each.weight, 0, 0)
            for each in targets.instances
        )
        versions = b"".join(GROUP.pack(*self.arena.text(name)) for name in targets.versions)
        digest = service_digest(x)
        record = SERVICE.pack(
            *self.arena.text(x.name), fields.write(self.arena), len(x.rules), self.arena.add(rules), *index,
            self.arena.u32(rest), len(rest), len(targets.records), self.arena.add(b"".join(targets.records)),
            default, stable, anyone, FALLBACKS[x.fallback], int(x.policy == "least_request"),
            len(x.sticky), self.arena.u32(fields.number[_sticky_field(key)] for key in x.sticky),
            len(targets.versions), self.arena.add(versions),
            x.timeouts.connect, x.timeouts.response, x.timeouts.idle,
        )  # fmt: skip
        return Block(
            x,
            bytes(self.arena.data),
            record,
            instances,
            len(targets.instances),
            tuple(self.splits),
            tuple(self.patterns.numbers),
            orjson.Fragment(orjson.dumps(settings(x) | {"digest": digest.hex(), "instances": len(targets.instances)})),
            digest,
        )

    def rule(self, rule: Rule, conditions: Conditions, targets: Targets) -> bytes:
        groups = b"".join([GROUP.pack(*conditions.block(group)) for group in rule.match.none])
        block = conditions.block(rule.match.all)
        if rule.split is not None:
            target = targets.split(rule.split, rule.name)
        else:
            target = targets.subset(rule.to if rule.to is not None else Subset(version=self.service.stable))
        fallback = FALLBACKS[rule.fallback or self.service.fallback]
        at = self.arena.add(groups) if groups else 0
        return RULE.pack(*block, at, len(rule.match.none), target, fallback, *self.arena.text(rule.name))


def settings(x: Service) -> dict[str, Any]:
    """What concerns connections and tunnels, for the engine. `traffic`: which versions are chosen by what."""
    found: dict[str, Any] = {"name": x.name, "connections": asdict(x.connections), "tunnels": asdict(x.tunnels)}
    if x.tunnels.policy != "keep":
        found["traffic"] = {
            "split": _weighted(x.split) if x.split is not None else [x.stable],
            "rules": {rule.name: _chosen(x, rule) for rule in x.rules},
        }
    return found


def _weighted(split: Split) -> list[str]:
    return [version for version, weight in split.weights if weight > 0]


def _chosen(x: Service, rule: Rule) -> list[str]:
    if rule.split is not None:
        return _weighted(rule.split)
    assert rule.to is not None
    return sorted({x.instances[i].version for i in select(rule.to, x.instances)})
