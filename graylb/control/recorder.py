"""The leader's book-keeping: every change of split, rules, lists and settings past graylb gets its record, once.

Every node hears each change anyway, for it follows the keys; the leader keeps those that matter in a log until they are
recorded. Up to where all is recorded is a key of its own (`recorded`). A new leader goes on from there: it replays what
etcd's history has, and where that is compacted it records what differs as one change of each service.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Final

from graylb.control import etcd_history, in_force
from graylb.control.config_store import Record
from graylb.control.etcd import values
from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.client import Client
from graylb.control.etcd.election import Leadership
from graylb.control.etcd.errors import Compacted, EtcdError, Refused, TooLarge
from graylb.control.etcd.pieces import in_pieces
from graylb.control.etcd.values import Delete, Get, KeyValue, Put
from graylb.control.etcd.watch import Batch, watch
from graylb.control.logs import log
from graylb.control.pace import Breath, Pauses
from graylb.control.prepare import now
from graylb.model import keys

MARK: Final = "recorded"
LIMIT: Final = 10_000
ROOM: Final = 32 << 20
"""Revisions and bytes in the log; beyond that they are read from etcd's history instead."""
TOGETHER: Final = 32
TOGETHER_BYTES: Final = 256 << 10
"""Revisions, and bytes of their values, that are recorded in one transaction: etcd takes 128 operations and 1.5 MiB."""
TRIM_EVERY: Final = 20
"""Changes of a service between two looks at what its history keeps too long."""
MOST_OPS: Final = 100
"""Of one transaction."""
MARK_EVERY: Final = 60.0
MARK_STEP: Final = 1000
"""The mark is moved after so many seconds, or revisions."""

Changes = list[tuple[str, bytes | None]]
"""Of one revision: (key below the prefix, its value or None), of recorded parts only."""
OwnKeys = Callable[[], Awaitable[Mapping[str, bytes]]]
"""The document's keys: a key that is deleted uncovers them."""


@dataclass(frozen=True, slots=True)
class Untold:
    """What one revision changed in one service, without a record as far as is known."""

    service: str
    revision: int
    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]


class Overtaken(Exception):
    """Somebody else leads."""


class Log:
    """What a reflector hears, uncollapsed; complete from revision `since` + 1 up to `seen` while it listens."""

    def __init__(self, prefix: str) -> None:
        self.since = self.seen = 0
        self.listening = False
        self.anew = False
        """The store counts anew, or what lies between was missed."""
        self.wake = asyncio.Event()
        self._prefix = prefix
        self._changes: deque[tuple[int, Changes]] = deque()
        self._size = 0

    def loaded(self, revision: int) -> None:
        """A full state took the place of all that was known."""
        self.anew |= revision < self.seen
        self.since = self.seen = revision
        self._clear()
        self.wake.set()

    def took(self, batch: Batch) -> None:
        """Whole revisions in their order."""
        if not batch.changes:
            return
        self.seen = batch.changes[-1].revision
        if not self.listening:
            self.since = self.seen
            return
        for revision, changes in revisions(batch, self._prefix):
            self._changes.append((revision, changes))
            self._size += _size(changes)
            self.wake.set()
        if len(self._changes) > LIMIT or self._size > ROOM:
            self.since = self.seen
            self._clear()

    def listen(self) -> None:
        if not self.listening:
            self.listening, self.since = True, self.seen

    def rest(self) -> None:
        self.listening = False
        self._clear()

    def _clear(self) -> None:
        self._changes.clear()
        self._size = 0

    def oldest(self, after: int) -> list[tuple[int, Changes]]:
        """The first revisions in the log after that one, as many as go together; what is older is dropped."""
        while self._changes and self._changes[0][0] <= after:
            self._size -= _size(self._changes.popleft()[1])
        found: list[tuple[int, Changes]] = []
        size = 0
        for revision, changes in islice(self._changes, TOGETHER):
            size += _size(changes)
            if found and size > TOGETHER_BYTES:
                break
            found.append((revision, changes))
        return found


