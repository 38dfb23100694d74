"""An access log decided twice, by two configurations, on the proxy's own matcher; by batches, for logs are long."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graylb import _fast
from graylb.model.snapshot import Marks, Snapshot
from graylb.release import marks
from graylb.release.access_log import NO_ADDRESS, BadLine, Fields, Format, Logged, detect, reader
from graylb.release.replay import Key, Matrix, Side, matrices

REFUSED = "the proxy would not accept the request"


@dataclass(slots=True)
class Bad:
    """Lines that are no request, for one reason. `first`: name of the log and number of the line, from 1."""

    reason: str
    first: tuple[str, int]
    count: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """`lines`: all but blank ones. unaddressed: requests without the client's address."""

    lines: int
    requests: int
    bad: tuple[Bad, ...]
    unaddressed: int
    matrices: tuple[Matrix, ...]

    def to_data(self) -> dict[str, Any]:
        bad = [{"reason": each.reason, "lines": each.count, "first": list(each.first)} for each in self.bad]
        return {
            "lines": self.lines,
            "requests": self.requests,
            "bad": bad,
            "unaddressed": self.unaddressed,
            "services": [each.to_data() for each in self.matrices],
        }


@dataclass(slots=True)
class _Table:
    """One configuration, ready to decide."""

    table: _fast.Table
    side: Side
    bits: dict[str, int]
    marks: Marks | None
    roles: Mapping[str, str]  # of listeners

    @classmethod
    def of(cls, snapshot: Snapshot, image: bytes) -> _Table:
        table = _fast.Table(image)
        versions = [table.version_names(number) for number in range(len(snapshot.services))]
        side = Side(snapshot, table.route_names(), versions)
        roles = {each.name: each.role for each in snapshot.listeners}
        return cls(table, side, table.meta["listener_bits"], snapshot.marks, roles)

    def decide(self, heads: list[bytes], addresses: list[str], listeners: list[str | None]) -> list[Key | None]:
        bits = [0 if name is None else self.bits.get(name, 0) for name in listeners]
        if self.marks is not None:
            heads = self._arriving(self.marks, heads, addresses, listeners)
        return self.table.decide_many(heads, addresses, bits)

    def _arriving(
        self, told: Marks, heads: list[bytes], addresses: list[str], listeners: list[str | None]
    ) -> list[bytes]:
        """The heads as rules see them: with the marks that listeners believe. The log does not tell when a signature
        was looked at: none has expired. Where listeners differ and the line names none, it is an edge's.
        """
        names = [*told.headers, *filter(None, ("baggage" if told.baggage else "", told.signature))]
        marked = re.compile(
            rb"\r\n(?:" + b"|".join(re.escape(each.encode()) for each in names) + rb")[ \t]*:", re.IGNORECASE
        )
        roles = set(self.roles.values())
        usual = roles.pop() if len(roles) == 1 else "edge"
        secret = told.key.text if told.key is not None else ""
        seen = []
        for head, address, listener in zip(heads, addresses, listeners, strict=True):
            if marked.search(head) is None:
                seen.append(head)
                continue
            first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
            headers = [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]
            role = self.roles.get(listener, usual) if listener else usual
            _, headers = marks.arriving(told, role, address, headers, secret)
            made = "\r\n".join([first, *(f"{name}: {value}" for name, value in headers), "", ""])
            seen.append(made.encode("latin-1"))
        return seen


class Replay:
    """old, new: snapshot and image. listener: of lines that name none. kind: None finds it out."""

    def __init__(
        self,
        old: tuple[Snapshot, bytes],
        new: tuple[Snapshot, bytes],
        fields: Fields,
        kind: Format | None = None,
        listener: str | None = None,
    ) -> None:
        self.old, self.new = _Table.of(*old), _Table.of(*new)
        self.fields, self.kind, self.listener = fields, kind, listener
        self.pairs: Counter[tuple[Key, Key]] = Counter()
        self.lines = self.unaddressed = 0
        self.bad: dict[str, Bad] = {}

    def feed(self, name: str, lines: Iterable[bytes], first: int = 1) -> None:
        """Some lines of the log `name`, of which the first has this number."""
        read: Callable[[bytes], Logged] | None = None
        heads: list[bytes] = []
        addresses: list[str] = []
        listeners: list[str | None] = []
        numbers: list[int] = []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            self.lines += 1
            if read is None:
                self.kind = self.kind or detect(line)
                read = reader(self.kind, self.fields)
            try:
                head, address, listener = read(line)
            except BadLine as error:
                self._bad(str(error), name, number)
                continue
            heads.append(head)
            addresses.append(address)
            listeners.append(listener or self.listener)
            numbers.append(number)
        self._decide(name, heads, addresses, listeners, numbers)

    def _decide(
        self, name: str, heads: list[bytes], addresses: list[str], listeners: list[str | None], numbers: list[int]
    ) -> None:
        before = self.old.decide(heads, addresses, listeners)
        after = self.new.decide(heads, addresses, listeners)
        pairs = Counter(zip(before, after, strict=True))
        if refused := pairs.pop((None, None), 0):
            first = numbers[before.index(None)]
            self._bad(REFUSED, name, first, refused)
        self.pairs.update({(a, b): count for (a, b), count in pairs.items() if a is not None and b is not None})
        if NO_ADDRESS in addresses:
            told = zip(addresses, before, strict=True)
            self.unaddressed += sum(address == NO_ADDRESS and key is not None for address, key in told)

    def _bad(self, reason: str, name: str, number: int, count: int = 1) -> None:
        self.bad.setdefault(reason, Bad(reason, (name, number))).count += count

    def report(self) -> Report:
        bad = tuple(sorted(self.bad.values(), key=lambda each: -each.count))
        found = matrices(self.old.side, self.new.side, self.pairs)
        return Report(self.lines, self.pairs.total(), bad, self.unaddressed, tuple(found))
