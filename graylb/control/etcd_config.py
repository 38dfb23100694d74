"""The store of what people change, in etcd: one transaction compares, writes the keys and puts the record beside them.

The record's key is new for each change. So after a lost answer the transaction is simply made again: it cannot take
effect twice, and the record tells whether it has taken effect before.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import orjson

from graylb.control import etcd_history, in_force, prepare
from graylb.control import state as states
from graylb.control.assembly import Assembly, Base, base_of
from graylb.control.config_store import ConfigStoreError, Conflict, Edit, NotHere, Record, View
from graylb.control.etcd import values
from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import Compacted, EtcdError, LeaseLost, Refused, TooLarge, Unavailable
from graylb.control.etcd.values import Compare, Delete, Get, KeyValue, Listing, Operation, Put, TxnResult
from graylb.control.etcd_source import options_of
from graylb.control.fragments import Fragments
from graylb.control.in_force import Standing
from graylb.control.sources import Fragment, Update
from graylb.control.store import Store, StoreError, state_path
from graylb.model import keys, presets
from graylb.model.settings import EtcdPart

PATIENCE: Final = 5.0
"""Seconds for which a write that has certainly not been made is tried again: long enough for etcd to elect a leader."""
LOST_PATIENCE: Final = 15.0
"""The same until the fate of a lost answer is known."""
COMPARED: Final = 120
"""Comparisons of a change, of 128 that etcd takes; what is beyond is covered by ranges alone."""
TRIES: Final = 5
STEPS: Final = 16
"""How far back in a key's history a value that is valid is looked for."""

Values = Mapping[str, bytes | None]
StandingAt = Callable[[int], Awaitable[Standing]]
"""What is in force, as of that revision or later if that comes in time. Raises ConfigErrors, EtcdError, StoreError."""


DocumentKeys = Callable[[], Awaitable[Mapping[str, bytes]]]
"""What the document says, as `in_force.document_keys`. Raises as `StandingAt`."""


