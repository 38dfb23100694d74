"""The keys of a prefix, kept as etcd has them: listed once, then watched from the revision after, without a gap.

It goes on where it stopped: at the revision after the last change that it saw, never at the revision of a response's
header, which can be ahead of the changes still to come. It lists again where the changes since are no longer to be had
(compacted) or where there is another store. While etcd is away the state stays, and attempts are made with backoff.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Self

from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.bursts import REST, Bursts
from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import Compacted, Diverged, EtcdError, Unavailable
from graylb.control.etcd.mailbox import Changed, Event, Loaded, Lost, Mailbox, Restored
from graylb.control.etcd.values import KeyValue
from graylb.control.etcd.watch import Batch, watch

__all__ = ["Changed", "Event", "Loaded", "Lost", "Reflector", "Restored"]

BASE: Final = 0.1
CAP: Final = 3.0
"""Seconds: ceilings of the first and of the longest wait between attempts."""


@dataclass(slots=True)
class Counts:
    """attempts: of listing or watching; waits: before one; loads: full states, of which stale were without a quorum;
    changes: puts and deletions seen; quiet: responses without any; rests: in storms of changes.
    """

    attempts: int = 0
    waits: int = 0
    loads: int = 0
    stale: int = 0
    changes: int = 0
    quiet: int = 0
    rests: int = 0


class Reflector:
    """Use: `async with Reflector(client, prefix) as reflector: async for event in reflector: …`, with one consumer.

    The first event is a `Loaded`, or a `Lost` if etcd cannot be reached. Events never pile up: see `mailbox`.
    """

    def __init__(self, client: Client, prefix: str, *, chance: random.Random | None = None) -> None:
        self.client, self.prefix = client, prefix
        self.counts = Counts()
        self.on_load: Callable[[int], object] = _nothing
        """Called with the revision of each full state that is not stale."""
        self.on_batch: Callable[[Batch], object] = _nothing
        """Called with every change by itself, which events do not tell."""
        self._mailbox = Mailbox()
        self._backoff = Backoff(BASE, CAP, chance or random.Random())
        self._bursts = Bursts()
        self._resume = 0
        self._must_list = True
        self._stood_since = math.inf
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def items(self) -> Mapping[str, KeyValue]:
        """The state now, read only and live; it may be ahead of the events that were taken."""
        return self._mailbox.items

    @property
    def revision(self) -> int:
        """Of `items`: the listing's, then that of the last change under the prefix."""
        return self._mailbox.revision

    @property
    def cluster_id(self) -> int:
        """0 before the first state."""
        return self._mailbox.cluster_id

    @property
    def lost(self) -> EtcdError | None:
        """Why etcd is not being followed now."""
        return self._mailbox.lost

    @property
    def waiting(self) -> int:
        """Keys in events not yet taken."""
        return self._mailbox.waiting

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"reflector {self.prefix}")
        self._task.add_done_callback(lambda _: self._wake.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event. StopAsyncIteration after the reflector was left."""
        while (event := self._mailbox.take()) is None:
            if self._task is None or self._task.done():
                if self._task is not None and not self._task.cancelled():
                    self._task.result()
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return event

    async def _run(self) -> None:
        while True:
            self.counts.attempts += 1
            self._stood_since = math.inf
            try:
                if self._must_list:
                    await self._load()
                while True:
                    await self._follow()
                    self.counts.rests += 1
                    await asyncio.sleep(REST)
            except (Compacted, Diverged) as error:
                self._must_list = True
                await self._pause(error)
            except EtcdError as error:
                await self._pause(error)

    async def _follow(self) -> None:
        """Returns when there are so many changes that the next ones should come together. Raises EtcdError."""
        async with aclosing(watch(self.client, self.prefix, prefix=True, **self._from())) as batches:
            async for batch in batches:
                self._take(batch)
                if self._bursts.rest(len(batch.changes), self._now()):
                    return

    async def _load(self) -> None:
        """Without a quorum, and only where there is no state at all: what some member remembers."""
        try:
            listing = await self.client.list(self.prefix)
        except Unavailable:
            if not self.counts.loads:
                with contextlib.suppress(EtcdError):
                    self._mailbox.load(await self.client.list(self.prefix, serializable=True), stale=True)
                    self.counts.loads += 1
                    self.counts.stale += 1
                    self._wake.set()
            raise
        self.counts.loads += 1
        self._mailbox.load(listing)
        self.on_load(listing.revision)
        self._resume = listing.revision + 1
        self._must_list = False
        self._wake.set()

    def _from(self) -> dict[str, int]:
        return {"start": self._resume, "cluster_id": self._mailbox.cluster_id}

    def _take(self, batch: Batch) -> None:
        if self._mailbox.lost is not None:
            self._mailbox.restore()
            self._wake.set()
        if not batch.changes:
            self.counts.quiet += 1
            self._stood_since = min(self._stood_since, self._now())
            return
        last = batch.changes[-1].revision
        self.counts.changes += len(batch.changes)
        self.on_batch(batch)
        self._mailbox.change(last, ((change.key, change.now) for change in batch.changes))
        self._resume = last + 1
        self._wake.set()

    async def _pause(self, error: EtcdError) -> None:
        """The first failure after a good while is retried almost at once, at another endpoint, and not reported."""
        if self._now() - self._stood_since > self._backoff.cap:
            self._backoff.reset()
        if self._backoff.failures or not self.counts.loads or self._mailbox.stale:
            self._mailbox.lose(error)
            self._wake.set()
        self.counts.waits += 1
        await asyncio.sleep(self._backoff.next())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _nothing(_: object) -> None:
    pass
