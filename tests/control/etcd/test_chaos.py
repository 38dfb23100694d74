"""Three members are killed, frozen and compacted at random while somebody writes: what is reflected is all there is."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import Compacted, EtcdError, Unavailable
from graylb.control.etcd.links import Options
from graylb.control.etcd.reflector import Changed, Loaded, Reflector
from graylb.control.etcd.values import Delete, Operation, Put
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import run, until

SECONDS = 25.0


def straight(cluster: Cluster) -> Options:
    """Past the wires, and impatient."""
    return Options(tuple(node.address for node in cluster.nodes), timeout=1.0, connect_timeout=0.3)


class Writer:
    """Keys used once (`/r/once/…`), so that each change can be told from every other, and keys used all the time."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster, self.chance = cluster, chance
        self.acknowledged: dict[str, int] = {}
        self.uncertain: set[str] = set()
        self.stop = False

    async def write(self) -> None:
        number = 0
        async with Client(straight(self.cluster)) as store:
            while not self.stop:
                number += 1
                key = f"/r/once/{number:06}"
                used = f"/r/used/{self.chance.randrange(20)}"
                gone = f"/r/used/{self.chance.randrange(20)}"
                batch: list[Operation] = [Put(key, b"%d" % number), Put(used, b"%d" % number)]
                if gone != used:
                    batch.append(Delete(gone))
                try:
                    self.acknowledged[key] = (await store.txn([], batch)).revision
                except EtcdError:
                    self.uncertain.add(key)
                    await asyncio.sleep(0.05)
                await store_elsewhere(store)


async def store_elsewhere(store: Client) -> None:
    """Revisions that are none of the reflector's."""
    try:
        await store.put("/elsewhere", b"")
    except EtcdError:
        await asyncio.sleep(0.05)


class Watcher:
    """Complains about any change that it was told before, however it came to know of it."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.told: set[str] = set()
        self.revision = 0
        self.doubled: list[str] = []
        self.loads = self.changes = 0

    async def follow(self, reflector: Reflector) -> None:
        async for event in reflector:
            if isinstance(event, Loaded):
                assert event.revision >= self.revision
                assert self.told <= event.items.keys(), "a listing without what was seen before"
                self.loads += 1
                self.state = {key: each.value for key, each in event.items.items()}
                self.told = {key for key in self.state if "/once/" in key}
                self.revision = event.revision
            elif isinstance(event, Changed):
                assert event.revision > self.revision
                for key, now in event.changes.items():
                    self.changes += 1
                    if "/once/" in key:
                        assert now is not None
                        if key in self.told or now.mod_revision <= self.revision:
                            self.doubled.append(key)
                        self.told.add(key)
                    if now is None:
                        del self.state[key]
                    else:
                        self.state[key] = now.value
                self.revision = event.revision


async def compact(cluster: Cluster) -> None:
    """Everything up to now, past the wires."""
    async with Client(straight(cluster)) as store:
        try:
            revision = (await store.list("/nothing")).revision
            async with store.links.use() as link:
                await link.kv.Compact(servers.rpc.CompactionRequest(revision=revision, physical=True), timeout=2)
        except (Unavailable, Compacted, servers.grpc.RpcError):
            pass


async def torment(cluster: Cluster, chance: random.Random, seconds: float) -> dict[str, int]:
    """One fault after the other; at most one member is down or frozen at a time, so that writes go on.

    snap: the reflectors' connections are reset; behind: they are cut off while what they miss is compacted away.
    """
    done = {"kill": 0, "freeze": 0, "compact": 0, "snap": 0, "behind": 0}
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        fault = chance.choice(list(done))
        node = chance.choice(cluster.nodes)
        done[fault] += 1
        wires = [each.wire for each in cluster.nodes if each.wire]
        if fault == "compact":
            await compact(cluster)
            await asyncio.sleep(chance.uniform(0, 0.5))
        elif fault == "snap":
            for wire in wires:
                wire.snap()
            await asyncio.sleep(chance.uniform(0, 0.5))
        elif fault == "behind":
            for wire in wires:
                wire.cut()
            await asyncio.sleep(chance.uniform(0.1, 0.5))
            await compact(cluster)
            for wire in wires:
                wire.mend()
            await asyncio.sleep(0.5)
        elif fault == "kill":
            node.kill()
            await asyncio.sleep(chance.uniform(0, 2))
            node.start()
            await asyncio.to_thread(node.wait)
        else:
            node.freeze()
            await asyncio.sleep(chance.uniform(0, 4))
            node.thaw()
            await asyncio.to_thread(node.wait)
    return done


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_missed_and_nothing_comes_twice(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def test(cluster: Cluster) -> None:
        options = Options(cluster.endpoints, timeout=1.0, connect_timeout=0.3, keepalive=0.5, keepalive_timeout=0.5)
        writer, watchers = Writer(cluster, chance), [Watcher(), Watcher()]
        async with Client(options) as one, Client(options) as two:  # noqa: SIM117
            async with Reflector(one, "/r/") as first, Reflector(two, "/r/") as second:
                follows = [
                    asyncio.create_task(watcher.follow(each))
                    for watcher, each in zip(watchers, (first, second), strict=True)
                ]
                writing = asyncio.create_task(writer.write())
                faults = await torment(cluster, chance, SECONDS)
                writer.stop = True
                await writing
                async with Client(Options((cluster.leader().address,))) as store:
                    listing = await store.list("/r/")
                truth = {key: each.value for key, each in listing.items.items()}
                for watcher, follow in zip(watchers, follows, strict=True):
                    await until(lambda w=watcher, f=follow: w.state == truth or f.done(), "the same state")
                    follow.cancel()
                    await asyncio.gather(follow, return_exceptions=True)
                    if not follow.cancelled():
                        follow.result()
                    # a key used once is there for good: each acknowledged one was told, in a change or in a listing
                    missed = writer.acknowledged.keys() - watcher.told
                    assert not missed
                    assert not watcher.doubled
                    assert watcher.told <= writer.acknowledged.keys() | writer.uncertain
                print(
                    f"{faults}, {len(writer.acknowledged)} acknowledged, {len(writer.uncertain)} uncertain; "
                    + "; ".join(
                        f"{w.changes} changes in {r.counts}" for w, r in zip(watchers, (first, second), strict=True)
                    )
                )
                assert len(writer.acknowledged) > 100
                assert min(faults.values()) > 0
                assert first.counts.loads > 1
                assert first.counts.attempts > faults["snap"]

    with servers.running(tmp_path, 3, "--grpc-keepalive-min-time=100ms", wired=True) as cluster:
        run(test(cluster), 120.0)
