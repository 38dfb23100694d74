"""Three nodes of etcd, proxies on them, and changes that people make while etcd loses its leader again and again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from graylb.control.config_store import ConfigStoreError, Edit, Record
from graylb.control.etcd_config import EtcdConfigStore
from tests.control.etcd import servers, support
from tests.control.etcd.servers import Cluster
from tests.control.etcd.worlds import left_by, opened, text, weights
from tests.integration import etcds, proxies, upstream
from tests.integration.proxies import Proxy, until

SPLIT = "services/users/split"
KILLS = 3
BETWEEN = 8
"""Changes acknowledged between two events."""


@pytest.mark.slow
def test_no_acknowledged_change_is_lost_and_none_made_twice_when_etcds_leader_is_killed(tmp_path: Path) -> None:
    flags = ("--heartbeat-interval=50", "--election-timeout=500")
    with (
        servers.running(tmp_path / "etcd", 3, *flags) as cluster,
        etcds.nodes(tmp_path, cluster, "a", "b") as pair,
    ):
        acknowledged, records, version = support.run(_changes(cluster, tmp_path), 200)
        own = [each for each in records if each.who == "ann"]
        told = {each.why: each for each in own}
        assert len(told) == len(own), "a change was made twice"
        assert version == len(own), "the key was put more often than there are records"
        for change, revision in acknowledged.items():
            assert told[change].revision == revision
        left_by(records)
        value = own[-1].after[SPLIT]
        assert value is not None
        for proxy in pair:
            etcds.applied(proxy, revision=own[-1].revision)
            [users] = proxy.call("/services")
            assert users["split"] == json.loads(value)["weights"]
        until(lambda: all(proxy.status()["etcd"]["connected"] for proxy in pair), "all follow again")


async def _changes(cluster: Cluster, folder: Path) -> tuple[dict[str, int], list[Record], int]:
    """(change -> revision that was acknowledged, the history, how often the split was put)."""
    acknowledged: dict[str, int] = {}
    async with opened(cluster, folder / "ann", "/graylb/") as world:
        await world.users()
        killing = asyncio.create_task(_kill(cluster, acknowledged))
        attempt = 0
        while not killing.done():
            attempt += 1
            change = f"change {attempt}"
            if (revision := await _change(world.store, attempt, change)) is not None:
                acknowledged[change] = revision
        await killing

        async def look() -> list[Record]:
            # the settings were put past graylb, which its leader records
            found = await world.records()
            return found if any(each.who == "-" for each in found) else []

        records = await support.eventually(look, "the record of a put")
        split = await world.client.get(world.store.prefix + SPLIT)
        assert split is not None
        return acknowledged, records, split.version


async def _change(store: EtcdConfigStore, share: int, why: str) -> int | None:
    """The revision; None where etcd had no answer in time."""
    try:
        view = await store.read()
        value = text(weights(100_000 - share, share))
        return await store.write(Edit({SPLIT: value}, view.revision, "ann", why, "split"))
    except ConfigStoreError:
        return None


async def _kill(cluster: Cluster, acknowledged: dict[str, int]) -> None:
    """The leader, again and again; each comes back before the next one goes."""

    async def more() -> None:
        wanted = len(acknowledged) + BETWEEN
        await support.until(lambda: len(acknowledged) >= wanted, "changes go on")

    await more()
    for _ in range(KILLS):
        leader = await asyncio.to_thread(cluster.leader)
        leader.kill()
        await more()
        await asyncio.to_thread(leader.restart)
        await more()


def command(proxy: Proxy, *arguments: str, running: bool) -> Any:
    """What `graylb … --json` prints; of the running proxy, or of its document and etcd without asking it."""
    where = ("--admin", proxy.admin) if running else ("-c", str(proxy.file))
    done = proxies.cli(*arguments, *where, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_release_by_commands_with_and_without_the_proxy(tmp_path: Path) -> None:
    with (
        servers.running(tmp_path / "etcd") as cluster,
        etcds.keys(cluster) as keys,
        upstream.running("v1", "v2") as ups,
        etcds.nodes(tmp_path, cluster, "a") as (proxy,),
    ):
        keys.service("users", *[(up.address, up.name) for up in ups])
        first = keys.split("users", {"v1": 95, "v2": 5})
        etcds.applied(proxy, revision=keys.revision("users/split"))
        found = command(proxy, "split", "users", "v1=80", "v2=20", "--reason", "step", running=True)
        assert (found["former"], found["applied"]) == ("v1=95 v2=5", True)
        second = keys.get("users/split")
        found = command(proxy, "rollback", "users", running=False)
        assert (found["former"], found["applied"]) == ("v1=80 v2=20", True)
        assert keys.get("users/split") == first
        command(proxy, "rollback", "users", running=True)
        assert keys.get("users/split") == second
        told = command(proxy, "history", "users", running=True)
        assert told == command(proxy, "history", "users", running=False)
        assert [each["action"] for each in told] == ["rollback", "rollback", "split", "put", "put"]
        assert [each["split"] for each in told[:4]] == ["v1=80 v2=20", "v1=95 v2=5", "v1=80 v2=20", "v1=95 v2=5"]
        assert (told[2]["why"], told[3]["who"]) == ("step", "-")
