"""Snapshot -> table image: the byte string that `graylb._fast.Table` reads in place.

Pure. Each service is a block of its own (`graylb.blocks`); here they are put together, with the routes to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from graylb import _fast, _link
from graylb.blocks import Block, Kept, compile_service
from graylb.layout import GROUP, HEADER, NODE, NONE, ROUTE, Arena, Patterns
from graylb.model.snapshot import Route, Service, Snapshot, digest_of
from graylb.rulebook import Conditions, Fields, field_keys

Breath = Callable[[], object]
MAX_LISTENERS = 32  # names: the bits of a route's word


@dataclass(frozen=True, slots=True)
class Front:
    """Routes and hosts. They lie before all else in an image, so that they can be taken over as they are.

    made_of: routes, names of the services in order, bits of the listeners. hosts: as `Compiler.hosts` gives them.
    """

    made_of: tuple[tuple[Route, ...], tuple[str, ...], dict[str, int]]
    data: bytes
    patterns: tuple[str, ...]
    fields: int
    routes: int
    hosts: tuple[int, int, int, int, int]


class Cache:
    """Blocks of the services of the last snapshot compiled with it. A service is the same when it is that object.

    Of one that is not, what its rules, or instances that are the very same objects, have made is kept.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        self.kept: dict[str, Kept] = {}
        self.front: Front | None = None

    def block(self, service: Service) -> Block:
        found = self.blocks.get(service.name)
        if found is not None and found.service is service:
            return found
        return compile_service(service, self.kept.setdefault(service.name, Kept()))

    def keep(self, blocks: Sequence[Block]) -> None:
        """Of these alone."""
        self.blocks = {block.service.name: block for block in blocks}
        self.kept = {name: kept for name, kept in self.kept.items() if name in self.blocks}


