"""What waits between a reflector and its consumer: at most one full state, or one change for each key.

Pure. However slow the consumer, what waits is bounded by the keys that it knows and those that exist; of several
changes of a key the newest wins, and a key that came and went meanwhile is not mentioned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from graylb.control.etcd.errors import EtcdError
from graylb.control.etcd.values import KeyValue, Listing


@dataclass(frozen=True, slots=True)
class Loaded:
    """The whole state, in place of all that was said before: at first, and when changes may have been missed.

    stale: from a member without a quorum, so that newer changes may exist; a state that is not stale follows.
    cluster_changed: this is another store than before; if it is empty, that is hardly what anyone wished for.
    """

    revision: int
    items: Mapping[str, KeyValue]
    stale: bool = False
    cluster_changed: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """Whole revisions up to `revision`: each key that differs with its value now, None where it was deleted."""

    revision: int
    changes: Mapping[str, KeyValue | None]


@dataclass(frozen=True, slots=True)
class Lost:
    """etcd cannot be followed for the time being; the state stays as it was. Attempts go on."""

    error: EtcdError


@dataclass(frozen=True, slots=True)
class Restored:
    """etcd is being followed again. What happened meanwhile was told as a `Loaded`, or comes next."""


Event: TypeAlias = Loaded | Changed | Lost | Restored


class Mailbox:
    """The state (`items`, `revision`, `lost`) and what the consumer has not been told of it."""

    def __init__(self) -> None:
        self._items: dict[str, KeyValue] = {}
        self.items: Mapping[str, KeyValue] = MappingProxyType(self._items)
        self.revision = 0
        self.cluster_id = 0
        self.stale = False
        self.lost: EtcdError | None = None
        self._told: EtcdError | None = None
        self._whole = False
        self._cluster_changed = False
        self._pending: dict[str, bool] = {}  # keys that differ; whether the consumer knew the key before

    def load(self, listing: Listing, *, stale: bool = False) -> None:
        """A full state replaces all."""
        self._cluster_changed |= bool(self.cluster_id) and self.cluster_id != listing.cluster_id
        self._items.clear()
        self._items.update(listing.items)
        self.revision, self.cluster_id, self.stale = listing.revision, listing.cluster_id, stale
        self._whole = True
        self._pending.clear()

    def change(self, revision: int, changes: Iterable[tuple[str, KeyValue | None]]) -> None:
        """Whole revisions, in order, up to `revision`."""
        for key, now in changes:
            if not self._whole:
                known = self._pending.setdefault(key, key in self._items)
                if now is None and not known:
                    del self._pending[key]
            if now is None:
                self._items.pop(key, None)
            else:
                self._items[key] = now
        self.revision = revision

    def lose(self, error: EtcdError) -> None:
        self.lost = error

    def restore(self) -> None:
        self.lost = None

    def take(self) -> Event | None:
        """What to tell next: restored, then what changed, then lost. None: the consumer knows all."""
        if self._told is not None and self.lost is None:
            self._told = None
            return Restored()
        if self._whole:
            event = Loaded(self.revision, dict(self._items), self.stale, self._cluster_changed)
            self._whole = self._cluster_changed = False
            return event
        if self._pending:
            changes = {key: self._items.get(key) for key in self._pending}
            self._pending.clear()
            return Changed(self.revision, changes)
        if self.lost is not None and self._told is None:
            self._told = self.lost
            return Lost(self.lost)
        return None

    @property
    def waiting(self) -> int:
        """Keys that wait to be told."""
        return len(self._items) if self._whole else len(self._pending)
