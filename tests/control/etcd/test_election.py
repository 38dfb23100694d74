"""One leads, the next one follows when it is gone, and what a former leader writes late is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.election import Election, Leadership
from graylb.control.etcd.errors import EtcdError
from graylb.control.etcd.links import Options
from graylb.control.etcd.values import Put
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import client, run, until


@asynccontextmanager
async def candidates(etcd: Cluster, key: str, *names: str, ttl: int = 2) -> AsyncIterator[list[Election]]:
    """Each with a client of its own."""
    async with AsyncExitStack() as stack:
        found = []
        for name in names:
            store = await stack.enter_async_context(client(etcd))
            found.append(await stack.enter_async_context(Election(store, key, name, ttl=ttl)))
        yield found


def leaders(elections: list[Election]) -> list[Election]:
    return [each for each in elections if each.leadership is not None]


async def one_leads(elections: list[Election]) -> tuple[Election, Leadership]:
    await until(lambda: leaders(elections), "a leader")
    [leader] = leaders(elections)
    assert leader.leadership is not None
    return leader, leader.leadership


def test_one_of_many_leads_and_all_know_whom(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with candidates(etcd, prefix, "a", "b", "c") as elections:
            leader, leadership = await one_leads(elections)
            await until(lambda: {each.leader for each in elections} == {leader.name}, "all know")
            found = await leader.client.get(prefix)
            assert found is not None
            assert (found.value.decode(), found.create_revision) == (leader.name, leadership.revision)
            assert (await anext(leader)) is leadership

    run(test())


def test_who_leaves_is_followed_at_once(etcd: Cluster, prefix: str) -> None:
    """Not after its lease has run out: that is a minute here."""

    async def test() -> None:
        async with candidates(etcd, prefix, "b", "c", ttl=60) as others:
            revisions = []
            for name in ("a", "d"):
                async with client(etcd) as store, Election(store, prefix, name, ttl=60) as election:
                    # the present leader makes room
                    while election.leadership is None:
                        found = await store.get(prefix)
                        if found is not None and found.value != name.encode():
                            await store.delete(prefix)
                        await asyncio.sleep(0.02)
                    revisions.append(election.leadership.revision)
                _, leadership = await one_leads(others)
                revisions.append(leadership.revision)
            assert revisions == sorted(set(revisions))

    run(test())


def test_a_former_leaders_writes_are_refused(etcd: Cluster, prefix: str) -> None:
    """It was frozen, say, and has not noticed yet."""

    async def test() -> None:
        async with candidates(etcd, prefix + "leader", "a", "b") as elections:
            leader, former = await one_leads(elections)
            assert (await leader.client.txn([former.guard], [Put(prefix + "x", b"1")])).succeeded
            await leader.client.delete(prefix + "leader")
            await until(lambda: leader.leadership is not former, "it has noticed")
            _, leadership = await one_leads(elections)
            assert leadership.revision > former.revision
            assert not (await leader.client.txn([former.guard], [Put(prefix + "x", b"2")])).succeeded
            assert (await leader.client.txn([leadership.guard], [Put(prefix + "x", b"3")])).succeeded

    run(test())


def test_turns_as_their_leader_sees_them(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store, Election(store, prefix, "a") as election:
            turns = aiter(election)
            first = await anext(turns)
            assert first is not None
            assert first.valid
            await store.revoke(first.lease_id)
            assert await anext(turns) is None
            assert not first.valid
            second = await anext(turns)
            assert second is not None
            assert second.revision > first.revision
            # two turns that nobody looked at: the present one is told, after the end of the former
            for _ in range(2):
                present = election.leadership
                await store.delete(prefix)
                await until(lambda was=present: election.leadership not in (None, was), "the next turn")
            assert await anext(turns) is None
            assert await anext(turns) is election.leadership
            waiting = asyncio.ensure_future(anext(turns, None))
        assert await waiting is None

    run(test())


def test_a_key_that_lost_its_lease_does_not_block_the_election_for_ever(etcd: Cluster, prefix: str) -> None:
    """`etcdctl put` over it takes it from the lease; nothing would ever delete it."""

    async def test() -> None:
        async with candidates(etcd, prefix, "a", "b") as elections:
            _, former = await one_leads(elections)
            async with client(etcd) as store:
                await store.put(prefix, b"somebody")
            await until(lambda: not any(each.leadership is former for each in elections), "the end of that turn")
            _, leadership = await one_leads(elections)
            assert leadership.revision > former.revision

    run(test())


def test_a_leader_that_cannot_reach_etcd_steps_down_before_the_next_one_begins(tmp_path: Path) -> None:
    async def test(etcd: Cluster) -> None:
        wire = etcd.nodes[0].wire
        assert wire is not None
        straight = Client(Options((etcd.nodes[0].address,)))
        async with straight, client(etcd) as cut, Election(cut, "/l", "cut", ttl=2) as first:
            _, former = await one_leads([first])
            async with Election(straight, "/l", "straight", ttl=2) as second:
                await until(lambda: second.leader == "cut", "the second one follows")
                wire.stall()
                both = False
                while second.leadership is None:
                    both = both or (first.leadership is not None and second.leadership is not None)
                    await asyncio.sleep(0.005)
                assert not both
                assert first.leadership is None
                assert not former.valid
                wire.mend()
                await until(lambda: first.leader == "straight", "the first one knows")
                assert first.leadership is None

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_etcd_restarts_and_the_leader_stays(tmp_path: Path) -> None:
    """Within its lease: no turn ends, for nobody else can have begun one."""

    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store, Election(store, "/l", "a", ttl=30) as election:
            _, leadership = await one_leads([election])
            await asyncio.to_thread(etcd.nodes[0].restart)
            while True:
                try:
                    done = await store.txn([leadership.guard], [Put("/x", b"1")])
                    break
                except EtcdError:
                    await asyncio.sleep(0.02)
            assert done.succeeded
            assert election.leadership is leadership

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_kills_and_coups_never_make_two_leaders(tmp_path: Path) -> None:
    """A counter that only leaders raise, by one each time, with nothing but the guard against a race."""

    async def campaign(etcd: Cluster, name: str, stop: asyncio.Event, log: list[tuple[int, int]]) -> None:
        async with (
            client(etcd, timeout=1.0, connect_timeout=0.5) as store,
            Election(store, "/l", name, ttl=2) as election,
        ):
            while not stop.is_set():
                leadership = election.leadership
                if leadership is None:
                    await asyncio.sleep(0.01)
                    continue
                try:
                    found = await store.get("/n")
                    count = int(found.value) if found else 0
                    done = await store.txn([leadership.guard], [Put("/n", b"%d" % (count + 1))])
                except EtcdError:
                    await asyncio.sleep(0.01)
                    continue
                if done.succeeded:
                    log.append((leadership.revision, count + 1))

    async def more(log: list[tuple[int, int]], count: int) -> None:
        wanted = len(log) + count
        await until(lambda: len(log) >= wanted, "leaders at work")

    async def test(etcd: Cluster) -> None:
        stop, log = asyncio.Event(), list[tuple[int, int]]()
        tasks = [asyncio.create_task(campaign(etcd, name, stop, log)) for name in "abc"]
        for fault in ("kill", "delete", "revoke") * 2:
            await more(log, 20)
            last, _ = log[-1]
            if fault == "kill":
                node = etcd.leader()
                node.kill()
                await more(log, 1)
                node.start()
                await asyncio.to_thread(node.wait)
                continue
            async with client(etcd) as store:
                found = await store.get("/l")
                assert found is not None
                await (store.delete("/l") if fault == "delete" else store.revoke(found.lease))
            await until(lambda last=last: log[-1][0] > last, "the next turn")
        stop.set()
        await asyncio.gather(*tasks)
        log.sort(key=lambda entry: entry[1])
        assert len({count for _, count in log}) == len(log), "a count was given twice"
        turns = [revision for revision, _ in log]
        assert turns == sorted(turns)
        assert len(set(turns)) >= 5

    with servers.running(tmp_path, 3) as etcd:
        run(test(etcd))