class EtcdConfigStore:
    """Implements `config_store.ConfigStore`. Without a running proxy it is made by `opened`, else by `EtcdSide`.

    own: the client is closed when the store is left.
    """

    def __init__(
        self, client: Client, part: EtcdPart, standing: StandingAt, document: DocumentKeys, *, own: bool = False
    ) -> None:
        self.client, self.prefix = client, part.prefix + "/"
        self._standing_at, self._document, self._own = standing, document, own
        self._seen = 0

    @classmethod
    def opened(
        cls, part: EtcdPart, document: Path, state: Path | None = None, preset: presets.Name | None = None
    ) -> Self:
        """By a client of its own. part: of the document, which is read with every look. Raises ValueError."""
        client = Client(options_of(part, document.parent))
        loader = _Loader(client, part.prefix + "/", document, state or state_path(document), preset)
        return cls(client, part, loader.standing, loader.document_keys, own=True)

    @property
    def name(self) -> str:
        return f"etcd {','.join(self.client.options.endpoints)} {self.prefix.removesuffix('/')}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own:
            await self.client.close()

    async def read(self) -> View:
        """As of the store's own last change at least."""
        standing = await self._standing(self._seen)
        items, registered = await asyncio.to_thread(lambda: (standing.items(), standing.registered()))
        return View(standing.revision, items, registered=registered)

    async def write(self, edit: Edit) -> int:
        """All or nothing, and known for certain: a ConfigStoreError says so where it cannot be found out in time."""
        for _ in range(TRIES):
            standing, plan = await self._checked(edit)
            if plan is None:
                return edit.based_on
            done = await self._commit(plan)
            if done is not None:
                self._seen = max(self._seen, done)
                return done
            if standing.revision >= edit.based_on:
                raise await self._conflict(edit, plan.services)
            # what it was checked with was older than what it is based on
            self._seen = max(self._seen, await self._newest(plan))
        raise ConfigStoreError(f"{self.name} changes faster than this can look")

    async def check(self, edit: Edit) -> None:
        await self._checked(edit)

    async def history(self, service: str | None = None) -> tuple[Record, ...]:
        """A service of the document begins with what that says, as revision 0."""
        try:
            own = await self._document()
        except (EtcdError, StoreError) as error:
            raise ConfigStoreError(f"{self.name} cannot be read: {error}") from error
        named = {key: value for key, value in own.items() if service in (None, keys.split_key(key)[0])}
        return etcd_history.shown(await self._records(service)) + _of_document(named)

    async def nodes(self) -> tuple[dict[str, Any], ...]:
        listing = await self._ask(self.client.list(self.prefix + "nodes/"))
        found = []
        for key, item in sorted(listing.items.items()):
            try:
                data = orjson.loads(item.value)
            except ValueError:
                data = None
            if not isinstance(data, dict):
                data = {"problem": "what stands there is no status"}
            found.append({"node": key[len(self.prefix) + len("nodes/") :], **data})
        return tuple(found)

    # -- what is checked before ------------------------------------------------------------------------------------

    async def _standing(self, revision: int) -> Standing:
        try:
            standing = await self._standing_at(revision)
        except (EtcdError, StoreError) as error:
            raise ConfigStoreError(f"{self.name} cannot be read: {error}") from error
        if standing.revision < revision:  # another store took the place of that one, or this proxy is cut off
            self._seen = min(self._seen, standing.revision)
        return standing

    async def _checked(self, edit: Edit) -> tuple[Standing, _Plan | None]:
        """What it was checked with, and what is to be written; None when nothing differs."""
        standing = await self._standing(self._seen)
        self._check_here(edit, standing)
        plan = await asyncio.to_thread(_plan, standing, edit)
        if plan is not None:
            await self._check_since(edit, standing, plan)
        return standing, plan

    def _check_here(self, edit: Edit, standing: Standing) -> None:
        """Raises NotHere for the deletion of what the document says."""
        for key, value in edit.items.items():
            if value is None and key in standing.own and standing.fragments.there(key) is None:
                base = standing.assembly.base
                where = base.name if base is not None else "the document"
                raise NotHere(f"{key} is not in etcd but in {where}; edit it there")

    async def _check_since(self, edit: Edit, standing: Standing, plan: _Plan) -> None:
        """Raises Conflict for what changed between what the edit is based on and what it was checked with."""
        if standing.revision <= edit.based_on:
            return
        for service in plan.services:
            now = {key: each.revision for key, each in plan.there.items() if keys.split_key(key)[0] == service}
            if max(now.values(), default=0) > edit.based_on:
                raise await self._conflict(edit, [service])
            try:
                root = f"{self.prefix}{keys.ROOT}{service}/"
                before = await self._ask(self.client.list(root, revision=edit.based_on))
            except _Old as error:
                raise Conflict(
                    f"revision {edit.based_on} is so old that etcd cannot tell what has changed since; look again"
                ) from error
            was = {key[len(self.prefix) :] for key in before.items}
            if any(plan.concerns(key) and key not in now for key in was):
                raise await self._conflict(edit, [service])

    async def _newest(self, plan: _Plan) -> int:
        """The newest revision of the services' keys, to be seen before another try."""
        newest = 0
        for service in plan.services:
            listing = await self._ask(self.client.list(f"{self.prefix}{keys.ROOT}{service}/"))
            found = [each.mod_revision for key, each in listing.items.items() if plan.concerns(key[len(self.prefix) :])]
            newest = max([newest, *found])
        return newest

    # -- the transaction -------------------------------------------------------------------------------------------

    async def _commit(self, plan: _Plan) -> int | None:
        """The revision of the change; None when a comparison failed. Raises ConfigStoreError."""
        records = {self.prefix + key: value for key, value in plan.records.items()}
        proof = min(records)
        compares = [values.absent(proof), *plan.compares(self.prefix)]
        writes: list[Operation] = [*plan.writes(self.prefix), *(Put(key, value) for key, value in records.items())]
        loop = asyncio.get_running_loop()
        began, lost = loop.time(), False
        backoff = Backoff(0.05, 1.0, random.Random())
        while True:
            try:
                done = await self.client.txn(compares, writes, [Get(proof)])
                return _fate(done)
            except Unavailable as error:
                lost |= error.maybe_applied
                if loop.time() >= began + (LOST_PATIENCE if lost else PATIENCE):
                    raise self._untold(error, proof, lost) from error
            except EtcdError as error:
                raise self._untold(error, proof, lost) from error
            await asyncio.sleep(backoff.next())

    def _untold(self, error: EtcdError, proof: str, lost: bool) -> ConfigStoreError:
        if lost:
            return ConfigStoreError(
                f"{self.name}: {error}. It is not known whether the change was made: if it was, {proof} exists once "
                "etcd answers again, and the history tells of it"
            )
        if isinstance(error, LeaseLost):
            return ConfigStoreError(f"{self.name}: an instance that was to be changed is gone; nothing was written")
        if isinstance(error, TooLarge) or "too large" in str(error):
            return ConfigStoreError(f"{self.name}: the change is larger than etcd takes at once ({error})")
        if isinstance(error, Refused) and "too many operations" in str(error):
            return ConfigStoreError(
                f"{self.name}: the change has more keys than etcd takes at once. Make it in parts, or start etcd with "
                "a larger --max-txn-ops; nothing was written"
            )
        return ConfigStoreError(f"{self.name} cannot be written: {error}")

    async def _conflict(self, edit: Edit, services: Iterable[str]) -> Conflict:
        """With who, what and when, as far as there is a record."""
        for service in services:
            kept = (await self._records(service)).get(service, [])
            since = [each.record for each in kept if each.record.revision > edit.based_on]
            if since:
                told = "; ".join(map(etcd_history.told, since[-3:]))
                return Conflict(f"{service} has changed since revision {edit.based_on}: {told}; look again")
        names = ", ".join(services)
        return Conflict(
            f"{names} has changed since revision {edit.based_on}, by a put or deletion past graylb; look again"
        )

    async def _records(self, service: str | None) -> dict[str, list[etcd_history.Kept]]:
        root = self.prefix + etcd_history.ROOT + (f"{service}/" if service is not None else "")
        listing = await self._ask(self.client.list(root))
        return etcd_history.read(listing.items.values(), self.prefix)

    async def _ask(self, question: Awaitable[Listing]) -> Listing:
        try:
            return await question
        except Compacted as error:
            raise _Old(str(error)) from error
        except EtcdError as error:
            raise ConfigStoreError(f"{self.name} cannot be read: {error}") from error


