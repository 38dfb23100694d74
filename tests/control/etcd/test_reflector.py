"""What is reflected is what etcd has: through restarts, cuts, compactions, wiped stores, frozen and lonely members."""

from __future__ import annotations

import asyncio
import random
import shutil
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import Unavailable
from graylb.control.etcd.links import Options
from graylb.control.etcd.reflector import BASE, CAP, Changed, Loaded, Lost, Reflector, Restored
from graylb.control.etcd.values import Put
from graylb.control.etcd.watch import Batch, watch
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster, Node
from tests.control.etcd.support import Follower, client, following, run, until
from tests.control.etcd.wire import Wire

ALERT = {"keepalive": 0.3, "keepalive_timeout": 0.3, "timeout": 1.0, "connect_timeout": 0.5}
PATIENT = "--grpc-keepalive-min-time=100ms"
"""Options that notice a dead peer soon, and the flag by which etcd does not mind."""


def wire_of(cluster: Cluster) -> Wire:
    wire = cluster.nodes[0].wire
    assert wire is not None
    return wire


async def standing(follower: Follower, count: int = 1) -> None:
    await until(lambda: follower.reflector.counts.quiet >= count, f"watch number {count} stands")


def put_behind(node: Node, **pairs: str) -> int:
    """By etcd3's client, past the wire; the last revision."""
    with node.store() as store:
        for key, value in pairs.items():
            done = store.put("/r/" + key, value)
        return int(done.header.revision)


# -- in good weather -----------------------------------------------------------------------------------------------


