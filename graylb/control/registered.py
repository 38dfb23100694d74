"""Instances of registries: the last good value of every key, and by service what they come to. No I/O.

As with keys of our own (`fragments`): a value that makes no sense leaves the last good one of its key, and is told
until it is mended or deleted; keys that go all at once are held. A key that changes costs that key and one service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graylb.control.fragments import Refused, copied
from graylb.control.logs import log
from graylb.control.sources import Fragment, Update
from graylb.model import build, discovery, registries
from graylb.model.discovery import RegistryPart
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.services import InstancePart
from graylb.model.snapshot import Instance

Pair = tuple[InstancePart, Instance]


@dataclass(frozen=True, slots=True)
class Good:
    """One valid key. service: here, "" for none. unversioned, skipped: as in `discovery.Reading`."""

    fragment: Fragment
    service: str
    instances: tuple[Pair, ...]
    unversioned: bool = False
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """How a registry fares. keys: good ones, instances: their addresses, services: how many have any, here or not.

    unserved: keys whose addresses have all other schemes than are asked for. unversioned: services in force with
    instances that name no version, and were given none. held: keys that went all at once. refused: of services that
    are wanted here.
    """

    name: str
    kind: str
    prefix: str
    revision: int = 0
    keys: int = 0
    services: int = 0
    instances: int = 0
    unserved: int = 0
    unversioned: tuple[str, ...] = ()
    held: int = 0
    held_since: str = ""
    refused: tuple[Refused, ...] = ()

    def errors(self) -> Iterator[dict[str, Any]]:
        """As `ConfigError.to_dict`."""
        for refused in self.refused:
            yield from (dict(each.to_dict()) for each in refused.errors)
        if self.held:
            text = (
                f"registry {self.name}: all keys below {self.prefix} went at once at {self.held_since}, which looks "
                f"like a mishap; the last good {self.held} stay in force. A service that registers again is as it says"
            )
            yield {"file": self.prefix, "text": text}

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "prefix": self.prefix,
            "revision": self.revision,
            "keys": self.keys,
            "services": self.services,
            "instances": self.instances,
            "unserved": self.unserved,
            "unversioned": list(self.unversioned),
            "held": self.held,
            "refused": [
                {
                    "key": each.key,
                    "since": each.since,
                    "revision": each.revision,
                    "errors": [e.to_dict() for e in each.errors],
                }
                for each in self.refused
            ],
        }


class Registered:
    """What one registry has below one prefix.

    services: by their names here, those that nobody knows too. stamp: another one whenever what is good differs.
    """

    def __init__(self, part: RegistryPart, prefix: str, below: str) -> None:
        self.part, self.prefix, self.below = part, prefix, below
        self.services: dict[str, dict[str, Good]] = {}
        self.refused: dict[str, Refused] = {}
        self.held: set[str] = set()
        self.held_since = ""
        self.revision = 0
        self.stamp = 0
        self._goods: dict[str, Good] = {}
        self._instances = self._unserved = 0
        self._unversioned: dict[str, int] = {}  # service -> keys
        self._holders: dict[tuple[str, str], int] = {}  # service, address -> how many there are of it
        self._shared: dict[str, int] = {}  # service -> addresses that there are several of
        self._found: dict[str, dict[str, Pair]] = {}  # what `instances` gave
        self._present: dict[str, Fragment] = {}  # as in the source, good or not

    @property
    def identity(self) -> str:
        """Of what is remembered: it is of no use to a registry of another kind, or elsewhere."""
        return f"{self.part.kind} {self.prefix}{self.below}"

    def all_good(self) -> Iterable[Fragment]:
        return (each.fragment for each in self._goods.values())

    def seed(self, fragments: Iterable[Fragment], revision: int) -> set[str]:
        """Takes what was good once, before the source said anything; as `take`."""
        dirty: set[str] = set()
        for each in fragments:
            self._read(each, "", dirty)
        self.refused.clear()
        self.revision = max(self.revision, revision)
        return dirty

    def take(self, update: Update, at: str) -> set[str]:
        """Services whose instances differ from before. at: the time of any new refusal."""
        dirty: set[str] = set()
        if update.whole and not update.stale and update.revision < self.revision:
            self.revision = 0  # another store, which counts anew
        gone = [key for key, each in update.changes.items() if each is None]
        if update.whole:
            known = self._goods.keys() | self.refused.keys() | self._present.keys()
            gone = [key for key in known if key not in update.changes]
        for key, each in update.changes.items():
            if each is None:
                continue
            if self._present.get(key) != each:
                self._read(each, at, dirty)
            self._present[key] = each
        self._release(dirty)
        for key in gone:
            self._present.pop(key, None)
            self.refused.pop(key, None)
        if len(gone) > 1 and not self._present and any(key in self._goods for key in gone):
            self.held.update(key for key in gone if key in self._goods)
            self.held_since = self.held_since or at
        else:
            removed = [key for key in gone if key not in self.held and self._remove(key, dirty)]
            if removed:
                self.revision = max(self.revision, update.revision)
        return dirty

    def instances(self, service: str) -> Mapping[str, Pair]:
        """By address, in the order of the keys; of two with one address the newer one."""
        if (kept := self._found.get(service)) is not None:
            return kept
        found = self._found[service] = self._united(service)
        return found

    def _united(self, service: str) -> dict[str, Pair]:
        goods = self.services.get(service, {})
        found = {pair[1].address: pair for key in sorted(goods) for pair in goods[key].instances}
        if not self._shared.get(service):
            return found
        newest: dict[str, int] = {}
        for key in sorted(goods):
            revision = goods[key].fragment.revision
            for pair in goods[key].instances:
                if revision >= newest.get(pair[1].address, 0):
                    newest[pair[1].address] = revision
                    found[pair[1].address] = pair
        return found

    def copy(self) -> Registered:
        """With the instances of now, for whoever tries changes while this one goes on."""
        made = Registered(self.part, self.prefix, self.below)
        made.services, made._shared = copied(self.services), copied(self._shared)
        return made

    def place(self, service: str) -> str:
        """A key of it, for messages; "" when there is none."""
        goods = self.services.get(service)
        return self.prefix + min(goods) if goods else ""

    def report(self, known: Callable[[str], bool]) -> Report:
        """known: whether a service is in force here."""
        return Report(
            self.part.called,
            self.part.kind,
            self.prefix + self.below,
            self.revision,
            len(self._goods),
            len(self.services.keys() - {""}),
            self._instances,
            self._unserved,
            tuple(name for name in sorted(self._unversioned) if known(name)),
            len(self.held),
            self.held_since,
            tuple(self.refused[key] for key in sorted(self.refused) if self._concerns(key, known)),
        )

    def _concerns(self, key: str, known: Callable[[str], bool]) -> bool:
        """Whether a key that cannot be read is of a service that is wanted here: others may write what they like."""
        if self.part.take == "all":
            return True
        names = registries.names_in(self.part.kind, key)
        return any(name in self.part.services or (self.prefix and known(name)) for name in names)

    def _read(self, fragment: Fragment, at: str, dirty: set[str]) -> None:
        key, whole = fragment.key, self.prefix + fragment.key
        before = self._goods.get(key)
        if before is not None and before.fragment == fragment and key not in self.refused:
            self.held.discard(key)
            self.revision = max(self.revision, fragment.revision)
            return
        try:
            reading = discovery.read(self.part, self.prefix, whole, fragment.value)
        except ConfigErrors as errors:
            self._refuse(fragment, at, errors.errors)
            return
        except Exception as error:  # one value must not stop all proxies, whatever is wrong with them
            log.exception("%s cannot be read", whole)
            fault = ConfigError(whole, 1, 1, "", message=f"a fault of graylb's own: {error!r}")
            self._refuse(fragment, at, (fault,))
            return
        self.refused.pop(key, None)
        self.held.discard(key)
        pairs = tuple((each, build.build_instance(each)) for each in reading.instances)
        self._put(key, Good(fragment, reading.service, pairs, reading.unversioned, reading.skipped), dirty)
        self.revision = max(self.revision, fragment.revision)

    def _refuse(self, fragment: Fragment, at: str, errors: tuple[ConfigError, ...]) -> None:
        key = fragment.key
        since = self.refused[key].since if key in self.refused else at
        self.refused[key] = Refused(self.prefix + key, since, fragment.revision, errors)

    def _put(self, key: str, made: Good, dirty: set[str]) -> None:
        before = self._goods.get(key)
        same = before is not None and (before.service, before.instances) == (made.service, made.instances)
        if self._shared.get(made.service):
            same = False  # which key is the newer one counts, too
        kept = self._found.get(made.service) if not self._shared.get(made.service) else None
        self._remove(key, set() if same else dirty)
        if kept is not None and before is not None and _place(before) == _place(made):
            kept.update((pair[1].address, pair) for pair in made.instances)  # of very many, one is another one
            self._found[made.service] = kept
        else:
            self._found.pop(made.service, None)
        self._goods[key] = made
        self.services.setdefault(made.service, {})[key] = made
        self._count(made, 1)
        if not same:
            dirty.add(made.service)

    def _remove(self, key: str, dirty: set[str]) -> bool:
        found = self._goods.pop(key, None)
        if found is None:
            return False
        goods = self.services[found.service]
        del goods[key]
        if not goods:
            del self.services[found.service]
        self._found.pop(found.service, None)
        self._count(found, -1)
        dirty.add(found.service)
        return True

    def _count(self, good: Good, by: int) -> None:
        self.stamp += 1
        self._instances += by * len(good.instances)
        self._unserved += by * good.skipped
        for _, instance in good.instances:
            place = good.service, instance.address
            before = self._holders.get(place, 0)
            _add(self._holders, place, by)
            if {before, before + by} == {1, 2}:
                _add(self._shared, good.service, by)
        if good.unversioned:
            _add(self._unversioned, good.service, by)

    def _release(self, dirty: set[str]) -> None:
        """A held service is again what the registry says as soon as that has an instance of it."""
        if not self.held:
            return
        sound = (key for key in self._present if key in self._goods and key not in self.refused)
        back = {self._goods[key].service for key in sound if self._goods[key].instances}
        for key in [key for key in self.held if self._goods[key].service in back]:
            self.held.discard(key)
            if key not in self._present:
                self._remove(key, dirty)
        if not self.held:
            self.held_since = ""


def _place(good: Good) -> tuple[str, list[str]]:
    return good.service, [instance.address for _, instance in good.instances]


def _add(counts: dict[Any, int], key: Any, by: int) -> None:
    counts[key] = counts.get(key, 0) + by
    if not counts[key]:
        del counts[key]


def united(first: Mapping[str, Pair], then: Mapping[str, Pair]) -> Mapping[str, Pair]:
    """By address; `first` has the first word. There can be ten thousand."""
    if not first or not then:
        return first or then
    return {**first, **{address: pair for address, pair in then.items() if address not in first}}


class Registries:
    """All registries of a document, in its order: of one address the first that has it counts.

    `offer` and `collect` belong to the event loop; the rest to whoever applies changes, one at a time.
    """

    def __init__(self, every: Iterable[Registered] = ()) -> None:
        self.every = tuple(every)
        self.reports: tuple[Report, ...] = tuple(each.report(lambda _: False) for each in self.every)
        self._targets = {mapped.service for each in self.every for mapped in each.part.services.values()}
        self._all = any(each.part.take == "all" for each in self.every)
        self._offered: dict[int, Update] = {}
        self._collected: dict[int, Update] = {}
        self._warned: set[tuple[str, str]] = set()

    @property
    def stamp(self) -> tuple[int, ...]:
        return tuple(each.stamp for each in self.every)

    @property
    def services(self) -> frozenset[str]:
        """With an instance somewhere, known here or not."""
        return frozenset(name for each in self.every for name in each.services) - {""}

    def offer(self, index: int, update: Update) -> bool:
        """The next `take` after a `collect` has it. What is stale does not replace what is known to be newer."""
        if update.stale and update.revision < self.every[index].revision:
            return False
        before = self._offered.get(index)
        self._offered[index] = update if before is None else before.and_then(update)
        return True

    def collect(self) -> None:
        for index, update in self._offered.items():
            before = self._collected.get(index)
            self._collected[index] = update if before is None else before.and_then(update)
        self._offered = {}

    def take(self, at: str) -> set[str]:
        """Services whose instances may differ from before."""
        collected, self._collected = self._collected, {}
        dirty: set[str] = set()
        for index, update in collected.items():
            dirty |= self.every[index].take(update, at)
        return dirty - {""}

    def seed(self, kept: Mapping[str, tuple[int, Iterable[Fragment]]]) -> set[str]:
        """kept: identity -> (revision, fragments)."""
        dirty: set[str] = set()
        for each in self.every:
            if each.identity in kept:
                revision, fragments = kept[each.identity]
                dirty |= each.seed(fragments, revision)
        return dirty - {""}

    def copy(self) -> Registries:
        """With the instances of now; it takes no changes."""
        return Registries(each.copy() for each in self.every)

    def invited(self, service: str) -> bool:
        """Whether it may be a service here although neither document nor keys have it."""
        return self._all or service in self._targets

    def has(self, service: str) -> bool:
        return any(service in each.services for each in self.every)

    def instances(self, service: str) -> Mapping[str, Pair]:
        """By address."""
        found: Mapping[str, Pair] = {}
        for each in self.every:
            if service in each.services:
                found = united(found, each.instances(service))
        return found

    def place(self, service: str) -> str:
        """A key of it, for messages."""
        return next((place for each in self.every if (place := each.place(service))), "")

    def tell(self, known: Callable[[str], bool]) -> None:
        """Makes `reports` anew. known: whether a service is in force here."""
        self.reports = tuple(each.report(known) for each in self.every)
        for report in self.reports:
            for service in report.unversioned:
                if (report.name, service) not in self._warned:
                    self._warned.add((report.name, service))
                    log.warning(
                        "registry %s: instances of %s name no version; they have %s (default_version gives another)",
                        report.name,
                        service,
                        discovery.UNVERSIONED,
                    )
