"""All that a proxy has to do with etcd: follow its own keys and registries, complete splits, say how it fares, remember
what was good.

Loaded only where a document names an etcd or registries, for gRPC is large.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from graylb.control import prepare
from graylb.control import state as states
from graylb.control.assembly import Base, base_of
from graylb.control.completer import Completer
from graylb.control.etcd.client import Client
from graylb.control.etcd_config import EtcdConfigStore
from graylb.control.etcd_source import EtcdSource, options_of
from graylb.control.in_force import Standing, document_keys
from graylb.control.last_good import Kept, LastGood
from graylb.control.layers import Layers
from graylb.control.logs import log
from graylb.control.nodes import NodeStatus
from graylb.control.pace import Pauses, none
from graylb.control.prepare import Applied
from graylb.control.recorder import Recorder
from graylb.control.registry_sources import FAREWELL, RegistrySources, within
from graylb.control.sources import Update
from graylb.control.store import Conflict, Store, StoreError
from graylb.model import keys
from graylb.model.discovery import RegistryPart
from graylb.model.documents import Document
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.settings import EtcdPart

if TYPE_CHECKING:
    from graylb.control.state import State

TRIES: Final = 5
HASTE: Final = 1.0
"""Seconds that a start waits for etcd when it knows what was good last."""
SLOW: Final = 5.0
"""The same when it does not, and it is not known yet whether etcd can be reached."""
PATIENCE: Final = 30.0
"""Seconds that a start waits for etcd when there is nothing to serve without it."""
LATE: Final = 10.0
"""Seconds that somebody who changed something waits for it to come from etcd."""
SAVE_EVERY: Final = 1.0


class NothingToServe(Exception):
    """etcd cannot be reached, nothing was kept, and the document has no service of its own."""


class EtcdSide:
    """`newest` is what the plane asks for; the rest goes on by itself after `begin`."""

    def __init__(
        self, part: EtcdPart | None, document: Path, store: Store, registries: Sequence[RegistryPart] = ()
    ) -> None:
        """part: of our own keys, if the document has any. Raises ValueError for settings that cannot be."""
        self.part = part
        self.registries = RegistrySources(registries, part, document.parent)
        self.node = (part.node if part is not None else None) or socket.gethostname()
        self.look_at_files = True
        self.kept: Kept | None = None
        """What was found on disk."""
        self.served_kept = False
        self._document, self._store = document, store
        self._options = options_of(part, document.parent) if part is not None else None
        self.last_good = LastGood(store.path.with_name(store.path.name.removesuffix(".json") + ".etcd"))
        self.layers = Layers(f"{part.prefix}/" if part is not None else "", self.registries.registries)
        self._client: Client | None = None
        self._source: EtcdSource | None = None
        self._completer: Completer | None = None
        self._recorder: Recorder | None = None
        self._nodes: NodeStatus | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._base: Base | None = None
        self._made_of: tuple[Document, State] | None = None
        self._file_errors: list[dict[str, Any]] = []
        self._saved = -1
        self._stamp: tuple[int, ...] = ()
        self._to_save = asyncio.Event()
        self._applied: Applied | None = None
        self._own_keys: tuple[Base, Mapping[str, bytes]] | None = None
        self._took = asyncio.Event()
        self._config_store: EtcdConfigStore | None = None
        self._closed = False

    @property
    def moved(self) -> list[str]:
        """What of these the document has otherwise by now."""
        if self._made_of is None:
            return []
        now = self._made_of[0]
        pairs = {"etcd": (now.etcd, self.part), "registries": (now.registries, self.registries.parts)}
        return [name for name, (wanted, followed) in pairs.items() if wanted != followed]

    @property
    def known(self) -> bool:
        """Whether everything that is followed has said what it has."""
        return all(each.known.is_set() for each in self._sources)

    @property
    def _sources(self) -> list[EtcdSource]:
        return [*([self._source] if self._source is not None else []), *self.registries.sources]

    async def start(self, document: Document, wake: Callable[[], object]) -> Applied:
        """What to serve first; wake: called when `newest` has something to say. Raises NothingToServe, ConfigErrors."""
        self.kept = await asyncio.to_thread(self.last_good.read, self.layers.prefix)
        if self.last_good.problem:
            log.warning("%s", self.last_good.problem)
        if self.kept is not None:
            self.layers.seed(self.kept)
            self._saved, self._stamp = self.kept.revision, self.layers.stamp
        if self.part is not None and self._options is not None:
            self._client = Client(self._options)
            self._recorder = Recorder(self._client, self.part.prefix, self._document_keys)
            self._source = EtcdSource(self._client, f"{self.part.prefix}/", keys.ROOT)
            self._source.tell(self._recorder.log.loaded, self._recorder.log.took)
            await self._source.__aenter__()
            self._feeding = asyncio.create_task(self._feed(self._source, wake))

        def offer(index: int, update: Update) -> None:
            self.layers.offer_registered(index, update)
            wake()

        await self.registries.start(self._client, offer)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        await self._wait(loop.time() + (HASTE if self.kept is not None else SLOW), heard=True)

        async def read() -> Document:
            return document

        applied, _ = await self.newest(read, None)
        while self._must_wait(applied):
            if loop.time() >= deadline:
                errors = [each.health().error for each in self._sources if not each.known.is_set()]
                error = next(filter(None, errors), "no answer")
                why = "etcd is required" if applied.snapshot.services else "the document alone has no working service"
                raise NothingToServe(
                    f"nothing to serve: {error}; there is no last good configuration at {self.last_good.path}, and "
                    + why
                )
            await self._wait(deadline, heard=False)
            applied, _ = await self.newest(read, applied)
        if not self.known:
            self.served_kept = self.kept is not None
            what = f"the last good configuration, of {self.kept.at}" if self.kept else "the document alone"
            away = dict.fromkeys(each.name for each in self._sources if not each.known.is_set())
            log.warning("%s cannot be reached: starting with %s", ", ".join(away), what)
        return applied

    def begin(self, group: asyncio.TaskGroup, wake: Callable[[], object]) -> None:
        """The duties beside following, as tasks of `group`."""
        if self.part is not None and self._client is not None and self._recorder is not None:
            self._completer = Completer(self._client, self.part.prefix, self.node, self.layers.part, self.layers.split)
            self._completer.on_turn = self._recorder.turn
            self._nodes = NodeStatus(self._client, f"{self.part.prefix}/nodes/{self.node}", self.node_status)
            group.create_task(_attend(self._completer))
            group.create_task(_attend(self._nodes))
            group.create_task(self._recorder.run())
        group.create_task(self._save())
        group.create_task(self.registries.attended())
        group.create_task(self._attended())
        wake()  # files may have changed, and splits may wait for a leader

    async def close(self) -> None:
        """Once `begin`'s tasks have ended, or before; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        if self._applied is not None and self._stamp != self.layers.stamp:
            await asyncio.to_thread(self.last_good.write, self.layers.kept(self._applied.at))
        await self.registries.close()
        leaving = [each.__aexit__() for each in (self._completer, self._nodes, self._source) if each is not None]
        self._completer = self._nodes = self._feeding = None
        await asyncio.gather(*(within(FAREWELL, each) for each in leaving))
        if self._client is not None:
            client, self._client = self._client, None
            await within(FAREWELL, client.close())

    async def newest(
        self, read: Callable[[], Awaitable[Document]], last: Applied | None
    ) -> tuple[Applied, list[dict[str, Any]]]:
        """What document and etcd say now, and what of it is not in force. Raises ConfigErrors, StoreError."""
        from graylb.control.plane import errors_of

        former = self._base, self._made_of
        if self.look_at_files or self._base is None:
            self.look_at_files = False
            self._file_errors = []
            try:
                await self._make_base(await read())
            except ConfigErrors as error:
                if self._base is None:
                    raise
                self._file_errors = errors_of(error)
        update = self.layers.collect()
        try:
            applied = await self._apply(update, last)
        except ConfigErrors as error:
            if former[0] is None or self._base is former[0]:
                raise
            self._file_errors = errors_of(error)
            self._base, self._made_of = former
            applied = await self._apply(None, last)
        self._took.set()
        if self._completer is not None:
            self._completer.look(self.layers.pending())
        return applied, self.errors()

    def config_store(self) -> EtcdConfigStore:
        """What people change, over this proxy's client and what it has in force. After `start`; not without `part`.

        It is one for all who ask: who reads after somebody's write sees it.
        """
        assert self._client is not None
        assert self.part is not None
        if self._config_store is None:
            self._config_store = EtcdConfigStore(self._client, self.part, self.standing, self._document_keys)
        return self._config_store

    async def standing(self, revision: int) -> Standing:
        """A copy of what is in force, as of that revision or later if that comes within LATE."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE):
                while self.layers.taken < revision:
                    self._took.clear()
                    await self._took.wait()
        taken, assembly = await asyncio.to_thread(self.layers.copy)
        base = assembly.base
        assert base is not None
        return Standing(taken, assembly, await self._document_keys(base))

    async def _document_keys(self, base: Base | None = None) -> Mapping[str, bytes]:
        """base: the present one unless given."""
        base = base or self._base
        if base is None:
            return {}
        if self._own_keys is None or self._own_keys[0] is not base:
            self._own_keys = base, await asyncio.to_thread(document_keys, base)
        return self._own_keys[1]

    def errors(self) -> list[dict[str, Any]]:
        """What is not in force, and why."""
        return [*self._file_errors, *self.layers.report.errors(self.layers.prefix)]

    def applied(self, applied: Applied) -> None:
        """It is in force."""
        self._applied = applied
        self._to_save.set()
        if self.known:
            self.served_kept = False

    def registry_status(self) -> list[dict[str, Any]]:
        """Of each registry as seen from here."""
        return self.registries.status(self.layers.report.registries)

    def status(self) -> dict[str, Any] | None:
        """Of our own etcd as seen from here, if there is one."""
        if self._source is None or self.part is None:
            return None
        health, report = self._source.health(), self.layers.report
        return {
            "connected": health.connected,
            "error": health.error,
            "since": health.since,
            **health.more,
            "prefix": self.part.prefix,
            "node": self.node,
            "leader": self._completer.leader if self._completer is not None else None,
            "problems_writing": self._writing(),
            "seen": self.layers.seen,
            "applied": self.layers.fragments.revision,
            "lag": self._lag(),
            "refused": [
                {
                    "key": each.key,
                    "since": each.since,
                    "revision": each.revision,
                    "errors": [e.to_dict() for e in each.errors],
                }
                for each in report.refused
            ],
            "problems": [each.to_dict() for each in report.problems],
            "pending": list(report.pending),
            "held": report.held,
            "last_good": {
                "file": str(self.last_good.path.absolute()),
                "revision": self._saved if self._saved >= 0 else None,
                "served": self.served_kept,
                "problem": self.last_good.problem,
            },
        }

    def _writing(self) -> list[str]:
        """Why this node can neither lead nor tell its status, as far as that is not because etcd is away."""
        duties = (self._completer, self._nodes, self._recorder)
        found = [str(each.problem) for each in duties if each is not None and each.problem is not None]
        return list(dict.fromkeys(found))

    def node_status(self) -> dict[str, Any]:
        """What the other nodes may know of this one; the same as long as nothing happens."""
        from graylb import __version__

        applied, report = self._applied, self.layers.report
        refused = [
            {
                "key": each.key,
                "since": each.since,
                "revision": each.revision,
                "errors": [{"path": e.path, "expected": e.expected, "text": str(e)} for e in each.errors[:10]],
            }
            for each in report.refused[:100]
        ]
        return {
            "node": self.node,
            "version": __version__,
            "revision": applied.revision if applied else None,
            "digest": applied.digest if applied else None,
            "applied_at": applied.at if applied else None,
            "seen": self.layers.seen,
            "lag": self._lag(),
            "refused": refused,
            "problems": [str(each) for each in report.problems[:100]],
            "pending": list(report.pending[:100]),
            "held": report.held,
            "registries": [
                {
                    "name": each.name,
                    "instances": each.instances,
                    "held": each.held,
                    "refused": [str(error["text"]) for error in each.errors()][:10],
                }
                for each in report.registries
            ],
        }

    def _lag(self) -> float:
        """Seconds for which the oldest change that is not applied has waited."""
        began = self.layers.offered_at
        return round(asyncio.get_running_loop().time() - began, 1) if began else 0.0

    def _must_wait(self, applied: Applied) -> bool:
        """Whether there is nothing to start with as long as etcd cannot be reached."""
        required = self.part is not None and self.part.required
        return (required or not applied.snapshot.services) and self.kept is None and not self.known

    async def _make_base(self, document: Document) -> None:
        state = await asyncio.to_thread(self._store.read)
        completion = await asyncio.to_thread(states.complete, document, state, at=prepare.now())
        for _ in range(TRIES):
            try:
                if completion.state != state:
                    await asyncio.to_thread(self._store.put, completion.state, expected=state.revision)
                break
            except Conflict:
                state = await asyncio.to_thread(self._store.read)
                completion = await asyncio.to_thread(states.complete, document, state, at=prepare.now())
        else:
            raise StoreError(f"{self._store.path}: commands write faster than this can read")
        if self._base is None or self._made_of is None or (document, completion.state) != self._made_of:
            self._base = base_of(completion.document, completion.splits, str(self._document), document.resolved_sidecar)
            self._made_of = document, completion.state

    async def _apply(self, update: Any, last: Applied | None) -> Applied:
        assert self._base is not None
        assert self._made_of is not None
        document, state = self._made_of
        try:
            if self.layers.quick(update):  # to go to a thread and back costs more, above all on a busy machine
                return self.layers.apply(update, document, self._base, state, last)
            breath = Pauses() if last is not None else none  # at the start nobody is served yet
            return await asyncio.to_thread(self.layers.apply, update, document, self._base, state, last, breath)
        except ConfigErrors:
            raise
        except Exception as error:
            if last is None:
                raise
            # what one put brings about must not stop all proxies
            log.exception("what etcd says cannot be made a configuration")
            fault = f"a fault of graylb's own: {error!r}"
            raise ConfigErrors([ConfigError(self.layers.prefix, 1, 1, "", message=fault)]) from error

    async def _feed(self, source: EtcdSource, wake: Callable[[], object]) -> None:
        async for update in source.updates():
            self.layers.offer(update)
            wake()

    async def _attended(self) -> None:
        """That following has ended by itself is no secret."""
        if self._feeding is not None:
            await asyncio.wait([self._feeding])
            if not self._feeding.cancelled():
                self._feeding.result()

    async def _wait(self, deadline: float, *, heard: bool) -> None:
        """Until all keys are there; with `heard`, or until it is known that they cannot be had."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                for each in self._sources:
                    await (each.heard if heard else each.known).wait()

    async def _save(self) -> None:
        told = ""
        while True:
            await self._to_save.wait()
            self._to_save.clear()
            stamp = self.layers.stamp
            if self._applied is not None and stamp != self._stamp:
                await asyncio.to_thread(self.last_good.write, self.layers.kept(self._applied.at), Pauses())
                if self.last_good.problem:
                    if self.last_good.problem != told:
                        log.warning("%s", self.last_good.problem)
                    self._to_save.set()  # there may be room the next time
                else:
                    self._saved, self._stamp = self.layers.fragments.revision, stamp
                told = self.last_good.problem
                await asyncio.sleep(SAVE_EVERY)


async def _attend(duty: Completer | NodeStatus) -> None:
    """It is left in `EtcdSide.close`, which can be later than the end of this."""
    await duty.__aenter__()
    await duty.run()