def test_a_full_state_then_changes(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            await store.put(prefix + "a", b"1")
            await store.put(prefix[:-1] + "2/a", b"a neighbour")
            async with following(Reflector(store, prefix)) as follower:
                loaded = await follower.until_kind(Loaded)
                assert loaded.items.keys() == {prefix + "a"}
                assert (loaded.stale, loaded.cluster_changed) == (False, False)
                await standing(follower)
                revision = await store.put(prefix + "b", b"2")
                changed = await follower.until_kind(Changed)
                assert changed == Changed(revision, {prefix + "b": await store.get(prefix + "b")})
                await store.put(prefix[:-1] + "2/b", b"a neighbour")
                await store.delete(prefix + "a")
                assert await follower.until_kind(Changed, 2) == Changed(revision + 2, {prefix + "a": None})
                assert follower.reflector.revision == revision + 2
                assert follower.kinds() == ["Loaded", "Changed", "Changed"]

    run(test())


def test_a_storm_comes_in_few_responses_every_change_once_and_in_order(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            reflector, heard, responses = Reflector(store, prefix), [], []

            def on_batch(batch: Batch) -> None:
                responses.append(len(batch.changes))
                heard.extend((each.revision, each.key, each.now and each.now.value) for each in batch.changes)

            reflector.on_batch = on_batch
            async with following(reflector) as follower:
                await standing(follower)
                made = []
                while reflector.counts.rests < 3 or not any(count > 1 for count in responses):
                    pairs = [(f"{prefix}{len(made) + n}", str(len(made) + n).encode()) for n in range(60)]
                    revisions = await asyncio.gather(*(store.put(key, value) for key, value in pairs))
                    made += [(revision, *pair) for revision, pair in zip(revisions, pairs, strict=True)]
                await until(lambda: len(heard) >= len(made), "all changes")
                assert heard == sorted(made)
                assert len(responses) < len(made)

    run(test())


def test_the_end_of_a_lease_is_a_deletion(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store, following(Reflector(store, prefix)) as follower:
            lease, _ = await store.grant(1)
            await store.put(prefix + "instance", b"1", lease=lease)
            await follower.until_values({prefix + "instance": b"1"})
            await follower.until_values({})

    run(test())


def test_a_revision_is_seen_whole_or_not_at_all(etcd: Cluster, prefix: str) -> None:
    keys = [f"{prefix}{number}" for number in range(10)]

    async def test() -> None:
        async with client(etcd) as store, Reflector(store, prefix) as reflector:
            events, state = aiter(reflector), dict[str, bytes]()

            async def write() -> None:
                for number in range(100):
                    await store.txn([], [Put(key, b"%d" % number) for key in keys])

            task = asyncio.create_task(write())
            while set(state.values()) != {b"99"}:
                event = await anext(events)
                assert isinstance(event, Loaded | Changed)
                items = event.items if isinstance(event, Loaded) else event.changes
                state |= {key: each.value for key, each in items.items() if each}
                assert len(state) in (0, len(keys))
                assert len(set(state.values())) <= 1
            await task

    run(test())


def test_a_slow_consumer_gets_the_newest_and_holds_up_nobody(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store, Reflector(store, prefix) as reflector:
            events = aiter(reflector)
            assert isinstance(await anext(events), Loaded)
            await until(lambda: reflector.counts.quiet, "the watch stands")
            for number in range(50):
                await store.txn([], [Put(f"{prefix}{key}", b"%d" % number) for key in range(5)])
                await store.put(f"{prefix}brief{number}", b"")
                last = await store.delete(f"{prefix}brief{number}")
            await until(lambda: reflector.counts.changes == 50 * 7, "all changes seen")
            assert last == 1
            assert reflector.waiting == 5
            event = await anext(events)
            assert isinstance(event, Changed)
            assert event.revision == reflector.revision
            assert {key: each and each.value for key, each in event.changes.items()} == {
                f"{prefix}{key}": b"49" for key in range(5)
            }
            assert reflector.waiting == 0

    run(test())


def test_progress_of_the_store_is_no_progress_of_ours(tmp_path: Path) -> None:
    """etcd's progress notes carry a revision that may be ahead of changes still to come (3.4.23); none counts."""

    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            revision = await store.put("/r/a", b"1")
            await follower.until_values({"/r/a": b"1"})
            for _ in range(5):
                await store.put("/elsewhere", b"")
            await standing(follower, 4)
            assert follower.reflector.revision <= revision
            assert follower.reflector._resume == revision + 1
            wire_of(etcd).snap()
            await store_again(store, "/r/b")
            await follower.until_values({"/r/a": b"1", "/r/b": b""})

    with servers.running(tmp_path, 1, "--experimental-watch-progress-notify-interval=100ms", wired=True) as etcd:
        run(test(etcd))


async def store_again(store: Client, key: str) -> int:
    """Put until it is answered."""
    while True:
        try:
            return await store.put(key, b"")
        except Unavailable:
            await asyncio.sleep(0.02)


# -- no gap --------------------------------------------------------------------------------------------------------


def test_what_happened_while_the_connection_was_cut_comes_after_it(tmp_path: Path) -> None:
    """Deletions too, which carry nothing but the key; and in between the state stays as it was."""

    async def test(etcd: Cluster) -> None:
        node, wire = etcd.nodes[0], wire_of(etcd)
        put_behind(node, a="1", b="1", c="1")
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            wire.cut()
            with node.store() as behind:
                behind.delete("/r/a")
            last = put_behind(node, b="2", d="1")
            await follower.until_kind(Lost)
            assert follower.values() == {"/r/a": b"1", "/r/b": b"1", "/r/c": b"1"}
            wire.mend()
            await follower.until_values({"/r/b": b"2", "/r/c": b"1", "/r/d": b"1"})
            # a watch that goes on, not another listing
            assert follower.kinds() == ["Loaded", "Lost", "Restored", "Changed"]
            assert follower.seen[-1].revision == last  # type: ignore[union-attr]
            assert follower.reflector.counts.changes == 3

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_cuts_at_any_moment_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """Resuming at the revision after a response's header, as others do, loses changes here."""

    async def test(etcd: Cluster) -> None:
        node, wire = etcd.nodes[0], wire_of(etcd)
        async with (
            Client(Options((node.address,))) as writer,
            client(etcd) as store,
            Reflector(store, "/r/") as reflector,
        ):
            events, seen = aiter(reflector), list[str]()
            count, chance, cuts = 600, random.Random(5), 0

            async def write() -> None:
                nonlocal cuts
                for number in range(count):
                    # keys elsewhere move the header's revision ahead of ours
                    await asyncio.gather(writer.put(f"/r/{number:04}", b""), writer.put("/elsewhere", b""))
                    if chance.random() < 0.03:
                        cuts += 1
                        before = reflector.counts.attempts
                        wire.snap()
                        if cuts % 3 == 0:  # most cuts come whenever they come, these meet a watch that stands again
                            await until(lambda: reflector.counts.attempts > before, "another attempt")  # noqa: B023

            await until(lambda: reflector.counts.quiet, "the watch stands")
            task = asyncio.create_task(write())
            while len(seen) < count:
                event = await anext(events)
                if isinstance(event, Changed):
                    seen += event.changes
            await task
            assert seen == [f"/r/{number:04}" for number in range(count)]
            assert reflector.counts.changes == count
            assert reflector.counts.loads == 1
            assert reflector.counts.attempts > 5

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_etcd_killed_and_restarted(tmp_path: Path) -> None:
    async def test(etcd: Cluster) -> None:
        node = etcd.nodes[0]
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            await store.put("/r/a", b"1")
            await follower.until_values({"/r/a": b"1"})
            for number in range(2, 5):
                await asyncio.to_thread(node.restart)
                put_behind(node, a=str(number))
                await follower.until_values({"/r/a": b"%d" % number})
            assert follower.reflector.counts.loads == 1
            assert follower.reflector.counts.changes == 4

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_large_batches_come_in_fragments_and_revisions_stay_whole(etcd: Cluster, prefix: str) -> None:
    """Eight revisions of 0.9 MB, which etcd sends at once to who comes late: more than a message may have.

    It makes fragments of up to 2 MiB and ends them anywhere.
    """

    async def test() -> None:
        async with client(etcd, max_message=2 << 20) as store:
            first = await store.put(prefix, b"")
            for number in range(8):
                await store.txn([], [Put(f"{prefix}{key}", b"%d" % number * 100_000) for key in range(9)])
            seen: list[int] = []
            async with aclosing(watch(store, prefix, prefix=True, start=first + 1)) as batches:
                async for batch in batches:
                    revisions = [change.revision for change in batch.changes]
                    assert set(map(revisions.count, revisions)) <= {9}
                    seen += revisions
                    if len(seen) == 72:
                        break
            assert seen == sorted(seen)

    run(test())


# -- no history to go on with ----------------------------------------------------------------------------------------


def test_a_compaction_of_what_was_missed(tmp_path: Path) -> None:
    async def test(etcd: Cluster) -> None:
        node, wire = etcd.nodes[0], wire_of(etcd)
        put_behind(node, a="1", b="1")
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            wire.cut()
            with node.store() as behind:
                behind.delete("/r/a")
                behind.compact(put_behind(node, b="2", c="1"))
            wire.mend()
            loaded = await follower.until_kind(Loaded, 2)
            assert {key: each.value for key, each in loaded.items.items()} == {"/r/b": b"2", "/r/c": b"1"}
            assert not loaded.cluster_changed
            put_behind(node, d="1")
            await follower.until_values({"/r/b": b"2", "/r/c": b"1", "/r/d": b"1"})
            assert follower.reflector.counts.loads == 2

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_a_compaction_under_a_standing_watch_changes_nothing(tmp_path: Path) -> None:
    async def test(etcd: Cluster) -> None:
        node = etcd.nodes[0]
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            for number in range(5):
                last = put_behind(node, a=str(number))
                with node.store() as behind:
                    behind.compact(last)
            await follower.until_values({"/r/a": b"4"})
            assert follower.reflector.counts.loads == 1

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_a_wiped_store_is_noticed_although_it_accepts_the_watch(tmp_path: Path) -> None:
    """A watch from revision 40 on a new store is accepted, and would fire once it has had 40 revisions."""

    async def test(etcd: Cluster) -> None:
        node = etcd.nodes[0]
        put_behind(node, **{f"k{number}": "1" for number in range(40)})
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            await asyncio.to_thread(node.wipe)
            loaded = await follower.until_kind(Loaded, 2)
            assert loaded.cluster_changed
            assert loaded.items == {}
            put_behind(node, a="new")
            await follower.until_values({"/r/a": b"new"})

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_a_wiped_store_that_has_caught_up_with_the_revision_is_noticed_too(tmp_path: Path) -> None:
    """By the cluster's id alone."""

    async def test(etcd: Cluster) -> None:
        node, wire = etcd.nodes[0], wire_of(etcd)
        put_behind(node, a="old", b="old")
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            wire.cut()
            await asyncio.to_thread(node.wipe)
            put_behind(node, **{f"k{number}": "new" for number in range(10)})
            wire.mend()
            loaded = await follower.until_kind(Loaded, 2)
            assert loaded.cluster_changed
            assert len(loaded.items) == 10

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_a_store_set_back_in_time_is_noticed(tmp_path: Path) -> None:
    """The same cluster with a shorter history, as after its disk was restored from a copy."""

    async def test(etcd: Cluster) -> None:
        node = etcd.nodes[0]
        put_behind(node, a="1")
        node.kill()
        shutil.copytree(tmp_path / "n0", tmp_path / "copy")
        await asyncio.to_thread(node.restart)
        put_behind(node, **{f"k{number}": "1" for number in range(10)})
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            node.kill()
            shutil.rmtree(tmp_path / "n0")
            shutil.move(tmp_path / "copy", tmp_path / "n0")
            await asyncio.to_thread(node.restart)
            loaded = await follower.until_kind(Loaded, 2)
            assert loaded.items.keys() == {"/r/a"}
            assert not loaded.cluster_changed
            put_behind(node, a="2")
            await follower.until_values({"/r/a": b"2"})

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


# -- etcd away -----------------------------------------------------------------------------------------------------


def test_etcd_away_from_the_start(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)

    async def test() -> None:
        async with client(cluster) as store, following(Reflector(store, "/r/")) as follower:
            lost = await follower.until_kind(Lost)
            assert "Connection refused" in str(lost.error)
            await asyncio.to_thread(cluster.start)
            await follower.until_kind(Restored)
            assert follower.kinds().index("Lost") == 0
            # perhaps a stale one came first, of a member that knew no leader yet
            assert not [event for event in follower.seen if isinstance(event, Loaded)][-1].stale

    try:
        run(test())
    finally:
        cluster.stop()


def test_while_etcd_is_away_every_attempt_waits_its_turn() -> None:
    """One client of others takes a whole core then. Drawn waits are counted here, not time."""

    class Drawn(random.Random):
        def __init__(self) -> None:
            super().__init__(1)
            self.ceilings: list[float] = []

        def uniform(self, a: float, b: float) -> float:
            self.ceilings.append(b)
            return b / 50  # the test need not take the time

    dead = servers.free_ports(1)[0]
    chance = Drawn()

    async def test() -> None:
        async with Client(Options((f"127.0.0.1:{dead}",))) as store:
            reflector = Reflector(store, "/r/", chance=chance)
            async with following(reflector) as follower:
                await until(lambda: reflector.counts.attempts > 8, "attempts")
                assert reflector.counts.attempts - reflector.counts.waits in (0, 1)
                # a listing, and a listing of any member: a connection is tried for each
                assert store.links.connections <= 2 * reflector.counts.attempts
                assert follower.kinds() == ["Lost"]

    run(test())
    assert chance.ceilings[:7] == [min(CAP, BASE * 2**number) for number in range(7)]


def test_a_watch_that_never_lasts_is_not_asked_for_ever_faster(tmp_path: Path) -> None:
    """A proxy that breaks every connection soon: the waits grow although each watch was created."""

    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store, following(Reflector(store, "/r/", chance=random.Random(2))) as follower:
            for number in range(1, 6):
                await standing(follower, number)
                wire_of(etcd).snap()
            await standing(follower, 6)
            assert follower.reflector._backoff.failures == 5
            assert follower.reflector.counts.loads == 1

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


@pytest.mark.parametrize("fault", ["freeze", "stall"])
def test_a_peer_that_is_dead_but_connected(tmp_path: Path, fault: str) -> None:
    """No reset, no answer: only a ping tells. The measured settings are in the next test."""

    async def test(etcd: Cluster) -> None:
        node, wire = etcd.nodes[0], wire_of(etcd)
        async with client(etcd, **ALERT) as store, following(Reflector(store, "/r/")) as follower:
            await store.put("/r/a", b"1")
            await follower.until_values({"/r/a": b"1"})
            # gRPC pings of its own accord where data flows; without any it must be told to
            await until(lambda: wire.quiet_for() > 0.1, "a pause")
            (node.freeze if fault == "freeze" else wire.stall)()
            await follower.until_kind(Lost)
            assert follower.values() == {"/r/a": b"1"}
            (node.thaw if fault == "freeze" else wire.mend)()
            await follower.until_kind(Restored)
            put_behind(node, a="2")
            await follower.until_values({"/r/a": b"2"})

    with servers.running(tmp_path, 1, PATIENT, wired=True) as etcd:
        run(test(etcd))


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_frozen_member_is_left_with_the_settings_of_every_day(tmp_path: Path) -> None:
    """Keepalive alone takes 69 s; with the ping timeout of HTTP/2 it is 13 s. `run` allows 40."""

    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            at = (await store.status()).endpoint
            frozen = next(node for node in etcd.nodes if node.endpoint == at)
            frozen.freeze()
            other = next(node for node in etcd.nodes if node is not frozen)
            await asyncio.to_thread(servers.until, lambda: answers(other), "a new leader")
            put_behind(other, a="1")
            await follower.until_values({"/r/a": b"1"})

    def answers(node: Node) -> bool:
        try:
            with node.store() as store:
                store.put("/elsewhere", "")
        except Exception:  # of several kinds, as etcd3 happens to see it
            return False
        return True

    with servers.running(tmp_path, 3) as etcd:
        run(test(etcd))


# -- no quorum -----------------------------------------------------------------------------------------------------


def test_a_member_without_a_quorum(tmp_path: Path) -> None:
    """A standing watch there is told (else: silence); a start there has what the member knows; then all is well."""

    async def test(etcd: Cluster) -> None:
        lonely, *others = etcd.nodes
        only: dict[str, Any] = {"endpoints": (lonely.endpoint,)}
        put_behind(lonely, a="1")
        async with Client(Options(**only)) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            for node in others:
                node.kill()
            lost = await follower.until_kind(Lost)
            assert "no leader" in str(lost.error)
            assert follower.values() == {"/r/a": b"1"}
            async with Client(Options(**only)) as late_store, following(Reflector(late_store, "/r/")) as late:
                loaded = await late.until_kind(Loaded)
                assert loaded.stale
                assert late.values() == {"/r/a": b"1"}
                await late.until_kind(Lost)
                for node in others:
                    node.start()
                loaded = await late.until_kind(Loaded, 2)
                assert not loaded.stale
                await late.until_kind(Restored)
                assert late.reflector.counts.stale == 1
                await follower.until_kind(Restored)
                put_behind(lonely, a="2")
                for each in (follower, late):
                    await each.until_values({"/r/a": b"2"})
                assert follower.reflector.counts.loads == 1

    with servers.running(tmp_path, 3, "--heartbeat-interval=50", "--election-timeout=500") as etcd:
        run(test(etcd))


def test_a_follower_goes_to_another_member_when_its_own_dies(tmp_path: Path) -> None:
    """Quick enough that nobody is alarmed."""

    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store, following(Reflector(store, "/r/")) as follower:
            await standing(follower)
            at = (await store.status()).endpoint
            led = etcd.leader()
            if led.endpoint == at:  # an election would take its time; that is the chaos test's
                with led.channel() as channel:
                    status = servers.stubs.MaintenanceStub(channel)
                    members = servers.stubs.ClusterStub(channel).MemberList(servers.rpc.MemberListRequest()).members
                    other = next(each for each in members if each.name != led.name)
                    status.MoveLeader(servers.rpc.MoveLeaderRequest(targetID=other.ID))
            node = next(node for node in etcd.nodes if node.endpoint == at)
            node.kill()
            put_behind(next(each for each in etcd.nodes if each is not node), a="1")
            await follower.until_values({"/r/a": b"1"})
            assert follower.kinds() == ["Loaded", "Changed"]
            assert follower.reflector.counts.attempts == 2

    with servers.running(tmp_path, 3) as etcd:
        run(test(etcd))


def test_leaving_ends_it(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            async with Reflector(store, prefix) as reflector:
                events = aiter(reflector)
                await anext(events)
                waiting = asyncio.ensure_future(anext(events, None))
            assert await waiting is None

    run(test())
