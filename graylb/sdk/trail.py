"""The answer to a probe: each service tells who it is, which mark it got, and what those told that it called.

A request with the header `x-graylb-probe` is a probe. Its answer has the header (gRPC: trailing metadata)
`x-graylb-trail`: entries `DEPTH;NAME;MARK`, with commas between, as a tree is written out from its root. MARK
is `-` where none came. NAME is that of a service; or, of a call whose answer had no trail, `!` and who was called.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

PROBE = "x-graylb-probe"
TRAIL = "x-graylb-trail"
MAX_ENTRIES = 100
MAX_BYTES = 4096

Child = str | None | Callable[[], str | None]


@dataclass(slots=True)
class Trail:
    """What one service has found out for a probe."""

    probe: str
    service: str
    mark: str | None
    calls: list[tuple[str, Child]] = field(default_factory=list)
    pending: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # what there is to wait for first

    def add(self, called: str, told: Child) -> None:
        """A call and the trail of its answer, None without one; or what gives it once it is known."""
        if len(self.calls) < MAX_ENTRIES:
            self.calls.append((called, told))

    def text(self) -> str:
        """The header's value: this service, then all that it called, one deeper."""
        entries = [entry(0, self.service, self.mark)]
        for called, told in self.calls:
            text = told() if callable(told) else told
            if text is None:
                entries.append(entry(1, f"!{called}", None))
            else:
                entries += _deeper(text)
        return _bounded(entries)


def entry(depth: int, name: str, mark: str | None) -> str:
    return f"{depth};{quote(name, safe='!/:@._-')};{mark if mark is not None else '-'}"


def _deeper(text: str) -> list[str]:
    found = []
    for each in text.split(","):
        depth, _, rest = each.strip().partition(";")
        if depth.isdecimal() and len(depth) <= 3 and rest:
            found.append(f"{int(depth) + 1};{rest}")
    return found


def _bounded(entries: list[str]) -> str:
    made = ""
    for each in entries[:MAX_ENTRIES]:
        if len(made) + 1 + len(each) > MAX_BYTES:
            break
        made = f"{made},{each}" if made else each
    return made
