"""What a person does, on keys in etcd: the same operations as on a file, with the same outcomes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from graylb.control import operations
from graylb.control.config_store import Conflict, NotHere
from graylb.control.state import UnknownTarget
from tests.control import parts
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import run
from tests.control.etcd.worlds import World, left_by, opened, proxied, weights

RULES = [
    {"name": "zeta", "match": {"path": "/z"}, "to": "v2"},
    {"name": "alpha", "match": {"headers": {"x-id": {"in": "staff"}}}, "to": "v1"},
    {"name": "ab", "match": {"query": {"exp": "a"}}, "split": {"v1": 1, "v2": 1}, "priority": 5},
]


async def applied(world: World, *, prune: bool = False, **services: Any) -> list[operations.Outcome]:
    return await operations.apply(world.store, parts.load(parts.document(**services)), prune=prune, who="ann")


def test_a_document_applied_and_exported_is_the_same(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            users = parts.users(rules=RULES, lists={"staff": ["ann"]})
            orders = parts.users(hosts=["orders.test"], split=None)
            assert {each.service for each in await applied(world, users=users, orders=orders)} == {"users", "orders"}
            exported = await operations.export(world.store)
            found = exported["services"]["users"]
            assert [each["name"] for each in found["rules"]] == ["ab", "zeta", "alpha"]  # as they are asked
            assert found["lists"] == {"staff": ["ann"]}
            assert (await world.get("services/users/split"))["weights"] == {"v1": 95, "v2": 5}
            again = await operations.apply(
                world.store, parts.load(parts.document(**exported["services"])), prune=True, who="bob"
            )
            assert [each.keys for each in again if each.keys] == []
            await applied(world, users=parts.users(rules=RULES[:1]), prune=True)
            left = [
                each for each in (await world.store.read()).items if "/users/" in each and "/instances/" not in each
            ]
            assert left == [f"services/users/{key}" for key in ("rules/zeta", "service", "split")]

    run(test())


@pytest.mark.parametrize("world_of", [opened, proxied])
def test_back_and_back_again(etcd: Cluster, tmp_path: Path, prefix: str, world_of: Any) -> None:
    async def test() -> None:
        async with world_of(etcd, tmp_path, prefix) as world:
            await applied(world, users=parts.users(rules=RULES, lists={"staff": ["ann"]}))
            for share in (10, 30):
                await operations.set_split(world.store, "users", weights(100 - share, share), who="ann")
            before = await world.get("services/users/split")
            await operations.put(
                world.store,
                {"services/users/rules/zeta": None, "services/users/split": b'{"v3": 1}'},
                who="bob",
                why="all at once",
            )
            outcome = await operations.rollback(world.store, "users", who="ann")
            assert outcome.after == "v1=70 v2=30"
            assert await world.get("services/users/split") == before
            assert await world.get("services/users/rules/zeta") is not None
            await operations.rollback(world.store, "users", who="ann")
            assert await world.get("services/users/rules/zeta") is None
            assert set((await world.get("services/users/split"))["weights"]) == {"v3"}
            first = (await world.records())[0]
            await operations.rollback(world.store, "users", to=first.revision, who="ann")
            assert (await world.get("services/users/split"))["weights"] == {"v1": 95, "v2": 5}
            with pytest.raises(UnknownTarget, match="already"):
                await operations.rollback(world.store, "users", to=first.revision, who="ann")
            records = await world.records()
            left = left_by(records)
            assert json.loads(left["services/users/split"] or b"") == await world.get("services/users/split")
            assert {each.who for each in records} == {"ann", "bob"}

    run(test())


def test_many_at_once_all_get_through_or_are_told(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix) as world, opened(etcd, tmp_path, prefix) as other:
            await applied(world, users=parts.users())
            done = await asyncio.gather(
                *(
                    operations.set_split(store, "users", weights(100 - share, share), who=f"{share}")
                    for share, store in enumerate([world.store, other.store] * 4, 11)
                ),
                return_exceptions=True,
            )
            through = {each.revision for each in done if isinstance(each, operations.Outcome)}
            assert through
            assert all(isinstance(each, operations.Outcome | Conflict) for each in done), done
            records = await world.records()
            assert [each.revision for each in records if each.action == "split"] == sorted(through)
            left_by(records)

    run(test())


def test_what_the_document_keeps_is_edited_there(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix, {"users": parts.users(rules=RULES[:1])}) as world:
            with pytest.raises(NotHere):
                await operations.put(world.store, {"services/users/rules/zeta": None}, who="ann")
            await operations.set_split(world.store, "users", weights(50, 50), who="ann")
            assert await world.get("services/users/service") is None  # its stable version is in the document
            await operations.rollback(world.store, "users", who="ann")
            assert (await world.get("services/users/split"))["weights"] == {"v1": 95, "v2": 5}

    run(test())
