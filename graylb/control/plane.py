"""The control plane: what the sources say is what the workers serve; or the last good stays, and status says why."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from graylb.control import certificates, prepare
from graylb.control.config_store import ConfigStore
from graylb.control.file_config import FileConfigStore
from graylb.control.file_source import FileSource
from graylb.control.logs import log
from graylb.control.pace import Pace, rested
from graylb.control.prepare import Applied
from graylb.control.store import Conflict, Store, StoreError
from graylb.model import presets
from graylb.model.documents import Document
from graylb.model.problems import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from graylb.control.etcd_side import EtcdSide

AGAIN: Final = 0.5
"""Seconds until a look that failed for want of space or descriptors is taken again: no file may change meanwhile."""
TRIES: Final = 5
"""How often a revision is made anew because a command wrote to the store at the same time."""
LOGGED: Final = 20
"""Errors of one look that go to the log; the status has all."""

Publish = Callable[[Applied, Applied], Awaitable[list[str]]]
"""(new, last good) -> why workers refused the new one; none refused: all serve it."""


class StartRefused(Exception):
    """There is no good configuration to start with. The message has every reason."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the newest configuration is not the one in force. `errors` as `ConfigError.to_dict`, or {"text"}."""

    since: str
    errors: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        return "\n".join(str(error["text"]) for error in self.errors)


