"""How this proxy fares, for the others to see: one key under a lease, put again when something of it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Self

import orjson

from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import EtcdError
from graylb.control.etcd.lease import Lease

TTL: Final = 10
"""Seconds after which a node that died is no longer there."""
EVERY: Final = 1.0


class NodeStatus:
    """Use: `async with NodeStatus(client, key, status) as node: await node.run()`, which never ends."""

    def __init__(self, client: Client, key: str, status: Callable[[], dict[str, Any]]) -> None:
        self.key, self._status = key, status
        self._lease = Lease(client, TTL)

    @property
    def problem(self) -> EtcdError | None:
        """Why the status cannot be told now."""
        return self._lease.problem

    async def __aenter__(self) -> Self:
        await self._lease.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lease.__aexit__()

    async def run(self) -> None:
        """Says what is new, at most once a second."""
        while True:
            self._lease.set(self.key, orjson.dumps(self._status()))
            await asyncio.sleep(EVERY)
