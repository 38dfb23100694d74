"""The store of what people change on an etcd of a test, what a person does past it, and proxies without workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from graylb.control import in_force, prepare
from graylb.control.config_store import Edit, Record
from graylb.control.etcd.client import Client
from graylb.control.etcd_config import EtcdConfigStore
from graylb.control.etcd_side import EtcdSide
from graylb.control.store import Store, state_path
from graylb.model.documents import Document
from tests.control import parts
from tests.control.etcd import support
from tests.control.etcd.servers import Cluster

SERVICE = b'{"sticky":[{"header":"x-user-id"}],"stable":"v1"}'


class World:
    """One store on one prefix, and what a person does past it."""

    def __init__(self, store: EtcdConfigStore, client: Client) -> None:
        self.store, self.client = store, client

    async def past(self, key: str, value: Any) -> int:
        """A bare put or deletion; its revision, 0 for a deletion."""
        if value is None:
            await self.client.delete(self.store.prefix + key)
            return 0
        return await self.client.put(self.store.prefix + key, text(value))

    async def edit(self, items: Mapping[str, Any], who: str = "ann", **more: Any) -> int:
        """On what is in force now unless `based_on` says otherwise."""
        based_on = more.pop("based_on", None) or (await self.store.read()).revision
        texts = {key: None if value is None else text(value) for key, value in items.items()}
        return await self.store.write(
            Edit(texts, based_on, who, more.pop("why", ""), more.pop("action", "set"), **more)
        )

    async def get(self, key: str) -> Any:
        found = await self.client.get(self.store.prefix + key)
        return None if found is None else json.loads(found.value)

    async def users(self) -> None:
        """A service of two instances."""
        for number in (1, 2):
            instance = {"address": f"127.0.0.1:900{number}", "version": f"v{number}"}
            await self.past(f"services/users/instances/{number}", instance)
        await self.past("services/users/service", SERVICE)

    async def records(self, service: str = "users", count: int = 0) -> list[Record]:
        """Oldest first, once there are so many, without what the document says."""
        found: list[Record] = []

        async def look() -> bool:
            found[:] = [each for each in await self.store.history(service) if each.action != "file"][::-1]
            return len(found) >= count

        await support.eventually(look, f"{count} records")
        return found


def text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else orjson.dumps(value)


def weights(*shares: float) -> dict[str, float]:
    return {f"v{number}": share for number, share in enumerate(shares, 1)}


def own(prefix: str) -> str:
    """A prefix as documents name it."""
    return "/" + "".join(c if c.isalnum() else "-" for c in prefix.strip("/"))


def written(etcd: Cluster, folder: Path, prefix: str, services: dict[str, Any] | None = None, **etcd_: Any) -> Path:
    """A document on that prefix."""
    folder.mkdir(exist_ok=True)
    document = {**parts.document(x={}), "services": services or {}}
    if (registries := etcd_.pop("registries", None)) is not None:
        document["registries"] = registries
    document["etcd"] = {"endpoints": list(etcd.endpoints), "prefix": own(prefix), **etcd_}
    return parts.write(folder, document)


@contextlib.asynccontextmanager
async def opened(
    etcd: Cluster, folder: Path, prefix: str, services: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[World]:
    """As a command has it, without a proxy."""
    path = written(etcd, folder, prefix, services, **more)
    part = prepare.read(path).etcd
    assert part is not None
    async with support.client(etcd) as client, EtcdConfigStore.opened(part, path) as store:
        yield World(store, client)


@contextlib.asynccontextmanager
async def proxied(
    etcd: Cluster, folder: Path, prefix: str, services: dict[str, Any] | None = None, node: str = "a", **more: Any
) -> AsyncIterator[World]:
    """As a running proxy has it: it follows, may lead, and records."""
    path = written(etcd, folder / node, prefix, services, node=node, **more)
    document = prepare.read(path)
    assert document.etcd is not None
    side = EtcdSide(document.etcd, path, Store(state_path(path)), document.registries)
    wake = asyncio.Event()

    async def read() -> Document:
        return document

    async def follow() -> None:
        applied = await side.start(document, wake.set)
        side.applied(applied)
        started.set()
        async with asyncio.TaskGroup() as group:
            side.begin(group, wake.set)
            while True:
                await wake.wait()
                wake.clear()
                applied, _ = await side.newest(read, applied)
                side.applied(applied)

    started = asyncio.Event()
    following = asyncio.create_task(follow())
    try:
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([following, waiting], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            waiting.cancel()
            following.result()
        async with support.client(etcd) as client:
            yield World(side.config_store(), client)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await side.close()
    if not following.cancelled():
        following.result()


def left_by(records: list[Record]) -> dict[str, bytes | None]:
    """What records, oldest first, leave behind; each begins where those before it ended."""
    found: dict[str, bytes | None] = {}
    for record in records:
        for key, before in record.before.items():
            if key in found:
                assert alike(key, found[key], before), f"{record} does not follow {found[key]!r}"
        found |= record.after
    return found


def alike(key: str, one: bytes | None, other: bytes | None) -> bool:
    return one == other if one is None or other is None else in_force.same(key, one, other)
