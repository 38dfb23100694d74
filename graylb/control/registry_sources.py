"""The registries of a document, followed: each is one more prefix that is reflected, of our etcd or of another one.

Nothing is ever written there. Registries of one etcd share a client, also with our own keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import EtcdError
from graylb.control.etcd.links import Options
from graylb.control.etcd_source import EtcdSource, options_of
from graylb.control.registered import Registered, Registries, Report
from graylb.model.discovery import RegistryPart
from graylb.model.settings import EtcdServersPart

FAREWELL: Final = 1.0
"""Seconds for taking leave of etcd."""


class RegistrySources:
    """`registries` is for `Layers`; `start` follows, and gives what each says to `offer`, with its place there."""

    def __init__(self, parts: Sequence[RegistryPart], etcd: EtcdServersPart | None, folder: Path) -> None:
        """etcd: the document's own. folder: of the document. Raises ValueError for settings that cannot be."""
        self.parts = tuple(parts)
        self._options: list[Options] = []
        every: list[Registered] = []
        for part in parts:
            servers = part.etcd or etcd
            assert servers is not None
            try:
                options = options_of(servers, folder)
            except ValueError as error:
                raise ValueError(f"registry {part.called}: {error}") from error
            for prefix, below in part.watched:
                self._options.append(options)
                every.append(Registered(part, prefix, below))
        self.registries = Registries(every)
        self.sources: list[EtcdSource] = []
        self._clients: dict[Options, Client] = {}
        self._borrowed: Client | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, own: Client | None, offer: Callable[[int, Any], object]) -> None:
        """own: the client of our keys. offer: gets what each registry says, with its index in `registries.every`."""
        self._borrowed = own
        if own is not None:
            self._clients[own.options] = own
        for index, (registered, options) in enumerate(zip(self.registries.every, self._options, strict=True)):
            client = self._clients.setdefault(options, Client(options))
            name = f"registry {registered.part.called}"
            source = await EtcdSource(client, registered.prefix, registered.below, name=name).__aenter__()
            self.sources.append(source)
            self._tasks.append(asyncio.create_task(self._feed(index, source, offer), name=name))

    async def attended(self) -> None:
        """That following has ended by itself is no secret."""
        await asyncio.gather(*map(asyncio.shield, self._tasks))

    async def close(self) -> None:
        """Once more does nothing. The client that was lent stays open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(within(FAREWELL, each.__aexit__()) for each in self.sources))
        mine = [each for each in self._clients.values() if each is not self._borrowed]
        await asyncio.gather(*(within(FAREWELL, each.close()) for each in mine))
        self._tasks, self.sources, self._clients = [], [], {}

    def status(self, reports: Iterable[Report]) -> list[dict[str, Any]]:
        """Of each, as seen from here. reports: of `registries`, in the same order."""
        found = []
        for report, source in zip(reports, self.sources, strict=True):
            health = source.health()
            connection = {"connected": health.connected, "error": health.error, "since": health.since, **health.more}
            found.append({**report.to_dict(), **connection})
        return found

    @staticmethod
    async def _feed(index: int, source: EtcdSource, offer: Callable[[int, Any], object]) -> None:
        async for update in source.updates():
            offer(index, update)


async def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """An etcd that does not answer holds nobody up."""
    with contextlib.suppress(TimeoutError, EtcdError):
        async with asyncio.timeout(seconds):
            await work