def _size(changes: Changes) -> int:
    return sum(len(value) for _, value in changes if value is not None)


def revisions(batch: Batch, prefix: str) -> Iterable[tuple[int, Changes]]:
    """(revision, what of it is recorded), of those in which anything is."""
    some = [each for each in batch.changes if in_force.recorded(each.key[len(prefix) :])]
    for revision, group in groupby(some, lambda change: change.revision):
        yield revision, [(each.key[len(prefix) :], each.now.value if each.now is not None else None) for each in group]


class Recorder:
    """Use: `await Recorder(…).run()`, which never ends; `turn` says who leads, and a reflector tells `log`."""

    def __init__(self, client: Client, prefix: str, own: OwnKeys) -> None:
        self.client, self.prefix = client, prefix + "/"
        self.log = Log(self.prefix)
        self.problem: EtcdError | None = None
        """Why changes cannot be recorded now."""
        self._own = own
        self._leadership: Leadership | None = None
        self._at: int | None = None  # all is recorded up to here, and `_state` is what was good then
        self._state: dict[str, bytes] = {}
        self._marked, self._mark_at = 0, 0.0
        self._untrimmed: dict[str, int] = {}
        self._backoff = Backoff(0.05, 2.0, random.Random())

    def turn(self, leadership: Leadership | None) -> None:
        """A term of this node begins, or has ended."""
        self._leadership = leadership
        self.log.wake.set()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MARK_EVERY):
                    await self.log.wake.wait()
            self.log.wake.clear()
            leadership = self._leadership
            if leadership is None or not leadership.valid:
                self._rest()
                continue
            try:
                await self._follow(leadership)
                self.problem = None
                self._backoff.reset()
            except Overtaken:
                self._rest()
            except EtcdError as error:
                if str(error) != str(self.problem):
                    log.warning("changes cannot be recorded now: %s", error)
                self.problem = error
                await self._pause()
            except Exception:  # what one put brings about must not stop a proxy
                log.exception("changes cannot be recorded, by a fault of graylb's own")
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._backoff.next())
        self.log.wake.set()

    def _rest(self) -> None:
        self.log.rest()
        self._at, self._state = None, {}

    async def _follow(self, leadership: Leadership) -> None:
        """Records all that is in the log. Raises Overtaken, EtcdError; then it may be called again."""
        self.log.listen()
        if self.log.anew:
            self.log.anew, self._at = False, None
        while True:
            if self._at is None or self._at < self.log.since:
                self._at = await self._catch_up(leadership)
            elif found := self.log.oldest(self._at):
                await self._tell(found, None, leadership)
                self._at = found[-1][0]
            else:
                break
        self._at = max(self._at, self.log.seen)
        await self._mark(leadership)
        for service in [name for name, count in self._untrimmed.items() if count >= TRIM_EVERY]:
            await self._mark(leadership, at_once=True)  # or a record that goes would be made again
            await self._trim(service, leadership)

    # -- what happened while nobody recorded -----------------------------------------------------------------------

    async def _catch_up(self, leadership: Leadership) -> int:
        """The revision up to which all is recorded then."""
        mark = self.prefix + MARK
        found = await self.client.get(mark)
        start = int(found.value) if found is not None and found.value.isdigit() else 0
        start = max(start, self._at or 0)
        done = await self.client.txn([leadership.guard], [Put(mark, str(start).encode())])
        if not done.succeeded:
            raise Overtaken
        if start > done.revision:  # a mark of another store
            start = 0
        await self._replay_kept(start, done.revision, leadership)
        self._marked = 0
        return done.revision

    async def _replay_kept(self, start: int, end: int, leadership: Leadership) -> None:
        """Every change after `start` that etcd still knows; what it does not, as one change of each service."""
        while True:
            try:
                await self._replay(start, end, leadership)
                return
            except Compacted:
                oldest = await self._oldest(start)
                await self._compare(start, oldest, leadership)
                start = oldest

    async def _oldest(self, start: int) -> int:
        """The oldest revision that etcd knows; it does not know `start`. Raises EtcdError."""
        try:
            async with aclosing(watch(self.client, self.prefix, prefix=True, start=max(1, start))) as batches:
                async for batch in batches:
                    if batch.changes:  # the mark at least
                        break
        except Compacted as error:
            return error.revision
        return start

    async def _replay(self, start: int, end: int, leadership: Leadership) -> None:
        """Every change after `start`, until this node's own mark of revision `end` comes by. Raises Compacted."""
        self._state = await self._state_at(start) if start else {}
        async with aclosing(watch(self.client, self.prefix, prefix=True, start=start + 1)) as batches:
            async for batch in batches:
                told = _recorded_in(batch, self.prefix)
                for revision, changes in revisions(batch, self.prefix):
                    if revision > end:
                        return
                    await self._tell([(revision, changes)], told, leadership)
                if batch.changes and batch.changes[-1].revision >= end:
                    return

    async def _state_at(self, revision: int) -> dict[str, bytes]:
        """What was good then; of what was not, the last that the history knows. Raises Compacted."""
        listing = await self.client.list(self.prefix + keys.ROOT, revision=revision)
        found = {key: each.value for key, each in self._recorded(listing.items.values()).items()}
        good = await asyncio.to_thread(_good, found)
        if len(good) < len(found):
            for kept in (await self._history()).values():
                fold = _fold(each.record for each in kept if each.record.revision <= revision)
                good |= {
                    key: value for key, value in fold.items() if value is not None and key in found and key not in good
                }
        return good

    async def _compare(self, start: int, at: int, leadership: Leadership) -> None:
        """What differs at revision `at` from what the history knows, as one change of each service."""
        listing = await self.client.list(self.prefix + keys.ROOT, revision=at)
        history, own = await self._history(), await self._own()
        there = self._recorded(listing.items.values())
        services = {keys.split_key(key)[0] for key in there} | history.keys()
        good = await asyncio.to_thread(_good, {key: each.value for key, each in there.items()})
        for service in sorted(services):
            records = [each.record for each in history.get(service, ()) if each.record.revision <= at]
            mine = {key: each for key, each in there.items() if keys.split_key(key)[0] == service}
            before, after, newest = _difference(mine, good, records, own, start)
            if after:
                await self._record(service, newest or at, before, after, leadership)

    def _recorded(self, items: Iterable[KeyValue]) -> dict[str, KeyValue]:
        found = {each.key[len(self.prefix) :]: each for each in items}
        return {key: each for key, each in found.items() if in_force.recorded(key)}

    async def _history(self) -> dict[str, list[etcd_history.Kept]]:
        listing = await self.client.list(self.prefix + etcd_history.ROOT)
        return etcd_history.read(listing.items.values(), self.prefix)

    # -- some revisions --------------------------------------------------------------------------------------------

    async def _tell(
        self, some: list[tuple[int, Changes]], told: Mapping[int, set[str]] | None, leadership: Leadership
    ) -> None:
        """Records them, service by service, in two transactions where it can be.

        told: services whose record came with the change, by revision; None: not known.
        """
        own = await self._own()
        untold, state = await asyncio.to_thread(_untold, some, self._state, own, Pauses())
        changes = Counter(each.service for each in untold)
        if told is None:
            there = await self._told(untold)
        else:
            there = [each.service in told.get(each.revision, ()) for each in untold]
        untold = [each for each, known in zip(untold, there, strict=True) if not known]
        if len(untold) < 2 or not await self._record_all(untold, leadership):
            for each in untold:
                await self._record(each.service, each.revision, each.before, each.after, leadership)
        for key, value in state.items():
            if value is None:
                self._state.pop(key, None)
            else:
                self._state[key] = value
        for service, count in changes.items():
            self._untrimmed[service] = self._untrimmed.get(service, TRIM_EVERY) + count

    async def _told(self, some: list[Untold]) -> list[bool]:
        """Whether a record came with each."""
        found: list[bool] = []
        for at in range(0, len(some), MOST_OPS):
            roots = ((f"{self.prefix}{etcd_history.ROOT}{x.service}/", x.revision) for x in some[at : at + MOST_OPS])
            looks = [Get(root, prefix=True, limit=1, keys_only=True, created=revision) for root, revision in roots]
            found += map(bool, (await self.client.txn([], looks)).results)
        return found

    async def _record_all(self, some: list[Untold], leadership: Leadership) -> bool:
        """All or none. False: one is there already, somebody else leads, or together they are too large."""
        if len(some) > MOST_OPS:
            return False
        absent = [values.absent(self._record_key(each.service, each.revision)) for each in some]
        puts = await in_pieces(lambda x: Put(self._record_key(x.service, x.revision), _encoded(x, known=True)), some)
        try:
            return (await self.client.txn([*absent, leadership.guard], puts)).succeeded
        except Refused:
            return False

    def _record_key(self, service: str, revision: int) -> str:
        return self.prefix + etcd_history.put_key(service, revision)

    async def _record(
        self,
        service: str,
        revision: int,
        before: Mapping[str, bytes | None],
        after: Mapping[str, bytes | None],
        leadership: Leadership,
    ) -> None:
        """Unless it is there. Raises Overtaken, EtcdError."""
        key = self._record_key(service, revision)
        for known in (True, False):
            value = _encoded(Untold(service, revision, before, after), known=known)
            try:
                done = await self.client.txn(
                    [values.absent(key), leadership.guard], [Put(key, value)], [Get(key, keys_only=True)]
                )
            except Refused as error:
                if not known or not (isinstance(error, TooLarge) or "too large" in str(error)):
                    raise
                continue  # then at least what and when
            if not done.succeeded and not done.results[0]:
                raise Overtaken
            return

    async def _mark(self, leadership: Leadership, *, at_once: bool = False) -> None:
        """All up to `_at` is recorded. Said now and then only, for what is replayed twice is recorded once."""
        assert self._at is not None
        time = asyncio.get_running_loop().time()
        due = at_once or self._at >= self._marked + MARK_STEP or time >= self._mark_at
        if self._at <= self._marked or not due:
            return
        done = await self.client.txn([leadership.guard], [Put(self.prefix + MARK, str(self._at).encode())])
        if not done.succeeded:
            raise Overtaken
        self._marked, self._mark_at = self._at, time + MARK_EVERY

    async def _trim(self, service: str, leadership: Leadership) -> None:
        """Deletes what the history need not keep."""
        listing = await self.client.list(f"{self.prefix}{etcd_history.ROOT}{service}/")
        kept = etcd_history.read(listing.items.values(), self.prefix).get(service, [])
        gone, lean = etcd_history.to_trim(kept)
        for at in range(0, len(gone), MOST_OPS):
            await self.client.txn([leadership.guard], [Delete(each.key) for each in gone[at : at + MOST_OPS]])
        for some in (lean[at : at + MOST_OPS] for at in range(0, len(lean), MOST_OPS)):
            unchanged = [values.unchanged(each.key, each.revision) for each, _ in some]
            await self.client.txn([leadership.guard, *unchanged], [Put(each.key, value) for each, value in some])
        self._untrimmed[service] = 0


