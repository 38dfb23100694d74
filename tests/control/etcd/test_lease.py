"""A lease is kept, its keys come back with it, and nobody believes in it longer than etcd does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import EtcdError, Refused
from graylb.control.etcd.lease import Lease
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import client, run, until


async def value(store: Client, key: str) -> bytes | None:
    found = await store.get(key)
    return found.value if found else None


async def until_value(store: Client, key: str, wanted: bytes | None) -> None:
    while True:
        try:
            if await value(store, key) == wanted:
                return
        except EtcdError:
            pass
        await asyncio.sleep(0.02)


def test_keys_come_and_go_with_it(etcd: Cluster, prefix: str) -> None:
    a, b = prefix + "a", prefix + "b"

    async def test() -> None:
        async with client(etcd) as store:
            async with Lease(store, 10) as lease:
                lease.set(a, b"1")
                lease.set(b, b"1")
                await lease.settled()
                found = await store.get(a)
                assert found is not None
                assert found.lease == lease.id == await lease.granted()
                assert lease.held
                lease.set(a, b"2")
                lease.unset(b)
                await lease.settled()
                assert (await value(store, a), await value(store, b)) == (b"2", None)
                lease.set(a, b"2")
                lease.unset(b)
                await lease.settled()
                again = await store.get(a)
                assert again is not None
                assert again.version == 2
            assert await value(store, a) is None
            assert not lease.held

    run(test())


def test_it_outlives_its_time(etcd: Cluster, prefix: str) -> None:
    """The lease of two seconds is watched until it has been asked for again several times."""

    async def test() -> None:
        async with client(etcd) as store:
            lost = list[str]()
            async with Lease(store, 2, on_lost=lambda: lost.append("lost")) as lease:
                lease.set(prefix, b"1")
                identity, first = await lease.granted(), lease.expires
                await until(lambda: lease.expires > first + 3, "kept alive beyond its first end")
                assert lease.id == identity
                assert await value(store, prefix) == b"1"
                assert lost == []
            assert lost == ["lost"]

    run(test())


def test_it_is_granted_anew_when_it_was_revoked(etcd: Cluster, prefix: str) -> None:
    """As after an expiry: keeping it alive is answered with 0 seconds and no error."""

    async def test() -> None:
        told = list[str]()
        async with (
            client(etcd) as store,
            Lease(store, 2, on_granted=lambda: told.append("granted"), on_lost=lambda: told.append("lost")) as lease,
        ):
            lease.set(prefix, b"1")
            await lease.settled()
            former = lease.id
            await store.revoke(former)
            assert await value(store, prefix) is None
            await until_value(store, prefix, b"1")
            await lease.settled()
            assert lease.id != former
            assert told == ["granted", "lost", "granted"]

    run(test())


def test_one_key_that_etcd_refuses_does_not_hold_up_the_others(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store, Lease(store, 10) as lease:
            lease.set(prefix + "a", b"x" * 1_800_000)
            lease.set(prefix + "b", b"1")
            await until_value(store, prefix + "b", b"1")
            await until(lambda: lease.problem is not None, "the problem is known")
            assert isinstance(lease.problem, Refused)
            assert lease.held
            lease.set(prefix + "a", b"small")
            await lease.settled()
            assert lease.problem is None

    run(test())


def test_somebody_elses_key_is_not_deleted(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            async with Lease(store, 10) as lease:
                lease.set(prefix, b"ours")
                await lease.settled()
                await store.put(prefix, b"theirs")
                lease.unset(prefix)
                await lease.settled()
            assert await value(store, prefix) == b"theirs"

    run(test())


def test_etcd_away_for_longer_than_the_lease(tmp_path: Path) -> None:
    """It counts as lost here, in time; etcd gives it its full time anew, and the keys have never been away."""

    async def test(etcd: Cluster) -> None:
        node = etcd.nodes[0]
        told = list[str]()
        async with (
            client(etcd) as store,
            Lease(store, 2, on_granted=lambda: told.append("granted"), on_lost=lambda: told.append("lost")) as lease,
        ):
            lease.set("/k", b"1")
            await lease.settled()
            identity = lease.id
            node.kill()
            await until(lambda: "lost" in told, "lost")
            assert not lease.held
            lease.set("/k", b"2")  # meanwhile, and many times: attempts do not grow with it
            attempts = store.links.connections
            for number in range(1000):
                lease.set("/k", b"%d" % number)
                await asyncio.sleep(0)
            assert store.links.connections <= attempts + 20
            await asyncio.to_thread(node.restart)
            await until_value(store, "/k", b"999")
            await lease.settled()
            assert lease.id == identity
            assert told == ["granted", "lost", "granted"]
            found = await store.get("/k")
            assert found is not None
            assert found.version == 2

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_a_late_answer_is_worth_what_is_left_since_the_question(tmp_path: Path) -> None:
    """etcd may have counted from the question on."""

    async def test(etcd: Cluster) -> None:
        wire = etcd.nodes[0].wire
        assert wire is not None
        loop = asyncio.get_running_loop()
        async with client(etcd) as store, Lease(store, 6) as lease:
            await lease.granted()
            wire.stall()
            first = lease.expires
            await until(lambda: loop.time() > lease._due + 0.2, "it was asked for")
            answered = loop.time()
            wire.mend()
            await until(lambda: lease.expires > first, "it was kept alive")
            assert lease.expires < answered + 6

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_without_an_answer_it_is_lost_in_time(tmp_path: Path) -> None:
    """Although a request is under way, which may take as long as it likes."""

    async def test(etcd: Cluster) -> None:
        wire = etcd.nodes[0].wire
        assert wire is not None
        loop = asyncio.get_running_loop()
        async with client(etcd, keepalive=60.0, timeout=30.0) as store, Lease(store, 2) as lease:
            await lease.granted()
            wire.stall()
            first = lease.expires
            await until(lambda: not lease.held, "lost")
            assert loop.time() >= first
            wire.mend()
            await lease.granted()

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_a_lease_of_no_time() -> None:
    with pytest.raises(ValueError, match="at least a second, not 0"):
        Lease(None, 0)  # type: ignore[arg-type]
