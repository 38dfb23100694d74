"""What is in force as keys, whichever of document and source they come from; and what would be after an edit. No I/O.

An edit is tried on a copy of the very layers that nodes apply changes with, so what passes here is taken there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from graylb import table
from graylb.control import splits
from graylb.control.assembly import Assembly, Base
from graylb.control.config_store import Item
from graylb.control.fragments import Fragments
from graylb.control.sources import Fragment, Update
from graylb.control.state import complete_split
from graylb.model import keys
from graylb.model.keys import Entry, PartName
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.services import SplitPart
from graylb.model.snapshot import Split

RECORDED: Final = ("service", "split", "rules", "lists")
"""Parts whose changes stay in the history. Instances come and go by themselves."""


@dataclass(frozen=True)
class Standing:
    """A copy of what is in force, as of the source's `revision`. `try_on` may be called once."""

    revision: int
    assembly: Assembly
    own: Mapping[str, bytes] = field(default_factory=dict)
    """The document's keys: `document_keys`."""

    @property
    def fragments(self) -> Fragments:
        return self.assembly.fragments

    @property
    def prefix(self) -> str:
        return self.fragments.prefix

    def copy(self) -> Standing:
        return Standing(self.revision, self.assembly.copy(self.fragments.copy()), self.own)

    def items(self) -> dict[str, Item]:
        """Every key in force, rules in the order in which they are asked within one priority.

        Of two instances with one address only the source's is in force.
        """
        found = {key: Item(value, 0, "file") for key, value in self.own.items()}
        taken = set()
        goods = {key: good for service in self.fragments.services.values() for key, good in service.items()}
        for key, good in sorted(goods.items()):
            found[key] = Item(good.fragment.value, good.fragment.revision, "etcd")
            if good.entry.part == "instances":
                taken.add((good.entry.service, good.entry.value.address))
        for key in [key for key, each in found.items() if not each.revision]:
            service, part, name = keys.split_key(key)
            if part == "instances" and (service, name) in taken:
                del found[key]
        return found

    def registered(self) -> dict[str, frozenset[str]] | None:
        """As `View.registered` has it."""
        base, registries = self.assembly.base, self.assembly.registries
        if not registries.every:
            return None if base is not None and base.document.registries else {}
        return {
            service: frozenset(built.version for _, built in registries.instances(service).values())
            for service in registries.services
        }

    def value(self, key: str) -> bytes | None:
        """In force."""
        good = self.fragments.good(key)
        return good.fragment.value if good is not None else self.own.get(key)

    def differing(self, items: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
        """What of an edit changes anything, splits completed. Raises ConfigErrors, all of them, for invalid values."""
        entries: dict[str, Entry] = {}
        errors: list[ConfigError] = []
        for key, value in items.items():
            try:
                if value is not None:
                    entries[key] = keys.decode(key, value, prefix=self.prefix)
                else:
                    _named(key, self.prefix)
            except ConfigErrors as error:
                errors += error.errors
        if errors:
            raise ConfigErrors(errors)
        found: dict[str, bytes | None] = {}
        for key, value in items.items():
            made = self._completed(key, value, entries) if value is not None else None
            if self._differs(key, made):
                found[key] = made
        return found

    def _completed(self, key: str, value: bytes, entries: Mapping[str, Entry]) -> bytes:
        entry = entries[key]
        if entry.complete:
            return value
        assert entry.split is not None
        settings = entries.get(keys.suffix_of(entry.service, "service"))
        part = settings.value if settings is not None else self.assembly.part(entry.service)
        before = self.value(key)
        complete = splits.complete_in(key, before) if before is not None else None
        former = splits.stored(complete) if complete is not None else None
        asked = splits.request(entry, entry.split, part.stable if part is not None else None, former)
        made = complete_split(asked, former)
        return keys.completed(value, entry, made.salt, made.slots)

    def _differs(self, key: str, value: bytes | None) -> bool:
        standing = self.fragments.there(key)
        good = self.fragments.good(key)
        if value is None:
            return standing is not None or good is not None
        if standing is not None and (good is None or good.fragment != standing):
            return True  # what stands there is not in force, and this mends it
        before = self.value(key)
        return before is None or not same(key, before, value)

    def try_on(self, items: Mapping[str, bytes | None], at: str) -> None:
        """Raises ConfigErrors where nodes would not take all of it."""
        held = set(self.fragments.held)
        revision = self.revision + 1
        changes = {key: None if value is None else Fragment(key, value, revision) for key, value in items.items()}
        dirty = self.fragments.take(Update(revision, changes), at)
        errors: list[ConfigError] = []
        if set(self.fragments.held) - held:
            expected = "one service after the other"
            text = "deletes all that there is at once, which proxies take for a mishap"
            errors.append(ConfigError(self.prefix + keys.ROOT, 1, 1, "", message=text, expected=expected))
        base = self.assembly.base
        assert base is not None
        self.assembly.update(base, dirty)
        touched = {keys.split_key(key)[0] for key in items}
        errors += [each for name in sorted(touched) for each in self.assembly.problems.get(name, ())]
        if errors:
            raise ConfigErrors(dict.fromkeys(errors))
        self._compile(touched, base)

    def _compile(self, touched: set[str], base: Base) -> None:
        """Raises ConfigErrors for what is beyond a table."""
        snapshot = self.assembly.snapshot(self.revision)
        some = replace(
            snapshot,
            services=tuple(each for each in snapshot.services if each.name in touched),
            routes=tuple(each for each in snapshot.routes if each.service in touched),
        )
        try:
            table.compile(some)
        except ValueError as error:
            raise ConfigErrors([ConfigError(base.name, 1, 1, "$", message=str(error))]) from error


def document_keys(base: Base) -> dict[str, bytes]:
    """What the document says of services, as keys; an instance's name is its address. Splits are complete."""
    found: dict[str, bytes] = {}

    def add(service: str, part: PartName, name: str, value: Any) -> None:
        key, text = keys.encode(service, part, name, value)
        found[key] = text

    for service, part in base.document.services.items():
        made = base.splits.get(service, {})
        add(service, "service", "", part)
        if part.split is not None:
            add(service, "split", "", _split_data(part.split, made.get((service, None))))
        for rule in part.rules:
            data = rule.model_dump(mode="json", by_alias=True, exclude_unset=True)
            if rule.split is not None:
                data["split"] = _split_data(rule.split, made.get((service, rule.name)))
            add(service, "rules", rule.name, data)
        for name, ids in part.lists.items():
            add(service, "lists", name, ids)
        for instance in part.instances:
            add(service, "instances", instance.address, instance)
    return found


def _split_data(part: SplitPart, made: Split | None) -> dict[str, Any]:
    data = part.model_dump(mode="json", exclude_unset=True)
    return data if made is None else {**data, "salt": made.salt, "slots": made.slots}


def recorded(key: str) -> bool:
    """Whether the history tells of its changes."""
    return key.startswith(keys.ROOT) and keys.split_key(key)[1] in RECORDED


def same(key: str, one: bytes, other: bytes) -> bool:
    """Whether two valid values say the same."""
    return one == other or keys.decode(key, one) == keys.decode(key, other)


def _named(key: str, prefix: str) -> None:
    """Raises ConfigErrors for a key that no part can have."""
    try:
        service, part, name = keys.split_key(key)
        if not key.startswith(keys.ROOT) or part not in keys.PARTS or keys.suffix_of(service, part, name) != key:
            raise ValueError
    except ValueError:
        expected = f"a key like {prefix}{keys.ROOT}NAME/PART"
        raise ConfigErrors([ConfigError(prefix + key, 1, 1, "", message="no such key", expected=expected)]) from None


def good_value(key: str, value: bytes) -> bool:
    """Whether a node that has nothing before would take it."""
    try:
        return keys.decode(key, value).complete
    except Exception:  # as in `Fragments`: invalid, or beyond us
        return False