def _recorded_in(batch: Batch, prefix: str) -> dict[int, set[str]]:
    """revision -> services for which a record was made in it."""
    found: dict[int, set[str]] = {}
    root = prefix + etcd_history.ROOT
    for change in batch.changes:
        if change.key.startswith(root) and change.now is not None and change.now.version == 1:
            found.setdefault(change.revision, set()).add(change.key[len(root) :].partition("/")[0])
    return found


def _good(found: Mapping[str, bytes]) -> dict[str, bytes]:
    return {key: value for key, value in found.items() if in_force.good_value(key, value)}


def _fold(records: Iterable[Record]) -> dict[str, bytes | None]:
    """What records leave behind, oldest first; keys whose value is not kept are not in it."""
    found: dict[str, bytes | None] = {}
    for record in records:
        for key, value in record.after.items():
            if record.known and in_force.recorded(key):
                found[key] = value
            else:
                found.pop(key, None)
    return found


def _encoded(what: Untold, *, known: bool) -> bytes:
    record = Record(what.service, what.revision, 0, now(), "-", "", "put", what.before, what.after)
    return etcd_history.encode(record if known else etcd_history.forgotten(record), revision=True)


def _untold(
    some: Iterable[tuple[int, Changes]], state: Mapping[str, bytes], own: Mapping[str, bytes], breath: Breath
) -> tuple[list[Untold], dict[str, bytes | None]]:
    """(what each revision changed in each service, in order; what is good after them of what they touched)."""
    found: list[Untold] = []
    newer: dict[str, bytes | None] = {}
    for revision, changes in some:
        known = {key: value for key, _ in changes if (value := newer.get(key, state.get(key))) is not None}
        good, before, after = _differing(changes, known, own)
        for service in sorted({keys.split_key(key)[0] for key in after}):
            mine = [key for key in after if keys.split_key(key)[0] == service]
            own_before, own_after = ({key: side[key] for key in mine} for side in (before, after))
            found.append(Untold(service, revision, own_before, own_after))
        newer |= good
        breath()
    return found, newer


