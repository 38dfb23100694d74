"""What a service's rules and sticky keys are in its block of a table image: everything that no instance has a part in.

Pure. It is kept while instances come and go and while splits are moved, for it can be large.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graylb import _fast
from graylb.layout import COND, FIELD, FIELD_SET, GROUP, NETWORK, NUMBER, RULE, VERSION, Arena, Patterns
from graylb.model.snapshot import Condition, Match, Rule, Service, Split, StickyKey, Subset, rules_digest
from graylb.model.snapshot_faults import Fault
from graylb.release import numbers, semver

MAX_FIELDS = 256
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


def field_keys(match: Match) -> Iterable[FieldKey]:
    for condition in match.all:
        yield condition.kind, condition.name
    for group in match.none:
        for condition in group:
            yield condition.kind, condition.name


def _sticky_field(key: StickyKey) -> FieldKey:
    return key.kind, key.name


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


Target = Subset | tuple[str, Split | None]
"""What a rule leads to: a subset, or its own split, by the rule's name."""


@dataclass(frozen=True, slots=True)
class Rulebook:
    """The first part of a block. targets: what its rules refer to by number; number 0 is the stable version, 1 anyone.

    record: values of the service's record, from its name to `n_rest`. digest: of the rules and lists.
    """

    service: Service
    data: bytes
    record: tuple[int, ...]
    sticky: int
    rates: tuple[tuple[int, ...], ...]  # the fields of each rate's key
    targets: tuple[Target, ...]
    default: int
    patterns: tuple[str, ...]
    digest: bytes
    faults: tuple[tuple[int, str, Fault], ...]  # of rules: number, name

    def holds_for(self, x: Service) -> bool:
        """Whether it is that service's too. Comparing is cheap where the parts are the very same objects."""
        own = self.service
        return (
            own.rules == x.rules
            and own.lists == x.lists
            and own.sticky == x.sticky
            and own.limits.rates == x.limits.rates
            and (own.name, own.stable, own.fallback) == (x.name, x.stable, x.fallback)
            and (own.split is None) == (x.split is None)
        )


class _Writer:
    def __init__(self, x: Service) -> None:
        self.service = x
        self.arena = Arena(8)  # offset 0 is nothing's
        self.patterns = Patterns()
        self.targets: list[Target] = [Subset(version=x.stable)]
        self.subsets: dict[Subset, int] = {self.targets[0]: 0}  # type: ignore[dict-item]
        keys = [key for rule in x.rules for key in field_keys(rule.match)] + [_sticky_field(key) for key in x.sticky]
        keys += [key for rate in x.limits.rates for key in rate.key]
        self.fields = Fields(keys, f"service {x.name}")
        self.conditions = Conditions(self.arena, self.fields, self.patterns, dict(x.lists))

    def rulebook(self) -> Rulebook:
        x, arena = self.service, self.arena
        self.subset(Subset())
        default = self.split("", x.split) if x.split is not None else 0
        rules = b"".join([self.rule(rule) for rule in x.rules])
        lists, rest = _index(x.rules, self.fields)
        index = arena.hash_table(
            {key: (found[0] if len(found) == 1 else arena.u32(found), len(found)) for key, found in lists.items()}
        )
        record = (
            *arena.text(x.name), self.fields.write(arena), len(x.rules), arena.add(rules), *index,
            arena.u32(rest), len(rest),
        )  # fmt: skip
        sticky = arena.u32(self.fields.number[_sticky_field(key)] for key in x.sticky)
        arena.add(b"")  # what follows begins 8-aligned
        return Rulebook(
            x,
            bytes(arena.data),
            record,
            sticky,
            tuple(tuple(self.fields.number[key] for key in rate.key) for rate in x.limits.rates),
            tuple(self.targets),
            default,
            tuple(self.patterns.numbers),
            rules_digest(x),
            tuple((n, rule.name, rule.fault) for n, rule in enumerate(x.rules) if rule.fault is not None),
        )

    def subset(self, subset: Subset) -> int:
        found = self.subsets.get(subset)
        if found is None:
            found = self.subsets[subset] = len(self.targets)
            self.targets.append(subset)
        return found

    def split(self, owner: str, split: Split | None) -> int:
        self.targets.append((owner, split))
        return len(self.targets) - 1

    def rule(self, rule: Rule) -> bytes:
        groups = b"".join([GROUP.pack(*self.conditions.block(group)) for group in rule.match.none])
        block = self.conditions.block(rule.match.all)
        if rule.split is not None:
            target = self.split(rule.name, rule.split)
        else:
            target = self.subset(rule.to) if rule.to is not None else 0
        fallback = FALLBACKS[rule.fallback or self.service.fallback]
        at = self.arena.add(groups) if groups else 0
        return RULE.pack(*block, at, len(rule.match.none), target, fallback, *self.arena.text(rule.name))


def rulebook(service: Service) -> Rulebook:
    """ValueError when it is beyond what a table can hold (named in the message)."""
    return _Writer(service).rulebook()
