"""Every request against a real etcd; what is stored is read back by etcd3's own client."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from graylb.control.etcd import values
from graylb.control.etcd.client import PAGE, Client
from graylb.control.etcd.errors import Compacted, LeaseLost, Refused, TooLarge, Unavailable
from graylb.control.etcd.links import Links, Options
from graylb.control.etcd.values import Compare, Delete, Get, Put
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import client, run


def test_a_link_that_was_dropped_is_used_by_nobody(etcd: Cluster) -> None:
    """Two wait for one connection. The first has it, and drops it before the second goes on: its channel is closed."""

    async def test() -> None:
        links = Links(Options(etcd.endpoints), random.Random(1))

        async def drop() -> None:
            async with links.use() as link:
                links.drop(link)

        async def use() -> bool:
            async with links.use() as link:
                return link.dropped

        _, dropped = await asyncio.gather(drop(), use())
        assert not dropped
        assert links.connections == 2
        await links.close()

    run(test())


def test_put_get_delete(etcd: Cluster, prefix: str) -> None:
    key = prefix + "k\udcff"  # a byte that is no UTF-8

    async def test() -> None:
        async with client(etcd) as store:
            assert await store.get(key) is None
            first = await store.put(key, b"one")
            second = await store.put(key, b"two\0")
            found = await store.get(key)
            assert found == values.KeyValue(key, b"two\0", first, second, 2, 0)
            with etcd.nodes[0].store() as other:
                assert other.get(prefix.encode() + b"k\xff")[0] == b"two\0"
            former = await store.get(key, revision=first)
            assert former is not None
            assert former.value == b"one"
            assert await store.delete(key) == 1
            assert await store.delete(key) == 0

    run(test())


def test_a_listing_of_many_pages_is_of_one_revision(etcd: Cluster, prefix: str) -> None:
    """Keys change between the pages, also those of pages to come; none of that shows."""
    count = 2 * PAGE + 3

    async def test() -> None:
        async with client(etcd) as store:
            keys = [f"{prefix}{number:05}" for number in range(count)]
            for start in range(0, count, 100):
                await store.txn([], [Put(key, b"before") for key in keys[start : start + 100]])
            await store.put(prefix[:-1] + "0", b"a neighbour")
            stop = asyncio.Event()

            async def disturb() -> None:
                while not stop.is_set():
                    number = random.randrange(count)
                    await store.txn([], [Put(keys[-1], b"after"), Delete(keys[number % PAGE]), Put(f"{prefix}x", b"")])

            task = asyncio.create_task(disturb())
            listings = [await store.list(prefix) for _ in range(5)]
            stop.set()
            await task
            for listing in listings:
                for record in listing.items.values():
                    assert record.mod_revision <= listing.revision
                for key in random.sample(keys, 20):
                    assert await store.get(key, revision=listing.revision) == listing.items.get(key)
            assert list(listings[0].items) == sorted(listings[0].items)
            assert len(await asyncio.gather(store.list("/nowhere/"), store.list(""))) == 2

    run(test())


def test_values_larger_than_a_message_may_be_are_listed_in_smaller_pages(etcd: Cluster, prefix: str) -> None:
    """gRPC's limit of 4 MiB made a listing of 500 large values fail for ever."""

    async def test() -> None:
        async with client(etcd, max_message=300_000) as store:
            for number in range(20):
                await store.put(f"{prefix}{number:02}", b"x" * 100_000)
            assert len((await store.list(prefix)).items) == 20
            await store.put(prefix + "huge", b"x" * 400_000)
            with pytest.raises(TooLarge):
                await store.list(prefix)
        async with client(etcd) as store:
            assert len((await store.list(prefix)).items) == 21

    run(test())


def test_transactions(etcd: Cluster, prefix: str) -> None:
    a, b = prefix + "a", prefix + "b"

    async def test() -> None:
        async with client(etcd) as store:
            made = await store.txn([values.absent(a)], [Put(a, b"1"), Put(b, b"2"), Get(prefix, prefix=True)])
            assert made.succeeded
            assert made.results[:2] == (None, None)
            assert [each.value for each in made.results[2]] == [b"1", b"2"]  # type: ignore[union-attr]
            again = await store.txn([values.absent(a)], [Put(a, b"3")], [Get(a), Get(prefix + "nothing")])
            assert not again.succeeded
            assert again.results[1] == ()
            [[record]] = again.results[:1]  # type: ignore[misc]
            assert (record.value, record.mod_revision) == (b"1", made.revision)

            conditions = [
                values.unchanged(a, made.revision),
                values.unchanged(prefix + "nothing", 0),
                Compare(a, "value", "==", b"1"),
                Compare(a, "value", "!=", b"2"),
                Compare(a, "version", "<", 2),
                Compare(a, "lease", "==", 0),
                Compare(a, "create_revision", ">", made.revision - 1),
            ]
            assert (await store.txn(conditions, [Put(a, b"4")])).succeeded
            for stale in conditions[:1] + conditions[2:3] + conditions[4:5]:
                assert not (await store.txn([stale], [Put(a, b"5")])).succeeded
            gone = await store.txn([], [Delete(prefix, prefix=True)])
            assert gone.results == (2,)

    run(test())