class _Old(ConfigStoreError):
    """That revision is no longer kept."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A checked change. items: what differs, to be written. leases: of instances that are written.

    there: the source's present keys that must be as they are; records: to be put beside the items.
    """

    revision: int
    services: tuple[str, ...]
    items: Mapping[str, bytes | None]
    leases: Mapping[str, int]
    there: Mapping[str, Fragment]
    records: Mapping[str, bytes]

    def concerns(self, key: str) -> bool:
        """Whether a later change of this key is a conflict."""
        return in_force.recorded(key) or (key in self.items and "/instances/" not in key)

    def compares(self, prefix: str) -> list[Compare]:
        written = [key for key in self.items if self.concerns(key)]
        ones = [f"{keys.ROOT}{service}/{part}" for service in self.services for part in ("service", "split")]
        named = list(dict.fromkeys([*written, *ones]))
        rest = [key for key in self.there if key not in named]
        found = [values.unchanged(prefix + key, self._revision(key)) for key in named]
        # beyond that, a deletion past graylb in these very milliseconds is not noticed
        left = max(0, COMPARED - len(found) - 2 * len(self.services))
        found += [values.unchanged(prefix + key, self._revision(key)) for key in rest[:left]]
        for service in self.services:
            for part in ("rules", "lists"):
                found.append(values.none_since(f"{prefix}{keys.ROOT}{service}/{part}/", self.revision))
        return found

    def writes(self, prefix: str) -> list[Operation]:
        return [
            Delete(prefix + key) if value is None else Put(prefix + key, value, self.leases.get(key, 0))
            for key, value in self.items.items()
        ]

    def _revision(self, key: str) -> int:
        return self.there[key].revision if key in self.there else 0


def _plan(standing: Standing, edit: Edit) -> _Plan | None:
    """None when nothing differs. Raises ConfigErrors for what nodes would not take."""
    items = standing.differing(edit.items)
    if not items:
        return None
    before = {key: standing.value(key) for key in items}
    # where a key goes the document's word counts again
    after = {key: value if value is not None else standing.own.get(key) for key, value in items.items()}
    services = tuple(sorted({keys.split_key(key)[0] for key in items}))
    present = {key: each for service in services for key, each in standing.fragments.present(service).items()}
    leases = {key: each.lease for key, each in present.items() if each.lease and items.get(key) is not None}
    records = _records(edit, standing.revision, before, after)
    plan = _Plan(standing.revision, services, items, leases, present, records)
    plan = replace(plan, there={key: each for key, each in present.items() if plan.concerns(key)})
    standing.try_on(items, prepare.now())
    return plan


