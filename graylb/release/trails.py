"""The trail of a probe: who got which mark along a chain of calls, and where it was lost. Pure.

The services of `graylb.sdk` write trails (docs/sdk.md): entries `DEPTH;NAME;MARK` with commas between, a tree from its
root. MARK is `-` where none came. NAME of a call whose answer told nothing is `!` and who was called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal
from urllib.parse import unquote

PROBE: Final = "x-graylb-probe"
TRAIL: Final = "x-graylb-trail"
MAX_ENTRIES: Final = 100
NEARLY_FULL: Final = 3800
"""Bytes; services end a trail before the entry that would make it longer than 4096."""

NO_MIDDLEWARE: Final = "no middleware of graylb.sdk, or GRAYLB_PROBES=off"

STRANGER: Final = (
    "; or an edge listener took the probe off: "
    "sign a mark with --mark and --secret, or probe from a network in mark.trusted"
)

Kind = Literal["no-trail", "lost", "changed", "silent", "missing"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One call. caller: index of the hop that made it, None for who was probed. answered: whether it told of itself;
    if not, `name` is what was called. mark: that it got, None for none."""

    name: str
    mark: str | None
    caller: int | None
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at one place. before, at: names of the hops, None where it is the caller or unknown."""

    kind: Kind
    before: str | None
    at: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """hops: in the order of the calls, each behind who called it. cut: the trail may have been too long."""

    hops: tuple[Hop, ...]
    findings: tuple[Finding, ...]
    cut: bool

    @property
    def fine(self) -> bool:
        return not self.findings

    def summary(self) -> str:
        """One line, for when it is fine."""
        marks = {hop.mark for hop in self.hops if hop.answered}
        count = sum(hop.answered for hop in self.hops)
        who = "the one hop" if count == 1 else f"all {count} hops"
        if marks == {None}:
            return f"{who} answered; none got a mark. Send one with --mark, or headers that choose a version with one"
        if None in marks:
            return f"no mark was lost: who got none was not called with one either ({count} hops)"
        return f"{who} had the mark {' or '.join(sorted(mark for mark in marks if mark))}"

    def to_data(self) -> dict[str, Any]:
        """JSON-ready. `passed`: the marks that those got whom the hop called, who told."""
        hops = [
            {
                "name": hop.name,
                "answered": hop.answered,
                "mark": hop.mark,
                "caller": None if hop.caller is None else self.hops[hop.caller].name,
                "depth": self.depth(index),
                "passed": [each.mark for each in self.calls(index) if each.answered],
            }
            for index, hop in enumerate(self.hops)
        ]
        return {
            "fine": self.fine,
            "hops": hops,
            "findings": [asdict(each) for each in self.findings],
            "cut": self.cut,
        }

    def calls(self, index: int) -> list[Hop]:
        return [hop for hop in self.hops if hop.caller == index]

    def depth(self, index: int) -> int:
        caller = self.hops[index].caller
        return 0 if caller is None else self.depth(caller) + 1


def parse(text: str) -> tuple[Hop, ...]:
    """The hops of a trail. What is not of its form is left out; never raises: it comes from services of all kinds."""
    hops: list[Hop] = []
    above: list[tuple[int, int]] = []  # (depth, index) of the hops that the next one may have been called by
    for entry in text.split(",")[:MAX_ENTRIES]:
        depth, name, mark = [*entry.strip().split(";"), "", ""][:3]
        if not (depth.isascii() and depth.isdecimal() and len(depth) <= 3 and name and mark):
            continue
        while above and above[-1][0] >= int(depth):
            above.pop()
        caller = above[-1][1] if above else None
        if name.startswith("!"):
            hops.append(Hop(_printable(unquote(name[1:])), None, caller, answered=False))
        else:
            above.append((int(depth), len(hops)))
            hops.append(Hop(_printable(unquote(name)), None if mark == "-" else _printable(mark), caller))
    return tuple(hops)


def judge(
    trail: str | None, sent: str | None = None, expect: Sequence[str] = (), ignore: Iterable[str] = ()
) -> Verdict:
    """What a trail says. trail: None where there was none. sent: the mark that the probe had, None for none.

    expect: names of services that are to have answered. ignore: patterns (fnmatch) of what may be called that has no
    middleware, matched with its address without the path, and with the whole.
    """
    patterns = tuple(ignore)
    hops = parse(trail or "")
    cut = trail is not None and (trail.count(",") + 1 >= MAX_ENTRIES or len(trail) >= NEARLY_FULL)
    findings: list[Finding] = []
    if not any(hop.answered for hop in hops):
        who = expect[0] if expect else "who was called"
        findings.append(
            Finding(
                "no-trail", None, expect[0] if expect else None, f"{who} answered no probe ({NO_MIDDLEWARE}{STRANGER})"
            )
        )
        return Verdict(hops, tuple(findings), cut)
    for hop in hops:
        caller = None if hop.caller is None else hops[hop.caller]
        if not hop.answered:
            if not _is_ignored(hop.name, patterns):
                findings.append(_silent(caller, hop, expect))
        elif caller is None:
            findings += _at_the_first(hop, sent)
        elif caller.mark is not None and hop.mark != caller.mark:
            findings.append(_between(caller, hop))
    findings += _missing(hops, expect, {each.at for each in findings if each.kind == "silent"}, cut)
    return Verdict(hops, tuple(dict.fromkeys(findings)), cut)


def _at_the_first(hop: Hop, sent: str | None) -> list[Finding]:
    if sent is None or hop.mark == sent:
        return []
    if hop.mark is None:
        why = (
            "an edge listener believes marks only from mark.trusted or with a signature (--secret); "
            f"or {hop.name} knows the mark by another name"
        )
        return [Finding("lost", None, hop.name, f"lost before {hop.name}: sent {sent}, {hop.name} got none; {why}")]
    why = "the edge did not believe it, and put on the mark of the version that it chose"
    return [
        Finding("changed", None, hop.name, f"changed before {hop.name}: sent {sent}, {hop.name} got {hop.mark}; {why}")
    ]


def _between(caller: Hop, hop: Hop) -> Finding:
    """The probe came through, so the caller's client has the hook: something else takes the mark."""
    pair = f"{caller.name} got {caller.mark}, {hop.name} got {hop.mark or 'none'}"
    if hop.mark is None:
        why = (
            "the probe came through, the mark did not: they know it by different names (GRAYLB_MARK_HEADERS, "
            "mark.headers), or a proxy between them takes it off (a listener with role: edge)"
        )
        return Finding("lost", caller.name, hop.name, f"lost between {caller.name} and {hop.name}: {pair}; {why}")
    why = f"{caller.name} sets the mark of its calls by hand, or an edge between them puts on another one"
    return Finding("changed", caller.name, hop.name, f"changed between {caller.name} and {hop.name}: {pair}; {why}")


