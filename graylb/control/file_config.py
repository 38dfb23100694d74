"""A document and its state file as a store of keys: a write becomes a command's override, until a person edits the
service in the document. Instances and lists are the document's own data and are edited there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from graylb.control import contents, prepare
from graylb.control import state as states
from graylb.control.config_store import Edit, Item, NotHere, Record, View
from graylb.control.state import Content, ServiceState, State
from graylb.control.store import Conflict, Store
from graylb.model import keys, presets
from graylb.model.documents import Document
from graylb.model.problems import ConfigError, ConfigErrors

TRIES: Final = 5
"""How often a write starts again because the proxy or a command wrote to the state file at the same time."""
_RULE_PATH = re.compile(r"\$\.services\.[\w-]+\.rules\[(\d+)\](.*)")
_SERVICE_PATH = re.compile(r"\$\.services\.([\w-]+)(?:\.(split))?(.*)")


@dataclass(frozen=True, slots=True)
class _Look:
    """What is in force. stored: as in the file; base: with what the document says by now; document: None when that is
    not valid, and `note` tells; effective: the document with what commands changed."""

    stored: State
    base: State
    document: Document | None
    effective: Document | None
    note: str = ""


class FileConfigStore:
    """A `ConfigStore`. preset: what the proxy was told to fill in."""

    def __init__(self, document: Path, store: Store, preset: presets.Name | None = None) -> None:
        self.document, self.store, self.preset = document, store, preset

    @property
    def name(self) -> str:
        return str(self.store.path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read(self) -> View:
        return await asyncio.to_thread(self._read)

    async def write(self, edit: Edit) -> int:
        return await asyncio.to_thread(self._write, edit)

    async def check(self, edit: Edit) -> None:
        await asyncio.to_thread(self._checked, edit)

    async def history(self, service: str | None = None) -> tuple[Record, ...]:
        """With what the document says by now, but nothing before the first start."""
        return await asyncio.to_thread(self._history, service)

    async def nodes(self) -> tuple[dict[str, Any], ...]:
        return ()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _look(self) -> _Look:
        """Raises StoreError, and ConfigErrors when the document is not valid and there is no state yet."""
        stored = self.store.read()
        try:
            document = prepare.read(self.document, self.preset)
            completion, _ = prepare.prepare(document, stored, at=prepare.now())
        except ConfigErrors as error:
            if not stored.services:
                raise
            note = f"the document is not valid, so this was not checked against it: {error.errors[0]}"
            return _Look(stored, stored, None, None, note)
        return _Look(stored, completion.state, document, completion.document)

    def _read(self) -> View:
        look = self._look()
        items: dict[str, Item] = {}
        for name, service in sorted(look.base.services.items()):
            content = service.in_force
            if content is None:
                continue
            origin = "state" if service.overridden else "file"
            revisions = _revisions(name, service)
            for key, value in contents.keys_of(name, content).items():
                items[key] = Item(value, revisions[key], origin)
            for key, value in _data(name, look.document).items():
                items[key] = Item(value, service.changes[-1].revision, "file")
        registered: Mapping[str, frozenset[str]] | None
        registered = None if look.document is not None and look.document.registries else {}
        return View(look.base.revision, items, ordered=True, note=look.note, registered=registered)

    def _history(self, service: str | None) -> tuple[Record, ...]:
        look = self._look() if self.store.path.exists() else None
        services = look.base.services if look else {}
        named = services if service is None else {name: each for name, each in services.items() if name == service}
        found = [record for name, each in named.items() for record in contents.records_of(name, each)]
        return tuple(sorted(found, key=lambda record: -record.revision))

    # -- writing ---------------------------------------------------------------------------------------------------

    def _write(self, edit: Edit) -> int:
        for _ in range(TRIES - 1):
            try:
                return self._try(edit)
            except _MovedOn:
                continue
        return self._try(edit)

    def _try(self, edit: Edit) -> int:
        look, after = self._checked(edit)
        if after is look.base:
            return look.base.revision
        try:
            self.store.put(after, expected=look.stored.revision)
        except Conflict as error:
            raise _MovedOn(error.expected, self.store.read()) from error
        return after.revision

    def _checked(self, edit: Edit) -> tuple[_Look, State]:
        """(what it is based on, what it makes of that): the same state when nothing differs."""
        look, at = self._look(), prepare.now()
        by_service: dict[str, dict[str, bytes | None]] = {}
        for key, value in edit.items.items():
            by_service.setdefault(keys.split_key(key)[0], {})[key] = value
        self._refuse_stale(look, edit, by_service)
        if edit.action == "rollback" and edit.to is not None:
            after = look.base
            for service in by_service:  # what is stored, to the letter; keys do not tell everything
                after = states.rollback(after, service, at=at, who=edit.who, why=edit.why, to=edit.to)
        else:
            changed = self._changed(look, by_service)
            if not changed:
                return look, look.base
            after = states.change(look.base, changed, action=edit.action, at=at, who=edit.who, why=edit.why)
        if look.document is not None:
            try:
                prepare.prepare(look.document, after, at=at)
            except ConfigErrors as errors:
                raise ConfigErrors(_told(errors, after)) from errors
        return look, after

    def _refuse_stale(self, look: _Look, edit: Edit, services: Iterable[str]) -> None:
        """Raises Conflict when one of the services was changed since the revision that the edit is based on."""
        if edit.based_on > look.base.revision:
            raise Conflict(edit.based_on, look.stored)
        if edit.based_on == look.stored.revision == 0:
            return  # nothing was in force yet
        for name in services:
            known = look.base.services.get(name)
            if known and any(c.revision > edit.based_on and c.what != ("instances",) for c in known.changes):
                state = look.stored if look.stored.revision > edit.based_on else look.base
                raise Conflict(edit.based_on, state)

    def _changed(self, look: _Look, by_service: Mapping[str, Mapping[str, bytes | None]]) -> dict[str, Content]:
        """The new contents of the services that differ. Raises NotHere, ConfigErrors."""
        changed: dict[str, Content] = {}
        for service, items in by_service.items():
            known = look.base.services.get(service)
            content = known.in_force if known else None
            own: dict[str, bytes | None] = {}
            data = _data(service, look.document)
            for key, value in items.items():
                part = keys.split_key(key)[1]
                if part in ("service", "split", "rules") and content is not None:
                    own[key] = value
                elif data.get(key) != value:
                    self._not_here(service, part, there=content is not None)
            if content is None:
                continue
            before = contents.keys_of(service, content)
            differing = {key for key, value in own.items() if before.get(key) != value}
            rules = [key for key in own if keys.split_key(key)[1] == "rules"]
            reordered = rules != [key for key in before if key in rules]
            written = {key: own[key] for key in own if key in differing or (reordered and key in rules)}
            new = contents.with_keys(service, content, written)
            if new != content and (differing or new.part.get("rules") != content.part.get("rules")):
                changed[service] = new
        return changed

    def _not_here(self, service: str, part: str, *, there: bool) -> None:
        if not there:
            raise NotHere(f"services come and go by the document: add {service} to {self.document}")
        if part in ("instances", "lists"):
            raise NotHere(f"{part} of {service} are kept in the document: edit {self.document}")
        raise NotHere(f"{self.store.path} keeps no {part}; a document with etcd does")


class _MovedOn(Conflict):
    """Somebody wrote to the state file between our look and our write; that need not concern us."""


def _data(service: str, document: Document | None) -> dict[str, bytes]:
    """Lists and instances, by the address of each."""
    part = document.services.get(service) if document else None
    if part is None:
        return {}
    found = [keys.encode(service, "lists", name, ids) for name, ids in part.lists.items()]
    found += [keys.encode(service, "instances", each.address, each) for each in part.instances]
    return dict(found)


def _revisions(service: str, state: ServiceState) -> dict[str, int]:
    """Of the newest change of each key in force."""
    content = state.in_force
    assert content is not None
    found = dict.fromkeys(contents.keys_of(service, content), state.changes[0].revision)
    if len(state.changes) > 1:
        for record in reversed(list(contents.records_of(service, state))):
            found |= {key: record.revision for key in record.after if key in found}
    return found


def _told(errors: ConfigErrors, state: State) -> Iterable[ConfigError]:
    """Errors of the document with the change in it, as errors of keys."""
    for error in errors.errors:
        found = _SERVICE_PATH.match(error.path)
        content = state.services[found[1]].in_force if found and found[1] in state.services else None
        if found is None or content is None:
            yield error
            continue
        name, part, rest = found[1], found[2] or "service", found[3]
        key = f"{keys.ROOT}{name}/{part}"
        rule = _RULE_PATH.match(error.path)
        rules = content.part.get("rules", ())
        if rule and int(rule[1]) < len(rules):
            key, rest = f"{keys.ROOT}{name}/rules/{rules[int(rule[1])]['name']}", rule[2]
        yield ConfigError(key, 1, 1, "$" + rest, error.value, error.expected, error.message, error.suggestion)
