"""A lease that is kept, with the keys under it: there while this process lives and can say so, gone soon after.

Time is judged from the sending of a request, so that we never believe in the lease longer than etcd does. When etcd is
away for longer, the lease counts as lost here (`on_lost`), but is asked for again as it was: etcd gives every lease its
full time anew after a restart, and then the keys have never been away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Final, Self

from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import EtcdError, LeaseLost
from graylb.control.etcd.values import Compare, Delete

BASE: Final = 0.05
CAP: Final = 1.0
"""Seconds: ceilings of the waits between attempts; the cap is less for short leases."""


class Lease:
    """Use: `async with Lease(client, ttl) as lease: lease.set(key, value)`. Leaving revokes it, and its keys are gone.

    ttl: seconds; etcd may give more. on_granted: the lease is held (again); on_lost: it is not any more, or nobody can
    know; both are called at once, in the event loop, and must not block. Keys that were set are put again under a new
    lease. A key that somebody else deletes or overwrites is left like that for as long as the lease is the same.
    """

    def __init__(
        self,
        client: Client,
        ttl: int,
        *,
        on_granted: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        if ttl < 1:
            raise ValueError(f"lease: expected at least a second, not {ttl}")
        self.client = client
        self.id = 0
        self.problem: EtcdError | None = None
        self.expires = 0.0
        self._ttl = ttl
        self._held = asyncio.Event()
        self._on_granted, self._on_lost = on_granted, on_lost
        self._chance = chance or random.Random()
        self._backoff = Backoff(BASE, min(CAP, ttl / 6), self._chance)
        self._told = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._wanted: dict[str, bytes | None] = {}  # None: to be deleted
        self._written: dict[str, bytes] = {}  # under the lease of now
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether the lease certainly exists now."""
        return bool(self.id) and self._now() < self.expires

    async def granted(self) -> int:
        """Waits until it is held; its id."""
        while not self.held:
            self._held.clear()
            await self._held.wait()
        return self.id

    def set(self, key: str, value: bytes) -> None:
        """The key is put soon, and again whenever the value differs or the lease is new."""
        if self._wanted.get(key) != value:
            self._want(key, value)

    def unset(self, key: str) -> None:
        """The key is deleted soon, unless it has come to be somebody else's."""
        if self._wanted.get(key) is not None:
            self._want(key, None)

    def check(self) -> None:
        """Ask etcd now whether it still is there; somebody has reason to doubt it."""
        self._due = 0.0
        self._wake.set()

    async def settled(self) -> None:
        """Waits until every key is as wanted."""
        await self._settled.wait()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="lease")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        lease, self.id = self.id, 0
        self._lose()
        if lease:
            with contextlib.suppress(EtcdError, TimeoutError):
                async with asyncio.timeout(self.client.options.timeout):
                    await self.client.revoke(lease)

    async def _run(self) -> None:
        while True:
            try:
                await self._hold()
                await self._write()
                self.problem = None
                self._backoff.reset()
                wait = max(0.0, self._due - self._now())
            except LeaseLost as error:
                self.problem = error
                self.id = 0
                self._written.clear()
                self._lose()
                wait = self._backoff.next()
            except EtcdError as error:
                self.problem = error
                wait = self._backoff.next()
            if self.problem is not None:
                await asyncio.sleep(wait)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def _hold(self) -> None:
        """Granted, and kept alive when that is due. Raises EtcdError."""
        sent = self._now()
        if not self.id:
            self.id, seconds = await self.client.grant(self._ttl)
        elif sent >= self._due or not self.held:
            # answers that take longer would be of no use any more
            seconds = await self.client.keep_alive(self.id, seconds=max(0.5, self._ttl / 6))
        else:
            return
        self.expires = sent + seconds
        self._due = sent + seconds / 3 * self._chance.uniform(0.8, 1.0)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self.expires, self._lose)
        if not self.held:  # the answer took longer than the lease
            return
        self._held.set()
        if not self._told:
            self._told = True
            if self._on_granted:
                self._on_granted()

    async def _write(self) -> None:
        """Every key as wanted. A key that etcd refuses does not hold up the others. Raises the last EtcdError."""
        self._wake.clear()
        problem: EtcdError | None = None
        for key, value in list(self._wanted.items()):
            try:
                if value is None:
                    await self.client.txn([Compare(key, "lease", "==", self.id)], [Delete(key)])
                    self._written.pop(key, None)
                    if self._wanted[key] is None:
                        del self._wanted[key]
                elif self._written.get(key) != value:
                    await self.client.put(key, value, lease=self.id)
                    self._written[key] = value
            except LeaseLost:
                raise
            except EtcdError as error:
                problem = error
        if problem is not None:
            raise problem
        if self._written == self._wanted:
            self._settled.set()

    def _want(self, key: str, value: bytes | None) -> None:
        self._wanted[key] = value
        self._settled.clear()
        self._wake.set()

    def _lose(self) -> None:
        """Also called by the timer, however long a request is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.expires = 0.0
        if self._wanted:
            self._settled.clear()
        if self._told:
            self._told = False
            if self._on_lost:
                self._on_lost()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