class Compiler:
    """One snapshot's compilation."""

    def __init__(self, snapshot: Snapshot, cache: Cache | None = None, breath: Breath | None = None) -> None:
        cache = cache if cache is not None else Cache()
        self.snapshot = snapshot
        self.breath = breath or (lambda: None)
        self.blocks = []
        for service in snapshot.services:
            self.blocks.append(cache.block(service))
            self.breath()
        cache.keep(self.blocks)
        self.arena = Arena(HEADER.size)
        self.patterns = Patterns()
        self.split_names: list[str] = []
        self.instances: list[bytes] = []
        self.listener_bits = listener_bits(snapshot)
        self.front = cache.front = self._front(cache.front)
        self.arena = Arena(HEADER.size)  # which knows no texts of the front, be it made or kept
        self.arena.data += self.front.data
        self.patterns.numbers = {pattern: number for number, pattern in enumerate(self.front.patterns)}

    def services(self) -> bytes:
        """Puts the blocks into the image; their records."""
        records = []
        first_instance = 0
        for number, block in enumerate(self.blocks):
            at = self.arena.add(block.data)
            patterns = [self.patterns.number(pattern) for pattern in block.patterns]
            record, instances = _link.place(
                self.arena.data,
                at,
                number,
                block.record,
                block.instances,
                first_instance,
                len(self.split_names),
                patterns,
            )
            records.append(record)
            self.instances.append(instances)
            self.split_names += block.splits
            first_instance += block.n_instances
            self.breath()
        return b"".join(records)

    def _front(self, kept: Front | None) -> Front:
        snapshot = self.snapshot
        made_of = snapshot.routes, tuple(each.name for each in snapshot.services), self.listener_bits
        if kept is not None and kept.made_of == made_of:
            return kept
        ordered = sorted(snapshot.routes, key=precedence)
        fields, routes = self.routes(ordered, {name: number for number, name in enumerate(made_of[1])})
        at, hosts = self.arena.add(routes), self.hosts(ordered)
        return Front(made_of, bytes(self.arena.data[HEADER.size :]), tuple(self.patterns.numbers), fields, at, hosts)

    # ---- routes ------------------------------------------------------------------------------------------------------

    def routes(self, ordered: Sequence[Route], services: dict[str, int]) -> tuple[int, bytes]:
        """(field set, records)."""
        fields = Fields([key for route in ordered for key in field_keys(route.match)], "routes")
        conditions = Conditions(self.arena, fields, self.patterns, {})
        records = b"".join([self.route(route, services, conditions) for route in ordered])
        return fields.write(self.arena), records

    def route(self, x: Route, services: dict[str, int], conditions: Conditions) -> bytes:
        kinds = {"exact": 0, "prefix": 1, "regex": 2}
        path = x.path.rstrip("/") if x.path_kind == "prefix" else x.path
        pattern = self.patterns.number(x.path) if x.path_kind == "regex" else 0
        text = self.arena.text
        to = x.redirect
        parts = [part or "" for part in ((to.scheme, to.host, to.path) if to else ("", "", ""))]
        given = [part is not None for part in ((to.scheme, to.host, to.path) if to else ())]
        return ROUTE.pack(
            kinds[x.path_kind], pattern, *text(path), *conditions.block(x.match.all),
            services[x.service] if x.service is not None else NONE, to.status if to else 0, *text(x.name),
            x.rewrite_prefix is not None, sum(flag << bit for bit, flag in enumerate(given)),
            *text(x.rewrite_prefix or ""), *text(parts[0]), *text(parts[1]), *text(parts[2]),
            self.listeners(x), 0,
        )  # fmt: skip

    def listeners(self, x: Route) -> int:
        unknown = [name for name in x.listeners if name not in self.listener_bits]
        if unknown:
            raise ValueError(f"route {x.name}: no listener is called {unknown[0]}")
        return sum(self.listener_bits[name] for name in set(x.listeners))

    def node(self, ordered: Sequence[Route], members: Sequence[int]) -> int:
        """Routes of one host -> offset of their Node."""
        exact: dict[int, list[int]] = {}
        prefix: dict[int, list[int]] = {}
        regex: list[int] = []
        longest = 0
        for n in members:
            x = ordered[n]
            if x.path_kind == "exact":
                exact.setdefault(_fast.xxh64(x.path.encode()), []).append(n)
            elif x.path_kind == "regex":
                regex.append(n)
            else:
                path = x.path.rstrip("/").encode()
                longest = max(longest, len(path))
                prefix.setdefault(_fast.fnv1a(path), []).append(n)
        tables = [
            self.arena.hash_table({key: (self.arena.u32(found), len(found)) for key, found in lists.items()})
            for lists in (exact, prefix)
        ]
        regex.sort(key=lambda n: -len(ordered[n].path))  # stable: precedence holds among equals
        return self.arena.add(
            NODE.pack(*tables[0], *tables[1], len(prefix), longest, self.arena.u32(regex), len(regex))
        )

    def hosts(self, ordered: Sequence[Route]) -> tuple[int, int, int, int, int]:
        """(exact table, mask, wildcard table, mask, default node)."""
        members: dict[str, list[int]] = {}
        for n, route in enumerate(ordered):
            members.setdefault(route.host.lower(), []).append(n)
        exact: dict[int, tuple[int, int]] = {}
        wild: dict[int, tuple[int, int]] = {}
        default = 0
        for host, numbers_ in members.items():
            at = self.node(ordered, numbers_)
            if host == "*":
                default = at
            elif host.startswith("*."):
                wild[_fast.xxh64(host[2:].encode())] = (at, 1)
            else:
                exact[_fast.xxh64(host.encode())] = (at, 1)
        return (*self.arena.hash_table(exact), *self.arena.hash_table(wild), default)

    def image(self) -> bytes:
        snapshot, arena, blocks, front = self.snapshot, self.arena, self.blocks, self.front
        services = self.services()
        meta = orjson.dumps({
            "listeners": [asdict(x) for x in snapshot.listeners], "limits": asdict(snapshot.limits),
            "forwarding": asdict(snapshot.forwarding), "decision_headers": snapshot.decision_headers,
            "splits": self.split_names, "listener_bits": self.listener_bits,
            "tracing": _tracing(snapshot),
            "access_log": asdict(snapshot.access_log) if snapshot.access_log is not None else None,
            "marks": asdict(snapshot.marks) if snapshot.marks is not None else None,
        })  # fmt: skip
        patterns = b"".join([GROUP.pack(*arena.text(pattern)) for pattern in self.patterns.numbers])
        header = (
            front.fields, *arena.text(digest_of(snapshot, [block.digest for block in blocks])), *arena.text(meta),
            len(snapshot.services), arena.add(services), len(snapshot.routes), front.routes, *front.hosts,
            len(self.patterns.numbers), arena.add(patterns),
            sum(block.n_instances for block in blocks), arena.add(b"".join(self.instances)),
            len(self.split_names),
        )  # fmt: skip
        HEADER.pack_into(arena.data, 0, b"GRAYLB01", 0, snapshot.revision, 0, *header)
        # slack: fixed-size reads of the last record's strings stay inside
        arena.add(b"\0" * 16)
        return _fast.seal(arena.data)


def _tracing(snapshot: Snapshot) -> dict[str, Any] | None:
    """Of it what a worker must know."""
    if snapshot.tracing is None:
        return None
    return {name: getattr(snapshot.tracing, name) for name in ("sample", "parent_based", "always_errors")}


def listener_bits(snapshot: Snapshot) -> dict[str, int]:
    """Listener name -> 1, 2, 4 …, in order of first mention."""
    names = list(dict.fromkeys(listener.name for listener in snapshot.listeners))
    if len(names) > MAX_LISTENERS:
        raise ValueError(f"listeners have {len(names)} different names; at most {MAX_LISTENERS} are possible")
    return {name: 1 << number for number, name in enumerate(names)}


def precedence(route: Route) -> tuple[bool, int, int, str]:
    """Order among routes of one host and path, as in the Gateway API: method, most headers, most query, name."""
    kinds = Counter(condition.kind for condition in route.match.all)
    return (kinds["method"] == 0, -kinds["header"], -kinds["query"], route.name)


def compile(snapshot: Snapshot, cache: Cache | None = None, breath: Breath | None = None) -> bytes:
    """The image of a snapshot's table. ValueError when it is beyond what a table can hold (named in the message).

    cache: from one snapshot to the next, so that only services that are new objects are compiled. breath: called
    between services.
    """
    return Compiler(snapshot, cache, breath).image()
