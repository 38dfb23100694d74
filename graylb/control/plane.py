"""The control plane: what the source says is what the workers serve; or the last good stays, and status says why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graylb.control import prepare
from graylb.control.file_source import FileSource
from graylb.control.logs import log
from graylb.control.prepare import Applied
from graylb.control.store import Conflict, Store, StoreError
from graylb.model import presets
from graylb.model.documents import Document
from graylb.model.problems import ConfigErrors

TRIES: Final = 5
"""How often a revision is made anew because a command wrote to the store at the same time."""

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
    """`applied` is what the workers serve, `refusal` why something newer is not served."""

    def __init__(self, document: Path, store: Store, preset: presets.Name | None = None) -> None:
        self.path = document
        self.preset = preset
        self.store = store
        self.source = FileSource([document, store.path])
        self.applied: Applied | None = None
        self.applied_at = ""
        self.refusal: Refusal | None = None
        self._refused_digest = ""
        self._wake = asyncio.Event()
        self._asked: list[asyncio.Future[None]] = []

    async def start(self) -> Applied:
        """The first revision. Raises StartRefused."""
        try:
            applied, _ = await self._newest()
        except (ConfigErrors, StoreError) as error:
            raise StartRefused(str(error)) from error
        self._accept(applied)
        return applied

    def reload(self) -> asyncio.Future[None]:
        """Look again, as after a change of a file; done once that was applied or refused."""
        looked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(looked)
        self._wake.set()
        return looked

    async def run(self, publish: Publish) -> None:
        """Follows the source for ever. What arrives while a revision is being made counts as one change."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            while True:
                await self._wake.wait()
                self._wake.clear()
                asked, self._asked = self._asked, []
                await self.follow(publish)
                for looked in asked:
                    if not looked.done():
                        looked.set_result(None)

    async def follow(self, publish: Publish) -> None:
        """One look at the source: apply what is new and good, else keep the last good and remember why."""
        last = self.applied
        assert last is not None
        try:
            new, problem = await self._newest()
        except (ConfigErrors, StoreError) as error:
            self._refuse(_errors(error))
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
        if problem is not None:
            self._refuse(_errors(problem))
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
        }

    def services(self) -> list[dict[str, Any]]:
        """Each service in short, by name."""
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
                "overridden": states[service.name].overridden,
                "revision": states[service.name].changes[-1].revision,
            }
            for service in self.applied.snapshot.services
        ]

    async def _watch(self) -> None:
        async for _ in self.source.changes():
            self._wake.set()

    async def _newest(self) -> tuple[Applied, ConfigErrors | None]:
        """What the files say now, and what is wrong with the document if the last good one stands in for it.

        A refused document does not hold up a command: its change is applied to the last good one.
        Raises ConfigErrors when there is no good one, StoreError.
        """
        try:
            document = await asyncio.to_thread(prepare.read, self.path, self.preset)
            self.source.watch_also([self.path, self.store.path, *prepare.list_files(self.path, document)])
            return await self._apply(document), None
        except ConfigErrors as error:
            if self.applied is None:
                raise
            return await self._apply(self.applied.document), error

    async def _apply(self, document: Document) -> Applied:
        """Raises Conflict only when commands write faster than this can read."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(Conflict):
                return await asyncio.to_thread(prepare.apply, document, self.store, unless=self.applied)
        return await asyncio.to_thread(prepare.apply, document, self.store, unless=self.applied)

    def _accept(self, applied: Applied) -> None:
        for warning in applied.document.warnings:
            log.warning("%s", warning)
        self.applied = applied
        self.applied_at = prepare.now()

    def _refuse(self, errors: Sequence[dict[str, Any]]) -> None:
        """Logs what is new; `since` is when it began."""
        refusal = Refusal(self.refusal.since if self.refusal else prepare.now(), tuple(errors))
        if self.refusal is None or self.refusal.errors != refusal.errors:
            assert self.applied is not None
            log.error("refused; revision %d stays in force:\n%s", self.applied.revision, refusal)
        self.refusal = refusal


def _errors(error: ConfigErrors | StoreError) -> list[dict[str, Any]]:
    if isinstance(error, ConfigErrors):
        return [dict(each.to_dict()) for each in error.errors]
    return [{"text": str(error)}]
