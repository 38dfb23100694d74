"""etcd as a source: the keys of a prefix as fragments. Loaded only where a document has an etcd: gRPC is large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from graylb.control.etcd.client import Client
from graylb.control.etcd.links import Options
from graylb.control.etcd.mailbox import Changed, Loaded, Lost, Restored
from graylb.control.etcd.pieces import in_pieces
from graylb.control.etcd.reflector import Reflector
from graylb.control.etcd.values import KeyValue
from graylb.control.etcd.watch import Batch
from graylb.control.logs import log
from graylb.control.prepare import now
from graylb.control.sources import Fragment, Health, Update
from graylb.model.settings import EtcdServersPart


def options_of(part: EtcdServersPart, folder: Path) -> Options:
    """Raises ValueError, also for files that cannot be read. folder: of the document."""

    def path(name: str | None) -> Path | None:
        return folder / name if name is not None else None

    password = ""
    if part.password_file is not None:
        try:
            password = (folder / part.password_file).read_text(encoding="utf-8").split("\n")[0].rstrip("\r")
        except OSError as error:
            raise ValueError(f"etcd: password_file {part.password_file} cannot be read: {error.strerror}") from error
        if not password:
            raise ValueError(
                f"etcd: password_file {part.password_file} is empty; expected the password in its first line"
            )
    return Options(
        endpoints=part.endpoints,
        user=part.user or "",
        password=password,
        ca=path(part.ca),
        cert=path(part.cert),
        key=path(part.key),
    )


class EtcdSource:
    """Use: `async with EtcdSource(client, prefix, below) as source: async for update in source.updates(): …`.

    prefix: what fragments' keys lack; below: what these all begin with. name: in messages.
    """

    def __init__(self, client: Client, prefix: str, below: str = "", *, name: str = "etcd") -> None:
        self.client = client
        self.prefix, self.name = prefix, name
        self.heard = asyncio.Event()
        """Set once etcd has answered, or is known not to."""
        self.known = asyncio.Event()
        """Set once etcd's keys are known, be it through a member without quorum."""
        self._reflector = Reflector(client, prefix + below)
        self._error = ""
        self._since = ""
        self._stale = False

    def tell(self, on_load: Callable[[int], object], on_batch: Callable[[Batch], object]) -> None:
        """Every change by itself, as `Reflector` has it; before this is entered."""
        self._reflector.on_load, self._reflector.on_batch = on_load, on_batch

    async def __aenter__(self) -> Self:
        await self._reflector.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reflector.__aexit__()

    async def updates(self) -> AsyncIterator[Update]:
        async for event in self._reflector:
            match event:
                case Loaded():
                    if event.cluster_changed:
                        log.warning("%s: another store than before, with %d keys", self.name, len(event.items))
                    self._stale = event.stale
                    yield Update(
                        event.revision, dict(map(self._fragment, event.items.items())), whole=True, stale=event.stale
                    )
                case Changed():
                    yield Update(event.revision, dict(await in_pieces(self._fragment, event.changes.items())))
                case Lost():
                    self._error, self._since = str(event.error), now()
                    log.warning("%s cannot be followed; what was good last stays: %s", self.name, self._error)
                case Restored():
                    log.info("%s is being followed again", self.name)
                    self._error = self._since = ""
            if not isinstance(event, Lost):
                self.known.set()
            self.heard.set()

    def health(self) -> Health:
        """connected: what etcd has is known here."""
        more: dict[str, Any] = {"endpoints": list(self.client.options.endpoints), "stale": self._stale}
        connected = self.known.is_set() and not self._error
        return Health(self.name, connected, self._reflector.revision, self._error, self._since, more)

    def _fragment(self, item: tuple[str, KeyValue | None]) -> tuple[str, Fragment | None]:
        key, found = item[0][len(self.prefix) :], item[1]
        if found is None:
            return key, None
        return key, Fragment(key, found.value, found.mod_revision, found.lease, found.create_revision)
