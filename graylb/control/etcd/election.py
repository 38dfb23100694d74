"""One leader among many: whoever creates the election key under a lease, until the key is gone.

A leader stops believing in itself before its lease can have expired in etcd, so at no time do two believe. A process
that was frozen may not have noticed yet; what a leader writes is therefore guarded (`Leadership.guard`) by a comparison
with the revision at which the key was created, which no two leaders share.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Self

from graylb.control.etcd import values
from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import EtcdError, LeaseLost, Unavailable
from graylb.control.etcd.lease import Lease
from graylb.control.etcd.values import Compare, Delete, Get, KeyValue, Put
from graylb.control.etcd.watch import watch

BASE: Final = 0.05
CAP: Final = 2.0
"""Seconds: ceilings of the waits between attempts."""


@dataclass(eq=False, slots=True)
class Leadership:
    """One term. revision: at which it began; no other term has the same, later ones have higher ones."""

    key: str
    revision: int
    lease: Lease
    lease_id: int
    ended: bool = False

    @property
    def valid(self) -> bool:
        """Whether it certainly lasts now; only `guard` can say so for the moment of a write."""
        # the end of the key may be seen before the end of its lease is
        return not self.ended and self.lease.id == self.lease_id and self.lease.held

    @property
    def guard(self) -> Compare:
        """For the transactions of a leader: they fail once somebody else leads."""
        return Compare(self.key, "create_revision", "==", self.revision)


class Election:
    """Use: `async with Election(client, key, name) as election: async for leadership in election: …`, one consumer.

    Each item is a term that begins, or None when it has ended; of several the newest counts. Leaving resigns.
    ttl: seconds after which a leader that died or was cut off is succeeded.
    """

    def __init__(
        self, client: Client, key: str, name: str, *, ttl: int = 5, chance: random.Random | None = None
    ) -> None:
        self.client, self.key, self.name = client, key, name
        self.leader: str | None = None
        self.problem: EtcdError | None = None
        chance = chance or random.Random()
        self._lease = Lease(client, ttl, on_granted=self._stir, on_lost=self._ended, chance=chance)
        self._backoff = Backoff(BASE, CAP, chance)
        self._leadership: Leadership | None = None
        self._told: Leadership | None = None
        self._wake = asyncio.Event()
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def leadership(self) -> Leadership | None:
        """The present term, if this is the leader. `leader` is the name of whoever was seen to lead last."""
        return self._leadership if self._leadership is not None and self._leadership.valid else None

    async def __aenter__(self) -> Self:
        await self._lease.__aenter__()
        self._task = asyncio.create_task(self._run(), name=f"election {self.key}")
        self._task.add_done_callback(lambda _: self._wake.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._lease.__aexit__()

    def __aiter__(self) -> AsyncIterator[Leadership | None]:
        return self

    async def __anext__(self) -> Leadership | None:
        """The next turn; StopAsyncIteration after the election was left."""
        while self._told is self._leadership:
            if self._task is None or self._task.done():
                if self._task is not None and not self._task.cancelled():
                    self._task.result()
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        # a term that was followed by another one ends before that begins
        self._told = None if self._told is not None else self._leadership
        return self._told

    async def _run(self) -> None:
        while True:
            self._stirred.clear()
            try:
                lease_id = await self._lease.granted()
                record, revision = await self._campaign(lease_id)
                self._see(record, lease_id)
                self.problem = None
                await self._until_gone(record, revision)
                self._backoff.reset()
            except EtcdError as error:
                self.problem = error
                if isinstance(error, LeaseLost):
                    self._lease.check()
                await asyncio.sleep(self._backoff.next())

    async def _campaign(self, lease_id: int) -> tuple[KeyValue, int]:
        """The election key, created by us if it was absent, and the revision at which it was like that."""
        value = self.name.encode()
        done = await self.client.txn([values.absent(self.key)], [Put(self.key, value, lease_id)], [Get(self.key)])
        if done.succeeded:
            return KeyValue(self.key, value, done.revision, done.revision, 1, lease_id), done.revision
        [record] = done.results[0] if isinstance(done.results[0], tuple) else ()
        if record.lease == 0:
            # somebody's put took the lease off the key; nobody could ever succeed
            await self.client.txn([values.unchanged(self.key, record.mod_revision)], [Delete(self.key)])
            raise Unavailable(f"etcd: {self.key} was overwritten and has no lease; it is being deleted")
        return record, done.revision

    def _see(self, record: KeyValue, lease_id: int) -> None:
        self.leader = record.value.decode(errors="replace")
        if record.lease != lease_id:
            self._ended()
        elif self._leadership is None or self._leadership.revision != record.create_revision:
            self._ended()
            self._leadership = Leadership(self.key, record.create_revision, self._lease, lease_id)
            self._wake.set()

    async def _until_gone(self, record: KeyValue, revision: int) -> None:
        """Until the key is not that one any more, or our lease is another. Raises EtcdError."""
        gone = asyncio.create_task(self._gone(record, revision))
        stirred = asyncio.create_task(self._stirred.wait())
        try:
            await asyncio.wait({gone, stirred}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                self._ended()
        finally:
            gone.cancel()
            stirred.cancel()
            await asyncio.gather(gone, stirred, return_exceptions=True)

    async def _gone(self, record: KeyValue, revision: int) -> None:
        async with aclosing(watch(self.client, self.key, start=revision + 1)) as batches:
            async for batch in batches:
                for change in batch.changes:
                    if change.now is None or change.now.lease != record.lease:
                        return

    def _ended(self) -> None:
        if self._leadership is not None:
            self._leadership.ended = True
            self._leadership = None
            self._wake.set()

    def _stir(self) -> None:
        self._stirred.set()