def _records(edit: Edit, revision: int, before: Values, after: Values) -> dict[str, bytes]:
    """Key -> value, one for each service."""
    at, unique = prepare.now(), uuid.uuid4().hex
    found = {}
    for service in sorted({keys.split_key(key)[0] for key in after}):
        own = [key for key in after if keys.split_key(key)[0] == service]
        was, now = ({key: side[key] for key in own} for side in (before, after))
        record = Record(service, 0, 0, at, edit.who, edit.why, edit.action, was, now, edit.to)
        found[etcd_history.key_of(service, revision, unique)] = etcd_history.encode(record, revision=False)
    return found


def _of_document(own: Mapping[str, bytes]) -> tuple[Record, ...]:
    by_service: dict[str, dict[str, bytes | None]] = {}
    for key, value in own.items():
        if in_force.recorded(key):
            by_service.setdefault(keys.split_key(key)[0], {})[key] = value
    return tuple(
        Record(service, 0, 0, "", "file", "", "file", dict.fromkeys(after), after)
        for service, after in sorted(by_service.items())
    )


def _fate(done: TxnResult) -> int | None:
    """Of a transaction that may have been made before."""
    if done.succeeded:
        return done.revision
    [found] = done.results
    if isinstance(found, tuple) and found:
        return found[0].create_revision
    return None


class _Loader:
    """Document, state file and all keys: what a proxy would have in force after a start.

    The files are read once, for a command is short; keys with every look, but only those that differ are decoded.
    """

    def __init__(self, client: Client, prefix: str, document: Path, state: Path, preset: presets.Name | None) -> None:
        self.client, self.prefix = client, prefix
        self._document, self._state, self._preset = document, state, preset
        self._assembly = Assembly(Fragments(prefix))
        self._base: Base | None = None
        self._own: Mapping[str, bytes] = {}
        self._lock = asyncio.Lock()

    async def document_keys(self) -> Mapping[str, bytes]:
        async with self._lock:
            await self._read_once()
            return self._own

    async def standing(self, revision: int) -> Standing:
        """As of now, which is later than any revision."""
        async with self._lock:
            base = await self._read_once()
            listing = await self.client.list(self.prefix + keys.ROOT)
            found = {key[len(self.prefix) :]: each for key, each in listing.items.items()}
            fragments = self._assembly.fragments
            dirty = await asyncio.to_thread(_take, fragments, found, listing.revision)
            bad = [key for key in (*fragments.refused, *fragments.pending) if fragments.good(key) is None]
            former = [each for key in bad if (each := await self._before(found[key]))]
            if former:  # as a proxy has it that was there before
                seeded = Fragments(self.prefix)
                dirty = seeded.seed(former, 0)
                for service, parts in (await asyncio.to_thread(_take, seeded, found, listing.revision)).items():
                    dirty.setdefault(service, set()).update(parts)
                self._assembly = Assembly(seeded)
            await asyncio.to_thread(self._assembly.update, base, dirty)
            copy = self._assembly.copy(self._assembly.fragments.copy())
            return Standing(listing.revision, copy, self._own)

    async def _read_once(self) -> Base:
        if self._base is None:
            base = await asyncio.to_thread(self._read)
            self._own = await asyncio.to_thread(in_force.document_keys, base)
            self._base = base
        return self._base

    def _read(self) -> Base:
        document = prepare.read(self._document, self._preset)
        completion = states.complete(document, Store(self._state).read(), at=prepare.now())
        return base_of(completion.document, completion.splits, str(self._document), document.resolved_sidecar)

    async def _before(self, item: KeyValue) -> Fragment | None:
        """The last valid value of a key whose value is not."""
        revision = item.mod_revision
        for _ in range(STEPS):
            try:
                before = await self.client.get(item.key, revision=revision - 1)
            except Compacted:
                return None
            if before is None:
                return None
            key = item.key[len(self.prefix) :]
            if in_force.good_value(key, before.value):
                return _fragment(key, before)
            revision = before.mod_revision
        return None


def _take(fragments: Fragments, found: Mapping[str, KeyValue], revision: int) -> dict[str, set[str]]:
    update = Update(revision, {key: _fragment(key, each) for key, each in found.items()}, whole=True)
    return fragments.take(update, prepare.now())


def _fragment(key: str, item: KeyValue) -> Fragment:
    return Fragment(key, item.value, item.mod_revision, item.lease, item.create_revision)
