"""What people change, wherever it is kept: keys in force, changes on the revision they were based on, a record of each.

Two stores implement it: `file_config` (a document and its state file) and `etcd_config` (keys in etcd). Everything that
a person does (`control.operations`) is written once, over this protocol. Keys and values are those of
`graylb.model.keys`, below the prefix: `services/users/split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

Action = Literal["file", "removed", "put", "split", "rollback", "set", "delete", "apply", "rollout"]
"""What brought a change about. file, removed: an edit of the document; put: a key written past graylb, by etcdctl."""


class ConfigStoreError(Exception):
    """The store cannot be read or written. The message says what, where and what to do."""


class Conflict(ConfigStoreError):
    """Somebody else wrote first: the message tells who, what and when. Nothing was written."""


class NotHere(ConfigStoreError):
    """This store does not keep that; the message says where it is changed instead."""


@dataclass(frozen=True, slots=True)
class Item:
    """One key in force. revision: of its newest change. origin: where a person would edit it, `file` or the store."""

    value: bytes
    revision: int
    origin: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What is in force. revision: of the store when it was like that; what a change says that it is based on.

    items: key -> item, splits complete with salt and slots. A key is here whether the document or a put gave it.
    ordered: the store keeps rules in an order of their own: that of `items`, and an edit that names all rules of a
    service puts them in its order. Else those of one priority go as docs/etcd.md says, by name.
    note: what a person has to know of this view, such as that the document is not valid at present.
    registered: service -> versions of the instances that registries have, which are no keys; None where the document
    names registries and what they have is not known here.
    """

    revision: int
    items: Mapping[str, Item]
    ordered: bool = False
    note: str = ""
    registered: Mapping[str, frozenset[str]] | None = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edit:
    """What to write, all or nothing. items: key -> value, None to delete it.

    based_on: the revision of the view that it was made from. Somebody's later change of the split, rules, lists or
    settings of a service that this edit writes to is a Conflict; changes of instances are not.
    to: of a rollback, the revision that it restores.
    """

    items: Mapping[str, bytes | None]
    based_on: int
    who: str
    why: str
    action: Action
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One change of one service in the history. before, after: the keys that differ, None where there was none.

    Where a store keeps an order of rules (`View.ordered`) and the names of the rules differ, or their order, all of
    them are there, in their order. what: words for what differs, where the store knows more than the keys tell.

    revision: of the change itself; previous: of the service's change before, 0 for its first. at: ISO 8601 in UTC.
    who: `file` for the document, `-` where nobody can know (a put past graylb). known: False where the values of that
    time are no longer kept, so that nothing can go back to them.
    """

    service: str
    revision: int
    previous: int
    at: str
    who: str
    why: str
    action: Action
    before: Mapping[str, bytes | None] = field(default_factory=dict)
    after: Mapping[str, bytes | None] = field(default_factory=dict)
    to: int | None = None
    known: bool = True
    what: tuple[str, ...] = ()


class ConfigStore(Protocol):
    """Entered as an async context manager. Every method raises ConfigStoreError when the store cannot be reached."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def name(self) -> str:
        """For messages: `etcd 10.0.0.1:2379 /graylb`, or the state file's path."""
        ...

    async def read(self) -> View:
        """What is in force now. Raises ConfigErrors when the document is not valid and nothing stands in for it."""
        ...

    async def write(self, edit: Edit) -> int:
        """The revision of the change; that of the view if nothing differs. The edit is checked as a whole before.

        Raises ConfigErrors (errors name the key), Conflict, NotHere.
        """
        ...

    async def check(self, edit: Edit) -> None:
        """Writes nothing; raises what `write` would, as far as that can be known before."""
        ...

    async def history(self, service: str | None = None) -> tuple[Record, ...]:
        """Newest first, of all services or one; empty for one that never was."""
        ...

    async def nodes(self) -> tuple[dict[str, Any], ...]:
        """The status that each node tells (`control.nodes`), by name; of a file store none."""
        ...
