"""Document, registries and the keys of a source: one snapshot and table of all, and what of it is not in force."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from graylb import table
from graylb.control.assembly import Assembly, Base
from graylb.control.fragments import Fragments, Refused
from graylb.control.last_good import Kept, in_order
from graylb.control.pace import Breath, none
from graylb.control.prepare import Applied, now
from graylb.control.registered import Registries
from graylb.control.registered import Report as RegistryReport
from graylb.control.sources import Fragment, Update
from graylb.control.state import State
from graylb.model.documents import Document
from graylb.model.keys import Entry
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.services import ServicePart, SplitPart
from graylb.model.snapshot import digest_of


@dataclass(frozen=True, slots=True)
class Report:
    """What of the newest is not in force, as of one look. refused: keys by themselves; problems: what does not fit
    together; pending: splits that wait to be completed; held: keys that went all at once. registries: of each."""

    refused: tuple[Refused, ...] = ()
    problems: tuple[ConfigError, ...] = ()
    pending: tuple[str, ...] = ()
    held: int = 0
    held_since: str = ""
    registries: tuple[RegistryReport, ...] = ()

    def errors(self, prefix: str) -> list[dict[str, Any]]:
        """As `ConfigError.to_dict`."""
        found: list[dict[str, Any]] = [dict(each.to_dict()) for refused in self.refused for each in refused.errors]
        found += [error for registry in self.registries for error in registry.errors()]
        found += [dict(each.to_dict()) for each in self.problems]
        if self.held:
            text = (
                f"{prefix}: all keys of services went at once at {self.held_since}, which looks like a mishap; the "
                f"last good {self.held} stay in force. Put a service's keys again, and what you then delete is gone"
            )
            found.append({"file": prefix, "text": text})
        return found


FEW: Final = 20
QUICK: Final = 0.03
"""Seconds that the event loop may be held up by a few changes."""


class Layers:
    """`offer` and `collect` belong to the event loop; `apply` may run in a thread, one at a time."""

    def __init__(self, prefix: str, registries: Registries | None = None) -> None:
        self.prefix = prefix
        self.fragments = Fragments(prefix)
        self.registries = registries or Registries()
        self.assembly = Assembly(self.fragments, self.registries)
        self.report = Report()
        self.seen = 0
        """The source's newest revision that was offered."""
        self.arrived_at = 0.0
        """The loop's time at which the newest update arrived."""
        self.offered_at = 0.0
        """The loop's time at which the oldest update that was not applied arrived; 0 when there is none."""
        self.taken = 0
        """The source's revision of the newest update that was applied."""
        self._lock = threading.Lock()  # of what `apply` changes
        self._took = math.inf
        self._offered: Update | None = None
        self._compiled = table.Cache()
        self._seeded: dict[str, set[str]] = {}

    def seed(self, kept: Kept) -> None:
        self._seeded = self.fragments.seed(kept.fragments, kept.revision)
        self.taken = kept.revision
        for service in self.registries.seed(kept.registries):
            self._seeded.setdefault(service, set()).add("instances")

    def copy(self) -> tuple[int, Assembly]:
        """(`taken`, what is in force), to try changes on. Waits while `apply` is at work."""
        with self._lock:
            return self.taken, self.assembly.copy(self.fragments.copy())

    def offer(self, update: Update) -> None:
        """The next `collect` has it. What is stale does not replace what is known to be newer."""
        if update.stale and update.revision < self.fragments.revision:
            return
        self.seen = max(self.seen, update.revision)
        self._note_arrival()
        self._offered = update if self._offered is None else self._offered.and_then(update)

    def offer_registered(self, index: int, update: Update) -> None:
        """The same of a registry; index: in `registries.every`."""
        if self.registries.offer(index, update):
            self._note_arrival()

    def _note_arrival(self) -> None:
        self.arrived_at = asyncio.get_running_loop().time()
        self.offered_at = self.offered_at or self.arrived_at

    def collect(self) -> Update | None:
        """The registries' part goes straight to the next `apply`."""
        self.registries.collect()
        update, self._offered, self.offered_at = self._offered, None, 0.0
        return update

    def apply(
        self,
        update: Update | None,
        document: Document,
        base: Base,
        state: State,
        last: Applied | None,
        breath: Breath = none,
    ) -> Applied:
        """What is in force now; `last` itself when nothing differs. Raises ConfigErrors, as `Assembly.update`."""
        with self._lock:
            began = time.perf_counter()
            try:
                return self._apply(update, document, base, state, last, breath)
            finally:
                self._took = time.perf_counter() - began

    def quick(self, update: Update | None) -> bool:
        """Whether `apply` will hardly be felt where it is called, by what the last one took."""
        return update is not None and not update.whole and len(update.changes) <= FEW and self._took < QUICK

    def _apply(
        self,
        update: Update | None,
        document: Document,
        base: Base,
        state: State,
        last: Applied | None,
        breath: Breath,
    ) -> Applied:
        at = now()
        dirty, self._seeded = self._seeded, {}
        if update is not None:
            for service, parts in self.fragments.take(update, at, breath).items():
                dirty.setdefault(service, set()).update(parts)
            self.taken = update.revision
        for service in self.registries.take(at):
            dirty.setdefault(service, set()).add("instances")
        try:
            changed = self.assembly.update(base, dirty, breath)
        finally:
            self._tell()
        if not changed and last is not None:
            return last
        snapshot = self.assembly.snapshot(self.fragments.revision or state.revision)
        try:
            image = table.compile(snapshot, self._compiled, breath)
        except ValueError as error:
            raise ConfigErrors([ConfigError(base.name, 1, 1, "$", message=str(error))]) from error
        digest = digest_of(snapshot, [self._compiled.blocks[each.name].digest for each in snapshot.services])
        if last is not None and last.digest == digest:
            return last
        return Applied(document, snapshot, image, digest, state, at)

    def kept(self, at: str) -> Kept:
        registries = {each.identity: (each.revision, in_order(each.all_good())) for each in self.registries.every}
        return Kept(self.prefix, self.fragments.revision, at, in_order(self.fragments.all_good()), registries)

    @property
    def stamp(self) -> tuple[int, ...]:
        """Another one whenever `kept` would be."""
        return self.fragments.revision, *self.registries.stamp

    def pending(self) -> dict[str, tuple[Fragment, Entry]]:
        return dict(self.fragments.pending)

    def part(self, service: str) -> ServicePart | None:
        return self.assembly.part(service)

    def split(self, key: str) -> SplitPart | None:
        """The last complete one of a key."""
        good = self.fragments.good(key)
        return good.entry.split if good is not None else None

    def _tell(self) -> None:
        found = self.fragments
        self.registries.tell(lambda service: self.assembly.part(service) is not None)
        self.report = Report(
            tuple(found.refused[key] for key in sorted(found.refused)),
            tuple(each for name in sorted(self.assembly.problems) for each in self.assembly.problems[name]),
            tuple(sorted(self.prefix + key for key in found.pending)),
            sum(map(len, found.held.values())),
            found.held_since,
            self.registries.reports,
        )
