"""A registration is in a real etcd while its process lives, whatever happens to etcd meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.links import Options
from graylb.model import keys
from graylb.register import BlockingRegistration, Registration
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import client, run, until


def of(endpoints: tuple[str, ...], prefix: str, **more: Any) -> Registration:
    return Registration(Options(endpoints), **{**INSTANCE, "prefix": prefix, **more})


INSTANCE: dict[str, Any] = {"service": "users", "version": "v2", "address": "LOCALHOST:9001", "ttl": 10}


async def value(store: Client, key: str) -> Any:
    found = await store.get(key)
    return orjson.loads(found.value) if found else None


def test_the_instance_is_there_under_a_lease_until_it_leaves(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store:
            async with of(etcd.endpoints, prefix, metadata={"env": "gray"}, zone="a", weight=7) as registration:
                await registration.settled()
                assert registration.key == prefix + "services/users/instances/127.0.0.1:9001"
                found = await store.get(registration.key)
                assert found is not None
                assert found.lease
                entry = keys.decode(registration.key.removeprefix(prefix), found.value)
                assert (entry.service, entry.part) == ("users", "instances")
                part = entry.value
                assert (part.address, part.version, part.weight) == ("127.0.0.1:9001", "v2", 7)
                assert (part.metadata, part.zone) == ({"env": "gray"}, "a")
                registration.offer(weight=0)
                await registration.settled()
                assert (await value(store, registration.key))["weight"] == 0
                registration.withdraw()
                await registration.settled()
                assert await value(store, registration.key) is None
                registration.offer()
                await registration.settled()
                assert (await value(store, registration.key))["weight"] == 0
                assert registration.problem == ""
            assert await value(store, registration.key) is None

    run(test())


def test_a_lost_lease_is_replaced(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store, of(etcd.endpoints, prefix, ttl=2) as registration:
            await registration.settled()
            first = await store.get(registration.key)
            assert first is not None
            await store.revoke(first.lease)
            await registration.lost()
            await registration.settled()
            again = await store.get(registration.key)
            assert again is not None
            assert again.lease != first.lease
            assert again.value == first.value

    run(test())


def test_one_that_is_started_again_takes_the_place_of_the_one_before(etcd: Cluster, prefix: str) -> None:
    async def test() -> None:
        async with client(etcd) as store, of(etcd.endpoints, prefix, version="v3") as new:
            async with of(etcd.endpoints, prefix) as old:
                await old.settled()
                new.offer(weight=5)
                await new.settled()
            assert (await value(store, new.key))["version"] == "v3"

    run(test())


def test_etcd_restarts_while_registered(tmp_path: Path, prefix: str) -> None:
    async def test(cluster: Cluster) -> None:
        async with client(cluster) as store, of(cluster.endpoints, prefix, ttl=2) as registration:
            await registration.settled()
            before = await store.get(registration.key)
            await asyncio.to_thread(cluster.nodes[0].restart)
            lease = registration._lease
            assert lease is not None
            first = lease.expires
            await until(lambda: lease.held and lease.expires > first + 2.5, "kept alive beyond its first end")
            await registration.settled()
            after = await store.get(registration.key)
            assert before is not None
            assert after is not None
            assert after.value == before.value

    with servers.running(tmp_path) as cluster:
        run(test(cluster))


def test_a_service_starts_without_etcd_and_is_registered_later(tmp_path: Path, prefix: str) -> None:
    async def test(cluster: Cluster) -> None:
        async with of(cluster.endpoints, prefix) as registration:
            await until(lambda: registration.problem, "told that etcd is away")
            await asyncio.to_thread(lambda: cluster.start())
            await registration.settled()
            async with client(cluster) as store:
                assert await value(store, registration.key)

    cluster = Cluster(tmp_path)
    try:
        run(test(cluster))
    finally:
        cluster.stop()


def test_without_asyncio(etcd: Cluster, prefix: str) -> None:
    with etcd.nodes[0].store() as store:
        with BlockingRegistration(",".join(etcd.endpoints), **{**INSTANCE, "prefix": prefix}) as registration:
            assert registration.settled(30)
            found, about = store.get(registration.key)
            assert orjson.loads(found)["weight"] == 100
            assert about.lease_id
            registration.offer(weight=3)
            assert registration.settled(30)
            assert orjson.loads(store.get(registration.key)[0])["weight"] == 3
            with pytest.raises(ValueError, match="weight -1: expected a whole number"):
                registration.offer(weight=-1)
            registration.withdraw()
            assert registration.settled(30)
            assert store.get(registration.key)[0] is None
            registration.offer()
            assert registration.settled(30)
        assert store.get(registration.key)[0] is None


def test_without_asyncio_and_without_etcd(prefix: str) -> None:
    (port,) = servers.free_ports(1)
    with BlockingRegistration(f"127.0.0.1:{port}", **{**INSTANCE, "prefix": prefix}) as registration:
        assert not registration.settled(0.01)
        servers.until(lambda: registration.problem, "told that etcd is away")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"address": "10.0.0.5"}, 'address "10.0.0.5": expected HOST:PORT'),
        ({"service": "a/b"}, 'service "a/b": expected a name'),
        ({"version": ""}, 'version "": expected a version'),
        ({"weight": -1}, "weight -1: expected a whole number from 0"),
        ({"metadata": {"": "x"}}, 'metadata "": expected a text that is not empty'),
        ({"metadata": {"x": [1]}}, "metadata x a list: expected a text"),
        ({"ttl": 0}, "ttl 0: expected at least a second"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_done(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="register: ") as caught:
        Registration("127.0.0.1:2379", **{**INSTANCE, **wrong})
    assert said in str(caught.value)


def test_nothing_can_be_asked_of_one_that_was_not_entered() -> None:
    with pytest.raises(RuntimeError, match="used by `with`"):
        Registration("127.0.0.1:2379", **INSTANCE).withdraw()
    with pytest.raises(RuntimeError, match="used by `with`"):
        BlockingRegistration("127.0.0.1:2379", **INSTANCE).withdraw()