def _silent(caller: Hop | None, hop: Hop, expect: Sequence[str]) -> Finding:
    name = next((each for each in expect if _is_called(each, hop.name)), None)
    who = hop.name if name is None else f"{name} ({hop.name})"
    by = "" if caller is None else f", called by {caller.name},"
    return Finding(
        "silent",
        None if caller is None else caller.name,
        name or hop.name,
        f"{who}{by} answered no probe ({NO_MIDDLEWARE})",
    )


def _missing(hops: Sequence[Hop], expect: Sequence[str], silent: set[str | None], cut: bool) -> list[Finding]:
    """Who was expected and is not there. Whoever calls them told of no call: its client lacks the hook."""
    there = {hop.name for hop in hops if hop.answered} | silent
    callers = {hop.caller for hop in hops if hop.answered}
    last = [hop.name for index, hop in enumerate(hops) if hop.answered and index not in callers]
    last = list(dict.fromkeys(last))
    found = []
    for name in dict.fromkeys(expect):
        if name in there:
            continue
        if cut:
            why = "the trail is so long that it may have been cut"
        elif any(each is not None for each in silent):
            why = "it may be one of those that answered no probe, or behind one"
        elif len(last) == 1:
            why = f"the trail ends at {last[0]}: its client has no hook of graylb.sdk, or it made no call"
        else:
            why = "the client that calls it has no hook of graylb.sdk, or made no call; "
            why += f"the trail ends at {', '.join(last)}"
        before = last[0] if len(last) == 1 and not cut and not silent else None
        found.append(Finding("missing", before, name, f"{name} is not in the trail; {why}"))
    return found


def _host(called: str) -> str:
    """Of `host:port/path`; "" of a gRPC method, which is called by its path alone."""
    return called.partition("/")[0]


def _is_called(service: str, called: str) -> bool:
    """Whether the address of a call looks like a service: `stock` like `stock.local:8080/count`."""
    host = _host(called).rpartition("@")[2]
    return host == service or host.startswith((f"{service}.", f"{service}:"))


def _is_ignored(called: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(called, each) or fnmatchcase(_host(called), each) for each in patterns)


def _printable(text: str) -> str:
    """As it may be shown on a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)
