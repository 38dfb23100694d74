"""The store of what people change, on a real etcd: all or nothing, on what it was based on, and with a record."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from graylb.control.config_store import ConfigStoreError, Conflict, NotHere
from graylb.control.etcd.client import Client
from graylb.control.etcd_config import EtcdConfigStore
from graylb.model import documents, keys
from graylb.model.problems import ConfigErrors
from graylb.release.slots import Slots
from tests.control import parts
from tests.control.etcd import support
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import run
from tests.control.etcd.worlds import opened, proxied, weights


def test_a_split_is_completed_written_and_recorded_in_one_revision(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            first = await world.edit({"services/users/split": weights(95, 5)}, why="begin", action="split")
            second = await world.edit({"services/users/split": weights(80, 20)}, "bob", action="split")
            view = await world.store.read()
            assert view.items["services/users/split"].revision == second
            split = await world.get("services/users/split")
            assert split["weights"] == weights(80, 20)
            newest, oldest = await world.store.history("users")
            assert (newest.revision, newest.previous, newest.who, newest.action) == (second, first, "bob", "split")
            assert (oldest.revision, oldest.previous, oldest.who, oldest.why) == (first, 0, "ann", "begin")
            assert oldest.before == {"services/users/split": None}
            assert newest.before == oldest.after
            assert newest.after == {"services/users/split": view.items["services/users/split"].value}
            was = Slots.parse(json.loads(oldest.after["services/users/split"] or b"")["slots"])
            now = Slots.parse(split["slots"])
            assert all(new == "v2" for old, new in zip(was.owners(), now.owners(), strict=True) if old == "v2")

    run(test())


def test_all_keys_of_an_edit_or_none(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            rule = {"match": {"headers": {"x-id": {"in": "staff"}}}, "to": "v2"}
            with pytest.raises(ConfigErrors, match="staff"):
                await world.edit({"services/users/rules/staff": rule, "services/users/split": weights(1, 1)})
            with pytest.raises(ConfigErrors) as caught:
                await world.edit({"services/users/rules/a": b"{", "services/users/split": {"v1": -1}})
            assert {each.file for each in caught.value.errors} == {
                f"{world.store.prefix}services/users/rules/a",
                f"{world.store.prefix}services/users/split",
            }
            assert await world.get("services/users/split") is None
            assert await world.store.history() == ()
            revision = await world.edit({"services/users/rules/staff": rule, "services/users/lists/staff": ["ann"]})
            items = (await world.store.read()).items
            assert {items[f"services/users/{key}"].revision for key in ("rules/staff", "lists/staff")} == {revision}
            with pytest.raises(ConfigErrors, match="staff"):  # the rule needs it
                await world.edit({"services/users/lists/staff": None})

    run(test())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("services/users/split", None, "past graylb"),
        ("services/users/split", weights(1, 9), "past graylb"),
        ("services/users/rules/other", {"match": {"path": "/x"}, "to": "v1"}, "past graylb"),
        ("services/users/rules/one", None, "past graylb"),
        ("services/users/lists/new", ["a"], "past graylb"),
        ("services/users/service", {"stable": "v2"}, "past graylb"),
        ("services/users/instances/3", {"address": "127.0.0.1:9003", "version": "v2"}, ""),
        ("services/orders/service", {"hosts": ["orders"]}, ""),
    ],
)
def test_what_changed_past_graylb_since_is_a_conflict_and_instances_and_others_are_not(
    etcd: Cluster, tmp_path: Path, prefix: str, key: str, value: Any, said: str
) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.edit({"services/users/split": weights(95, 5)})
            await world.edit({"services/users/rules/one": {"match": {"path": "/one"}, "to": "v2"}})
            based_on = (await world.store.read()).revision
            before = await world.get("services/users/split")
            await world.past(key, value)
            changed = {"services/users/split": weights(50, 50)}
            if said:
                with pytest.raises(Conflict, match=said):
                    await world.edit(changed, based_on=based_on)
                if key != "services/users/split":
                    assert await world.get("services/users/split") == before
            else:
                await world.edit(changed, based_on=based_on)

    run(test())


def test_two_writers_at_once_one_wins_and_the_other_is_told(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world, opened(etcd, tmp_path, prefix) as other:
            await world.users()
            for share in range(1, 11):
                based_on = (await world.store.read()).revision
                done = await asyncio.gather(
                    world.edit({"services/users/split": weights(100 - share, share)}, "ann", based_on=based_on),
                    other.edit({"services/users/split": weights(50 - share, 50 + share)}, "bob", based_on=based_on),
                    return_exceptions=True,
                )
                [lost] = [each for each in done if isinstance(each, Conflict)]
                [revision] = [each for each in done if isinstance(each, int)]
                winner = "ann" if isinstance(done[0], int) else "bob"
                newest = (await other.store.history("users"))[0]
                assert (newest.revision, newest.who) == (revision, winner)
                assert f"{winner} set services/users/split in revision {revision}" in str(lost)

    run(test())


def test_going_back_restores_the_very_slots(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            for share in (5, 20, 50, 30):
                await world.edit({"services/users/split": weights(100 - share, share)})
            records = (await world.store.history("users"))[::-1]
            target = records[1]
            await world.edit(dict(target.after), action="rollback", to=target.revision)
            view = await world.store.read()
            assert view.items["services/users/split"].value == target.after["services/users/split"]
            newest = (await world.store.history("users"))[0]
            assert (newest.action, newest.to, newest.after) == ("rollback", target.revision, target.after)

    run(test())


def test_together_with_the_document(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        rule = {"name": "one", "match": {"path": "/one"}, "to": "v2"}
        services = {"users": parts.users(rules=[rule], lists={"staff": ["ann"]})}
        async with opened(etcd, tmp_path, prefix, services) as world:
            view = await world.store.read()
            assert {item.origin for item in view.items.values()} == {"file"}
            assert set(view.items) == {
                f"services/users/{key}"
                for key in (
                    "service",
                    "split",
                    "rules/one",
                    "lists/staff",
                    *(f"instances/127.0.0.1:900{n}" for n in (1, 2, 3)),
                )
            }
            for key, item in view.items.items():
                assert keys.decode(key, item.value).complete
            with pytest.raises(NotHere, match=r"graylb\.yaml"):
                await world.edit({"services/users/rules/one": None})
            assert await world.edit({"services/users/split": weights(95, 5)}) == view.revision  # nothing differs
            await world.edit({"services/users/split": weights(90, 10)})
            await world.past("services/users/instances/one", {"address": "127.0.0.1:9001", "version": "v9"})
            after = (await world.store.read()).items
            assert after["services/users/split"].origin == "etcd"
            assert "services/users/instances/127.0.0.1:9001" not in after
            [record, of_file] = await world.store.history()
            assert (of_file.revision, of_file.who, record.previous) == (0, "file", 0)
            assert {key: view.items[key].value for key in of_file.after} == of_file.after
            assert record.before == {"services/users/split": view.items["services/users/split"].value}
            await world.edit({"services/users/split": None}, action="delete")
            [newest, _, _] = await world.store.history()
            assert newest.after == record.before
            assert (await world.store.read()).items["services/users/split"] == view.items["services/users/split"]

    run(test())


def test_a_value_that_nodes_refuse_leaves_the_last_good_in_force_until_it_is_mended(
    etcd: Cluster, tmp_path: Path, prefix: str
) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.edit({"services/users/split": weights(95, 5)})
            good = (await world.store.read()).items["services/users/split"]
            await world.past("services/users/split", {"v1": -1})
            await world.past("services/users/split", b"{")
            async with opened(etcd, tmp_path, prefix) as fresh:
                view = await fresh.store.read()
                assert view.items["services/users/split"] == good
                await fresh.edit({"services/users/split": good.value})  # the same, and yet it mends
            assert await world.get("services/users/split") == json.loads(good.value)

    run(test())


@pytest.mark.parametrize("world_of", [opened, proxied])
def test_what_was_deleted_before_something_invalid_came_is_not_the_last_good(
    etcd: Cluster, tmp_path: Path, prefix: str, world_of: Any
) -> None:
    async def test() -> None:
        async with world_of(etcd, tmp_path, prefix) as world:
            await world.past("services/users/service", b'{"stable": "v1"}')
            await world.past("services/users/rules/x", {"match": {"path": "/x"}, "to": "v2"})

            async def there() -> bool:
                return "services/users/rules/x" in (await world.store.read()).items

            await support.eventually(there, "the rule")
            await world.past("services/users/rules/x", None)
            await world.past("services/users/rules/x", b"{")  # both may be heard of at once

            async def look() -> bool:
                return "services/users/rules/x" not in (await world.store.read()).items

            await support.eventually(look, "the deletion")

    run(test())


def test_what_would_fit_with_nothing_is_not_written(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.past("services/orders/service", {"hosts": ["orders.test"], "stable": "v1"})
            with pytest.raises(ConfigErrors, match=r"orders\.test"):  # a host of somebody else
                await world.edit({"services/users/service": {"hosts": ["orders.test"], "stable": "v1"}})
            present = [key for key in (await world.store.read()).items if key.startswith("services/")]
            with pytest.raises(ConfigErrors, match="mishap"):
                await world.edit(dict.fromkeys(present))
            with pytest.raises(ConfigErrors, match="no such key"):
                await world.edit({"services/users/nothing": None})
            with pytest.raises(ConfigErrors, match="unknown part"):
                await world.edit({"services/users/nothing": {}})

    run(test())


def test_more_than_etcd_takes_at_once_is_one_clear_error(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            rules = {f"services/users/rules/r{n}": {"match": {"path": f"/{n}"}, "to": "v1"} for n in range(130)}
            with pytest.raises(ConfigStoreError, match="max-txn-ops"):
                await world.edit(rules)
            some = dict(list(rules.items())[:80])
            await world.edit(some)
            await world.edit(dict(list(rules.items())[80:]))
            assert await world.edit({"services/users/split": weights(1, 1)})  # 130 rules stay as they are
            with pytest.raises(ConfigStoreError, match="larger than etcd takes"):
                await world.edit({"services/users/lists/large": [f"user-{n}" for n in range(200_000)]})
            large = [f"user-{n}" for n in range(50_000)]
            await world.edit({"services/users/lists/large": large})
            newest = (await world.store.history("users"))[0]
            assert newest.known  # a list is nothing to go back to
            assert newest.after == {"services/users/lists/large": None}

    run(test())


def test_a_lease_stays_with_its_instance(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            lease, _ = await world.client.grant(60)
            key = "services/users/instances/one"
            value = {"address": "127.0.0.1:9001", "version": "v1"}
            await world.client.put(world.store.prefix + key, orjson.dumps(value), lease=lease)
            await world.edit({key: {**value, "weight": 10}})
            found = await world.client.get(world.store.prefix + key)
            assert found is not None
            assert (found.lease, json.loads(found.value)["weight"]) == (lease, 10)
            await world.client.revoke(lease)

    run(test())


def test_records_are_kept_as_long_as_promised(
    etcd: Cluster, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graylb.control.state.KEEP_CONTENTS", 3)
    monkeypatch.setattr("graylb.control.state.KEEP_CHANGES", 5)

    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            revisions = [await world.edit({"services/users/split": weights(100 - n, n)}) for n in range(1, 9)]
            records = await world.store.history("users")
            assert [each.revision for each in records] == revisions[:2:-1]
            assert [each.known for each in records] == [True] * 3 + [False] * 2
            assert [each.previous for each in records] == revisions[-2:1:-1]

    run(test())


def test_what_stands_under_history_and_is_no_record_is_left_alone(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.edit({"services/users/split": weights(1, 1)})
            for key, value in (("a", b"{"), ("b", b"[]"), ("c", b'{"action": "split"}'), ("d", b'{"action": []}')):
                await world.past(f"history/users/{key}", value)
            assert len(await world.store.history("users")) == 1
            assert await world.store.history("nobody") == ()

    run(test())


def test_nodes_as_they_tell(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.past("nodes/b", {"node": "b", "revision": 7})
            await world.past("nodes/a", b"odd")
            first, second = await world.store.nodes()
            assert first["node"] == "a"
            assert "problem" in first
            assert second == {"node": "b", "revision": 7}

    run(test())


class Lossy(Client):
    """Loses the answers of transactions: before they are sent, or after they were carried out."""

    lose: str = ""

    async def txn(self, *args: Any, **more: Any) -> Any:
        from graylb.control.etcd.errors import Unavailable

        lose, self.lose = self.lose, ""
        if lose == "question":
            raise Unavailable("lost on the way", maybe_applied=True)
        done = await super().txn(*args, **more)
        if lose == "answer":
            raise Unavailable("lost on the way back", maybe_applied=True)
        return done


@pytest.mark.parametrize("lose", ["question", "answer"])
def test_a_lost_answer_is_found_out_and_nothing_is_done_twice(
    etcd: Cluster, tmp_path: Path, prefix: str, lose: str
) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            async with Lossy(world.store.client.options) as lossy:
                world.store.client, honest = lossy, world.store.client
                based_on = (await world.store.read()).revision
                lossy.lose = lose
                revision = await world.edit({"services/users/split": weights(1, 3)}, based_on=based_on)
                world.store.client = honest
            found = await world.client.get(world.store.prefix + "services/users/split")
            assert found is not None
            assert (found.mod_revision, found.version) == (revision, 1)
            assert [each.revision for each in await world.store.history()] == [revision]

    run(test())


def test_etcd_away_is_one_clear_error(tmp_path: Path) -> None:
    path = parts.write(tmp_path, {**parts.document(), "etcd": {"endpoints": ["127.0.0.1:1"]}})
    part = documents.load(path.read_bytes(), str(path)).etcd
    assert part is not None

    async def test() -> None:
        async with EtcdConfigStore.opened(part, path) as store:
            assert store.name == "etcd 127.0.0.1:1 /graylb"
            for question in (store.read(), store.history(), store.nodes()):
                with pytest.raises(ConfigStoreError, match=r"127\.0\.0\.1:1"):
                    await question

    run(test())