def _differing(
    changes: Changes, state: Mapping[str, bytes], own: Mapping[str, bytes]
) -> tuple[dict[str, bytes | None], dict[str, bytes | None], dict[str, bytes | None]]:
    """(what is good of the changes, and of what differs: before, after). A split that waits is not good yet."""
    good = {key: value for key, value in changes if value is None or in_force.good_value(key, value)}
    before = {key: state.get(key, own.get(key)) for key in good}
    after = {key: value if value is not None else own.get(key) for key, value in good.items()}
    differing = [key for key in good if not _same(key, before[key], after[key])]
    return good, {key: before[key] for key in differing}, {key: after[key] for key in differing}


def _difference(
    there: Mapping[str, KeyValue],
    good: Mapping[str, bytes],
    records: list[Record],
    own: Mapping[str, bytes],
    start: int,
) -> tuple[dict[str, bytes | None], dict[str, bytes | None], int]:
    """(before, after, newest revision) of one service between its records and what is there.

    start: all up to there is recorded.
    """
    fold, known = _fold(records), {record.revision for record in records}
    before: dict[str, bytes | None] = {}
    after: dict[str, bytes | None] = {}
    newest = 0
    for key, item in there.items():
        if key not in good or item.mod_revision <= start or item.mod_revision in known:
            continue
        was = fold.get(key)
        was = was if was is not None else own.get(key)
        if not _same(key, was, item.value):
            before[key], after[key] = was, item.value
            newest = max(newest, item.mod_revision)
    told_at = {key: record.revision for record in records for key in record.after}
    for key, value in fold.items():
        found = there.get(key)
        # what is there but invalid has come in the place of what was deleted, or else that is the last good one still
        gone = found is None or (key not in good and found.create_revision > max(start, told_at[key]))
        if gone and value is not None and not _same(key, value, own.get(key)):
            before[key], after[key] = value, own.get(key)
            newest = max(newest, found.create_revision if found is not None else 0)
    return before, after, newest


def _same(key: str, one: bytes | None, other: bytes | None) -> bool:
    return one == other if one is None or other is None else in_force.same(key, one, other)
