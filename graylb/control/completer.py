"""The leader gives a split that a person wrote its salt and slots, by compare-and-swap; all others wait for that.

Slots are allocated from those of the former split, so the laws of `graylb.release.slots` hold across a change, whoever
leads: the former value is what etcd's history has, or the last complete one that this node has seen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Final, Self

from graylb.control.etcd import values
from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.client import Client
from graylb.control.etcd.election import Election, Leadership
from graylb.control.etcd.errors import Compacted, EtcdError
from graylb.control.etcd.values import Put
from graylb.control.logs import log
from graylb.control.sources import Fragment
from graylb.control.splits import complete_in, request, stored
from graylb.control.state import StoredSplit, complete_split
from graylb.model import keys
from graylb.model.keys import Entry
from graylb.model.services import ServicePart, SplitPart

TTL: Final = 5
"""Seconds after which a leader that died is succeeded."""
STEPS: Final = 16
"""How far back in a key's history a complete split is looked for."""

Pending = Mapping[str, tuple[Fragment, Entry]]


class Completer:
    """Use: `async with Completer(…) as completer: await completer.run()`, which never ends.

    part: a service as it is in force. remembered: the last complete split of a key that this node knows.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        node: str,
        part: Callable[[str], ServicePart | None],
        remembered: Callable[[str], SplitPart | None],
    ) -> None:
        self.client, self.prefix = client, prefix + "/"
        self._part, self._remembered = part, remembered
        self.on_turn: Callable[[Leadership | None], object] | None = None
        """Called with each term of this node that begins, and with None when it has ended."""
        self._election = Election(client, f"{prefix}/leader", node, ttl=TTL)
        self._pending: Pending = {}
        self._wake = asyncio.Event()
        self._backoff = Backoff(0.05, 2.0, random.Random())

    @property
    def leader(self) -> str | None:
        """Who was seen to lead last."""
        return self._election.leader

    @property
    def leads(self) -> bool:
        return self._election.leadership is not None

    @property
    def problem(self) -> EtcdError | None:
        """Why this node can neither lead nor follow the election now."""
        return self._election.problem

    async def __aenter__(self) -> Self:
        await self._election.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._election.__aexit__()

    def look(self, pending: Pending) -> None:
        """What waits to be completed now."""
        self._pending = pending
        if pending:
            self._wake.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_election())
            while True:
                await self._wake.wait()
                self._wake.clear()
                leadership = self._election.leadership
                if leadership is None:
                    continue  # whoever leads does it; a new term wakes us
                try:
                    for fragment, entry in list(self._pending.values()):
                        await self._complete(fragment, entry, leadership)
                    self._backoff.reset()
                except EtcdError as error:
                    log.warning("splits cannot be completed now: %s", error)
                    await asyncio.sleep(self._backoff.next())
                    self._wake.set()

    async def _follow_election(self) -> None:
        async for leadership in self._election:
            if self.on_turn is not None:
                self.on_turn(leadership)
            if leadership is not None:
                log.info("this node leads: it completes splits")
                self._wake.set()

    async def _complete(self, fragment: Fragment, entry: Entry, leadership: Leadership) -> None:
        """Does nothing when the key is another by now: then that one comes to be pending, or is complete."""
        split = entry.split
        assert split is not None
        key = self.prefix + fragment.key
        former = await self._former(fragment)
        part = self._part(entry.service)
        stable = part.stable if part is not None else None
        made = complete_split(request(entry, split, stable, former), former)
        value = keys.completed(fragment.value, entry, made.salt, made.slots)
        done = await self.client.txn(
            [values.unchanged(key, fragment.revision), leadership.guard], [Put(key, value, fragment.lease)]
        )
        if done.succeeded:
            log.info("%s completed in revision %d", key, done.revision)

    async def _former(self, fragment: Fragment) -> StoredSplit | None:
        """The complete split before this value."""
        known = self._remembered(fragment.key)
        revision = fragment.revision
        for step in range(STEPS):
            try:
                before = await self.client.get(self.prefix + fragment.key, revision=revision - 1)
            except Compacted:
                break
            if before is None:
                break
            found = complete_in(fragment.key, before.value)
            if found is not None:
                return stored(found)
            if step == 0 and known is not None:
                break  # two changes in a row: what is known is what the first of them came after
            revision = before.mod_revision
        return stored(known) if known is not None else None