class Plane:
    """`applied` is what the workers serve, `refusal` why something newer is not served.

    `side`: what belongs to the document's etcd and registries, if it has any.
    """

    def __init__(self, document: Path, store: Store, preset: presets.Name | None = None) -> None:
        self.path = document
        self.preset = preset
        self.store = store
        self.source = FileSource([document, store.path])
        self.side: EtcdSide | None = None
        self.applied: Applied | None = None
        self.applied_at = ""
        self.refusal: Refusal | None = None
        self.pace = Pace()
        self._refused_digest = ""
        self._wake = asyncio.Event()
        self._asked: list[asyncio.Future[None]] = []
        self._later: asyncio.TimerHandle | None = None

    async def start(self) -> Applied:
        """The first revision. Raises StartRefused."""
        try:
            document = await self._read()
            if document.partial:
                applied = await self._start_side(document)
            else:
                applied = await self._apply(document)
        except (ConfigErrors, StoreError) as error:
            raise StartRefused(str(error)) from error
        self._accept(applied)
        return applied

    async def close(self) -> None:
        """Takes leave of etcd, if there is one."""
        if self._later is not None:
            self._later.cancel()
        if self.side is not None:
            await self.side.close()

    def config_store(self) -> AbstractAsyncContextManager[ConfigStore]:
        """Where people change what is in force; entered for each use."""
        if self.side is not None and self.side.part is not None:
            return self.side.config_store()
        return FileConfigStore(self.path, self.store, self.preset)

    def reload(self) -> asyncio.Future[None]:
        """Look again, as after a change of a file; done once that was applied or refused."""
        looked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(looked)
        self._files_changed()
        return looked

    async def run(self, publish: Publish) -> None:
        """Follows the sources for ever. What arrives while a revision is being made counts as one change."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            if self.side is not None:
                self.side.begin(group, self._wake.set)
            while True:
                await self._wake.wait()
                self._wake.clear()
                began = loop.time()
                asked, self._asked = self._asked, []
                await self.follow(publish)
                for looked in asked:
                    if not looked.done():
                        looked.set_result(None)
                if self.side is not None:
                    await rested(self.pace.rest(began, loop.time()), self._newest_came)

    async def follow(self, publish: Publish) -> None:
        """One look at the sources: apply what is new and good, else keep the last good and remember why."""
        last = self.applied
        assert last is not None
        try:
            new, errors = await self._newest()
        except (ConfigErrors, StoreError) as error:
            if isinstance(error, StoreError):
                self._look_again()
            self._refuse(errors_of(error))
            return
        if new.digest == self._refused_digest:
            return
        if new.digest != last.digest:
            refusals = await publish(new, last)
            if refusals:
                self._refused_digest = new.digest
                self._refuse([{"text": f"revision {new.revision} refused by {text}"} for text in refusals])
                return
            log.info("revision %d applied (was %d)", new.revision, last.revision)
            self._accept(new)
        self._refused_digest = ""
        if errors:
            self._refuse(errors)
        elif self.refusal is not None:
            log.info("nothing is refused any more; revision %d is in force", new.revision)
            self.refusal = None

    def status(self) -> dict[str, Any]:
        """The configuration's part of the status."""
        applied = self.applied
        assert applied is not None
        return {
            "document": str(self.path.absolute()),
            "preset": self.preset,
            "state": str(self.store.path.absolute()),
            "revision": applied.revision,
            "digest": applied.digest,
            "applied_at": self.applied_at,
            "refusal": {"since": self.refusal.since, "errors": list(self.refusal.errors)} if self.refusal else None,
            "warnings": [warning.to_dict() for warning in applied.document.warnings],
            "certificates": certificates.report(applied.snapshot, int(time.time())),
            "etcd": self.side.status() if self.side is not None else None,
            "registries": self.side.registry_status() if self.side is not None else [],
        }

    def services(self) -> list[dict[str, Any]]:
        """Each service in short, by name. revision: of its newest change, as far as the document's store knows it."""
        assert self.applied is not None
        states = self.applied.state.services
        return [
            {
                "name": service.name,
                "stable": service.stable,
                "split": dict(service.split.weights) if service.split else None,
                "rules": len(service.rules),
                "instances": len(service.instances),
                "versions": sorted({instance.version for instance in service.instances}),
                "overridden": service.name in states and states[service.name].overridden,
                "revision": states[service.name].changes[-1].revision if service.name in states else None,
            }
            for service in self.applied.snapshot.services
        ]

    async def _watch(self) -> None:
        async for update in self.source.updates():
            if not update.whole:  # the first one is what `start` has read
                self._files_changed()

    def _newest_came(self) -> float:
        return self.side.layers.arrived_at if self.side is not None else 0.0

    def _files_changed(self) -> None:
        if self.side is not None:
            self.side.look_at_files = True
        self._wake.set()

    def _look_again(self) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(AGAIN, self._due)

    def _due(self) -> None:
        self._later = None
        self._files_changed()

    async def _newest(self) -> tuple[Applied, list[dict[str, Any]]]:
        """What the sources say now, and what is wrong where something last good stands in for it.

        A refused document does not hold up a command: its change is applied to the last good one.
        Raises ConfigErrors when there is no good one, StoreError.
        """
        if self.side is not None:
            return await self.side.newest(self._read, self.applied)
        assert self.applied is not None
        try:
            document = await self._read()
            if document.partial:  # it was validated as a part of something larger
                part = "etcd" if document.etcd is not None else "registries"
                late = f"the document names {part} now, which takes a new start or a roll"
                raise ConfigErrors([ConfigError(str(self.path), 1, 1, f"$.{part}", message=late)])
            return await self._apply(document), []
        except ConfigErrors as error:
            return await self._apply(self.applied.document), errors_of(error)

    async def _read(self) -> Document:
        """The document as it is. Raises ConfigErrors."""
        try:
            document = await asyncio.to_thread(prepare.read, self.path, self.preset)
        except prepare.Passing:
            self._look_again()
            raise
        self.source.watch_also([self.path, self.store.path, *prepare.list_files(self.path, document)])
        return document

    async def _apply(self, document: Document) -> Applied:
        """Raises Conflict only when commands write faster than this can read."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(Conflict):
                return await asyncio.to_thread(prepare.apply, document, self.store, unless=self.applied)
        return await asyncio.to_thread(prepare.apply, document, self.store, unless=self.applied)

    async def _start_side(self, document: Document) -> Applied:
        """Raises ConfigErrors, StoreError, StartRefused."""
        loading = asyncio.to_thread(importlib.import_module, "graylb.control.etcd_side")
        module = await loading  # gRPC takes a moment to load
        try:
            self.side = module.EtcdSide(document.etcd, self.path, self.store, document.registries)
        except ValueError as error:
            path = "$.registries" if str(error).startswith("registry ") else "$.etcd"
            raise ConfigErrors([ConfigError(str(self.path), 1, 1, path, message=str(error))]) from error
        try:
            applied: Applied = await self.side.start(document, self._wake.set)
        except module.NothingToServe as error:
            raise StartRefused(str(error)) from error
        if errors := self.side.errors():
            self.applied = applied
            self._refuse(errors)
        return applied

    def _accept(self, applied: Applied) -> None:
        for warning in applied.document.warnings:
            log.warning("%s", warning)
        self.applied = applied
        self.applied_at = prepare.now()
        if self.side is not None:
            self.side.applied(applied)

    def _refuse(self, errors: Sequence[dict[str, Any]]) -> None:
        """Logs what is new; `since` is when it began."""
        refusal = Refusal(self.refusal.since if self.refusal else prepare.now(), tuple(errors))
        known = {str(error["text"]) for error in self.refusal.errors} if self.refusal else set()
        fresh = [text for error in errors if (text := str(error["text"])) not in known]
        if fresh:
            assert self.applied is not None
            more = f"\nand {len(fresh) - LOGGED} more" if len(fresh) > LOGGED else ""
            log.error(
                "refused; revision %d stays in force:\n%s%s", self.applied.revision, "\n".join(fresh[:LOGGED]), more
            )
        self.refusal = refusal


def errors_of(error: ConfigErrors | StoreError) -> list[dict[str, Any]]:
    """As in `Refusal`."""
    if isinstance(error, ConfigErrors):
        return [dict(each.to_dict()) for each in error.errors]
    return [{"text": str(error)}]