def test_two_who_write_at_once_one_wins(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as one, client(etcd) as two:
            revision = await one.put(prefix, b"0")
            guard = [values.unchanged(prefix, revision)]
            done = await asyncio.gather(one.txn(guard, [Put(prefix, b"1")]), two.txn(guard, [Put(prefix, b"2")]))
            assert sorted(each.succeeded for each in done) == [False, True]

    run(test())


def test_leases(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            lease, seconds = await store.grant(30)
            assert seconds == 30
            await store.put(prefix, b"", lease=lease)
            found = await store.get(prefix)
            assert found is not None
            assert found.lease == lease
            assert await store.keep_alive(lease) == 30
            await store.revoke(lease)
            assert await store.get(prefix) is None
            for attempt in (store.revoke(lease), store.keep_alive(lease), store.put(prefix, b"", lease=lease)):
                with pytest.raises(LeaseLost):
                    await attempt

    run(test())


def test_what_etcd_refuses(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            with pytest.raises(Refused, match="request is too large"):
                await store.put(prefix, b"x" * (1800 << 10))
            with pytest.raises(TooLarge):
                await store.put(prefix, b"x" * (4 << 20))
            with pytest.raises(Refused, match="duplicate key"):
                await store.txn([], [Put(prefix, b"1"), Put(prefix, b"2")])
            with pytest.raises(Refused, match="too many operations"):
                await store.txn([], [Put(f"{prefix}{number}", b"") for number in range(200)])
            assert await store.get(prefix) is None

    run(test())


def test_a_revision_of_the_past_may_be_compacted(tmp_path: Path) -> None:
    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store:
            first = await store.put("k", b"1")
            last = await store.put("k", b"2")
            with etcd.nodes[0].store() as other:
                other.compact(last)
            with pytest.raises(Compacted):
                await store.get("k", revision=first)
            assert (await store.list("k")).revision == last

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_status(etcd: Cluster) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            status = await store.status()
            assert status.endpoint == etcd.endpoints[0]
            assert status.leader == status.member_id
            assert status.version.startswith("3.")
            assert status.alarms == ()
            assert (await store.list("/status")).cluster_id == status.cluster_id

    run(test())


def test_endpoints_that_are_not_there_are_passed_over(etcd: Cluster, prefix: str) -> None:
    """By name too; and IPv6 addresses, names and IPv4 ones mix, which no single channel of gRPC's does."""
    port = etcd.nodes[0].port
    dead, dead6 = servers.free_ports(2)

    async def test(seed: int) -> None:
        options = Options((f"127.0.0.1:{dead}", f"[::1]:{dead6}", f"localhost:{port}"))
        async with Client(options, chance=random.Random(seed)) as store:
            await asyncio.gather(*(store.put(f"{prefix}{number}", b"") for number in range(20)))
            assert store.links.connections == store.links.endpoints.index(f"localhost:{port}") + 1

    for seed in range(6):
        run(test(seed))


def test_clients_try_endpoints_in_orders_of_their_own() -> None:
    endpoints = tuple(f"10.0.0.{number}:2379" for number in range(1, 4))

    async def test() -> set[tuple[str, ...]]:
        return {tuple(Client(Options(endpoints), chance=random.Random(seed)).links.endpoints) for seed in range(60)}

    assert len(run(test())) == 6


def test_nobody_there(prefix: str) -> None:
    one, two = servers.free_ports(2)

    async def test() -> None:
        async with Client(Options((f"127.0.0.1:{one}", f"localhost:{two}"))) as store:
            with pytest.raises(Unavailable, match="no endpoint can be reached") as caught:
                await store.put(prefix, b"")
            assert not caught.value.maybe_applied
            for port in (one, two):
                assert f":{port}: Failed to connect to remote host: Connection refused" in str(caught.value)
            # many who ask at once share one round of attempts
            before = store.links.connections
            await asyncio.gather(*(store.get(prefix) for _ in range(50)), return_exceptions=True)
            assert store.links.connections == before + 2

    run(test())


def test_a_frozen_member_is_left_for_another_and_a_write_to_it_is_not_repeated(tmp_path: Path) -> None:
    async def test(cluster: Cluster) -> None:
        options = Options(cluster.endpoints, timeout=1.0, connect_timeout=0.5)
        async with Client(options) as store:
            await store.put("k", b"1")
            frozen = next(node for node in cluster.nodes if node.endpoint == store.links.endpoints[0])
            assert (await store.status()).endpoint == frozen.endpoint
            frozen.freeze()
            with pytest.raises(Unavailable) as caught:
                await store.put("k", b"2")
            assert caught.value.maybe_applied
            assert (await store.status()).endpoint != frozen.endpoint

            frozen.thaw()
            async with Client(options, chance=random.Random(3)) as other:
                await other.status()
                frozen = next(node for node in cluster.nodes if node.endpoint == other.links.endpoints[0])
                frozen.freeze()
                # a read is repeated; where the leader was the frozen one, another is elected first
                found = None
                while found is None:
                    try:
                        found = await other.get("k")
                    except Unavailable:
                        continue
                assert found.value in (b"1", b"2")

    with servers.running(tmp_path, 3) as cluster:
        run(test(cluster))


def test_a_link_that_is_dropped_while_it_is_looked_at_is_replaced(tmp_path: Path) -> None:
    """Bug: whoever looked whether the link is ready found none when another call had dropped it meanwhile."""

    async def test(etcd: Cluster) -> None:
        async with client(etcd) as store:
            await store.put("/k", b"1")
            links = store.links
            link = links._link
            assert link is not None
            ready = link.ready

            async def dropped_meanwhile() -> bool:
                links.drop(link)
                return await ready()

            link.ready = dropped_meanwhile  # type: ignore[method-assign]
            assert await links._connect() is not link
            await store.put("/k", b"2")

    with servers.running(tmp_path) as etcd:
        run(test(etcd))
