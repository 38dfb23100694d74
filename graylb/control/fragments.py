"""The last good value of every key, and why the newest one of some is not taken. No I/O.

Each value is validated by itself, when it changes: one change costs one part. What is invalid keeps the last good value
of that key and is remembered until it is mended or deleted. So does a split that waits to be completed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graylb.control.logs import log
from graylb.control.pace import Breath, none
from graylb.control.sources import Fragment, Update
from graylb.model import build, keys
from graylb.model.keys import Entry
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.services import InstancePart, Rule, SplitPart
from graylb.model.snapshot import Split


@dataclass(frozen=True, slots=True)
class Good:
    """One valid key. built: the snapshot's Instance, Rule or Split of it, or None. pair: the value and that."""

    fragment: Fragment
    entry: Entry
    built: Any
    pair: tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """One key whose newest value is not in force. since: ISO 8601, when its trouble began."""

    key: str
    since: str
    revision: int
    errors: tuple[ConfigError, ...]


class Fragments:
    """`services`: service -> key -> last good; `members`: of these the instances alone; `refused`; `pending`: splits to
    be completed, by key.

    `revision`: of the newest change that was taken. `held`: keys that went all at once, and are kept; see `_vanished`.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.services: dict[str, dict[str, Good]] = {}
        self.members: dict[str, dict[str, Good]] = {}
        self.refused: dict[str, Refused] = {}
        self.pending: dict[str, tuple[Fragment, Entry]] = {}
        self.held: dict[str, set[str]] = {}
        self.held_since = ""
        self.revision = 0
        self._present: dict[str, Fragment] = {}  # as in the source, good or not

    def copy(self) -> Fragments:
        """To try changes on. What the containers hold is shared, for it never changes."""
        made = Fragments(self.prefix)
        for name, value in vars(self).items():
            setattr(made, name, copied(value))
        return made

    def present(self, service: str) -> dict[str, Fragment]:
        """What the source has of it now, good or not."""
        start = f"{keys.ROOT}{service}/"
        return {key: each for key, each in self._present.items() if key.startswith(start)}

    def there(self, key: str) -> Fragment | None:
        """What the source has of a key now, good or not."""
        return self._present.get(key)

    def good(self, key: str) -> Good | None:
        return self.services.get(_service(key), {}).get(key)

    def all_good(self) -> Iterable[Fragment]:
        """What to remember for a start without the source."""
        return (each.fragment for entries in self.services.values() for each in entries.values())

    def seed(self, fragments: Iterable[Fragment], revision: int) -> dict[str, set[str]]:
        """Takes what was good once, before the source said anything; as `take`."""
        dirty: dict[str, set[str]] = {}
        for each in fragments:
            self._decode(each, "", dirty)
        self.refused.clear()  # another graylb wrote that; the source will say it again
        self.revision = max(self.revision, revision)
        return dirty

    def take(self, update: Update, at: str, breath: Breath = none) -> dict[str, set[str]]:
        """Service -> names of parts that differ from before. at: the time of any new refusal."""
        dirty: dict[str, set[str]] = {}
        if update.whole and not update.stale and update.revision < self.revision:
            self.revision = 0  # another store, which counts anew
        gone = [key for key, each in update.changes.items() if each is None]
        if update.whole:
            known = {key for entries in self.services.values() for key in entries}
            gone = [key for key in known | self.refused.keys() | self._present.keys() if key not in update.changes]
        here = {key: each for key, each in update.changes.items() if each is not None}
        for key, each in here.items():
            if self._present.get(key) != each:
                self._decode(each, at, dirty)
                breath()
            self._present[key] = each
        self._release(dirty)
        for key in gone:
            self._present.pop(key, None)
            self._forget_trouble(key)
        if self._vanished(gone):
            for key in gone:
                if self.good(key):
                    self.held.setdefault(_service(key), set()).add(key)
            self.held_since = self.held_since or at
        else:
            removed = [key for key in gone if key not in self.held.get(_service(key), ()) and self._remove(key, dirty)]
            if removed:
                self.revision = max(self.revision, update.revision)
        return dirty

    def _vanished(self, gone: list[str]) -> bool:
        """Whether the source has suddenly nothing left at all: more likely a mishap than anyone's wish.

        One key that goes alone is believed, also when it was the last one.
        """
        return len(gone) > 1 and not self._present and any(self.good(key) for key in gone)

    def _release(self, dirty: dict[str, set[str]]) -> None:
        """A held service is again what the source says as soon as that has an instance of it, if it ever had one."""
        for service in list(self.held):
            back = [key for key in self._present if _service(key) == service]
            had = any(keys.ROOT + service + "/instances/" in key for key in self.held[service])
            if back and (not had or any(key.startswith(f"{keys.ROOT}{service}/instances/") for key in back)):
                for key in self.held.pop(service) - self._present.keys():
                    self._remove(key, dirty)
        if not self.held:
            self.held_since = ""

    def _decode(self, fragment: Fragment, at: str, dirty: dict[str, set[str]]) -> None:
        key = fragment.key
        before = self.good(key)
        if before is not None and before.fragment == fragment and key not in self.refused:
            self.pending.pop(key, None)
            self.held.get(before.entry.service, set()).discard(key)
            self.revision = max(self.revision, fragment.revision)
            return
        anew = before is not None and fragment.created > before.fragment.revision
        if anew and key not in self.held.get(_service(key), ()):
            self._remove(key, dirty)  # it was deleted meanwhile, whether that was told by itself or not
        try:
            entry = keys.decode(key, fragment.value, prefix=self.prefix)
        except ConfigErrors as errors:
            self._refuse(fragment, at, errors.errors)
            return
        except Exception as error:  # one value must not stop all proxies, whatever is wrong with them
            log.exception("%s%s cannot be read", self.prefix, key)
            fault = ConfigError(self.prefix + key, 1, 1, "", message=f"a fault of graylb's own: {error!r}")
            self._refuse(fragment, at, (fault,))
            return
        self._forget_trouble(key)
        if not entry.complete:
            self.pending[key] = (fragment, entry)
            return
        self.held.get(entry.service, set()).discard(key)
        built = _built(entry)
        good = Good(fragment, entry, built, (entry.value, built))
        self.services.setdefault(entry.service, {})[key] = good
        if entry.part == "instances":
            self.members.setdefault(entry.service, {})[key] = good
        self.revision = max(self.revision, fragment.revision)
        # of instances with one address the newest counts, so it matters that one was put again
        if before is None or before.entry != entry or entry.part == "instances":
            dirty.setdefault(entry.service, set()).add(entry.part)

    def _refuse(self, fragment: Fragment, at: str, errors: tuple[ConfigError, ...]) -> None:
        key = fragment.key
        since = self.refused[key].since if key in self.refused else at
        self.pending.pop(key, None)
        self.refused[key] = Refused(self.prefix + key, since, fragment.revision, errors)

    def _remove(self, key: str, dirty: dict[str, set[str]]) -> bool:
        entries = self.services.get(_service(key), {})
        found = entries.pop(key, None)
        if found is None:
            return False
        dirty.setdefault(found.entry.service, set()).add(found.entry.part)
        self.members.get(found.entry.service, {}).pop(key, None)
        if not entries:
            del self.services[found.entry.service]
            self.members.pop(found.entry.service, None)
        return True

    def _forget_trouble(self, key: str) -> None:
        self.refused.pop(key, None)
        self.pending.pop(key, None)


def copied(value: Any) -> Any:
    """A container of containers anew; anything else as it is."""
    if isinstance(value, dict):
        return {key: each.copy() if isinstance(each, dict | set) else each for key, each in value.items()}
    return value.copy() if isinstance(value, set) else value


def _service(key: str) -> str:
    return key[len(keys.ROOT) :].partition("/")[0]


def _built(entry: Entry) -> Any:
    value = entry.value
    if isinstance(value, InstancePart):
        return build.build_instance(value)
    if isinstance(value, SplitPart):
        return split_of(value)
    if isinstance(value, Rule):
        splits: Mapping[build.SplitId, Split] = (
            {(entry.service, value.name): split_of(value.split)} if value.split is not None else {}
        )
        return build.build_rule(entry.service, value, splits)
    return None


def split_of(part: SplitPart) -> Split:
    """A complete one."""
    assert part.salt is not None
    assert part.slots is not None
    return Split(tuple(part.weights.items()), part.salt, part.slots)
