"""What every source of configuration gives: fragments, each with a revision; first all, then what changes.

A source knows keys and bytes and nothing of services or tables. etcd gives one fragment a key, in the layout of
`graylb.model.keys` or of a framework (`graylb.model.registries`); of files each is one whole fragment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self


@dataclass(frozen=True, slots=True)
class Fragment:
    """One value of a source. key: below the source's prefix. lease: of the source, 0 for none.

    created: the revision since which the key has not been deleted, 0 where that is not known.
    """

    key: str
    value: bytes
    revision: int
    lease: int = 0
    created: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Update:
    """What differs now, None where a key went; with `whole`, everything there is.

    revision: of the source when it was like that. stale: the source cannot vouch that nothing newer exists.
    """

    revision: int
    changes: Mapping[str, Fragment | None]
    whole: bool = False
    stale: bool = False

    def and_then(self, later: Update) -> Update:
        """Both in one: of a key that both mention the later word counts."""
        if later.whole:
            return later
        changes = {**self.changes, **later.changes}
        if self.whole:
            changes = {key: each for key, each in changes.items() if each is not None}
        return Update(later.revision, changes, self.whole, self.stale)


@dataclass(frozen=True, slots=True)
class Health:
    """How a source fares. error: why it is not being followed; since: when that began, ISO 8601."""

    name: str
    connected: bool
    revision: int
    error: str = ""
    since: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Entered as an async context manager, then read by one consumer. It reconnects by itself and never gives up."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def prefix(self) -> str:
        """What stands before a fragment's key, for messages."""
        ...

    def updates(self) -> AsyncIterator[Update]:
        """The first one is whole; nothing is left out between two. It waits as long as there is nothing to tell."""
        ...

    def health(self) -> Health: ...
