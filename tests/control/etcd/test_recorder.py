"""The history on a real etcd: what is changed past graylb is recorded too, once, whoever leads and whenever."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from graylb.control import in_force, operations, recorder
from graylb.control.config_store import ConfigStoreError, Conflict
from graylb.control.etcd.election import Election, Leadership
from graylb.control.etcd.errors import EtcdError
from graylb.control.etcd.messages import rpc, stubs
from graylb.control.etcd.values import KeyValue
from graylb.control.etcd.watch import Batch, Change
from graylb.control.recorder import ROOM, Log, Overtaken, Recorder
from graylb.model import keys
from graylb.model.problems import ConfigErrors
from tests.control import parts
from tests.control.etcd import servers, support
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import run
from tests.control.etcd.worlds import World, alike, left_by, opened, own, proxied, weights

T = TypeVar("T")
RULE = {"match": {"path": "/x"}, "to": "v2"}


def test_what_is_put_past_graylb_is_recorded_once_and_a_bare_split_as_one_change(
    etcd: Cluster, tmp_path: Path, prefix: str
) -> None:
    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix) as world:
            await world.users()
            first = await world.past("services/users/rules/x", RULE)
            await world.past("services/users/split", weights(95, 5))
            settings_, rule, split = await world.records(count=3)
            assert {(each.who, each.action) for each in (settings_, rule, split)} == {("-", "put")}
            assert (rule.revision, rule.previous) == (first, settings_.revision)
            assert rule.before == {"services/users/rules/x": None}
            [(key, value)] = split.after.items()
            assert keys.decode(key, value or b"").complete
            assert split.before == {key: None}
            await world.past("services/users/split", weights(50, 50))
            *_, second = await world.records(count=4)
            assert second.before == split.after
            done = await world.edit({"services/users/split": weights(20, 80)})
            await world.past("services/users/rules/x", None)
            records = await world.records(count=6)
            assert [each.who for each in records] == ["-"] * 4 + ["ann", "-"]
            assert records[-2].revision == done
            assert records[-1].after == {"services/users/rules/x": None}

    run(test())


def test_what_is_not_valid_is_no_change_and_what_mends_it_is_one(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix) as world:
            await world.past("services/users/rules/x", RULE)
            await world.past("services/users/rules/x", b"{")
            await world.past("services/users/rules/x", {**RULE, "to": "v3"})
            await world.past("services/users/rules/x", {"to": "v3", **RULE, "priority": 0, "fallback": "any"})
            first, second, third = await world.records(count=3)
            assert second.before == first.after
            assert third.before == second.after

    run(test())


def test_a_new_leader_catches_up_with_what_happened_while_nobody_led(
    etcd: Cluster, tmp_path: Path, prefix: str
) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.past("services/users/rules/x", RULE)
            await world.past("services/users/rules/x", None)
            await world.edit({"services/users/split": weights(95, 5)})
            for share in (10, 20):
                await world.edit({"services/users/split": weights(100 - share, share)}, "bob")
            await world.past("services/users/rules/y", RULE)
        async with proxied(etcd, tmp_path, prefix) as world:
            records = await world.records(count=7)
            assert [each.who for each in records] == ["-", "-", "-", "ann", "bob", "bob", "-"]
            left_by(records)
        async with opened(etcd, tmp_path, prefix) as world:
            await world.past("services/users/rules/y", {**RULE, "to": "v1"})
            await world.past("services/users/split", weights(50, 50))
        for number, node in enumerate(("b", "a", "c")):  # each reads the same past
            async with proxied(etcd, tmp_path, prefix, node=node) as world:
                await world.past("services/users/lists/now", [node])
                records = await world.records(count=10 + number)
                assert len(records) == 10 + number
                left_by(records)

    run(test())


def test_what_etcd_has_forgotten_is_recorded_as_one_change_of_each_service(
    etcd: Cluster, tmp_path: Path, prefix: str
) -> None:
    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.past("services/users/rules/x", RULE)
            await world.past("services/users/rules/gone", RULE)
            await world.past("services/users/split", weights(95, 5))
            before = await world.records(count=4)
        async with opened(etcd, tmp_path, prefix) as world:
            await world.past("services/users/rules/gone", None)
            await world.past("services/users/rules/x", {**RULE, "to": "v1"})
            await world.edit({"services/users/lists/staff": ["ann"]})
            await world.past("services/users/rules/y", RULE)
            await world.past("services/orders/service", {"hosts": ["orders"], "stable": "v1"})
            last = await world.past("services/users/rules/x", {**RULE, "to": "v2", "priority": 7})
            compact(etcd, last)
        async with proxied(etcd, tmp_path, prefix) as world:
            await world.records("orders", 1)
            records = await world.records(count=6)
            assert [each.who for each in records[4:]] == ["ann", "-"]
            newest = records[-1]
            assert newest.revision == last
            rules = [f"services/users/rules/{name}" for name in ("gone", "x", "y")]
            assert sorted(newest.after) == rules
            assert newest.after[rules[0]] is None
            assert newest.before[rules[1]] == before[1].after[rules[1]]
            assert newest.before[rules[2]] is None
            left_by(records)

    run(test())


def compact(etcd: Cluster, revision: int) -> None:
    with etcd.nodes[0].channel() as channel:
        stubs.KVStub(channel).Compact(rpc.CompactionRequest(revision=revision, physical=True))


def test_the_leader_keeps_the_history_in_its_bounds(
    etcd: Cluster, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graylb.control.state.KEEP_CONTENTS", 3)
    monkeypatch.setattr("graylb.control.state.KEEP_CHANGES", 5)
    monkeypatch.setattr(recorder, "TRIM_EVERY", 2)

    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix) as world:
            await world.users()
            await world.records(count=1)
            revisions = [await world.edit({"services/users/split": weights(100 - n, n)}) for n in range(1, 20)]
            root = world.store.prefix + "history/users/"

            async def values() -> list[bytes]:
                return [each.value for each in (await world.client.list(root)).items.values()]

            async def look() -> bool:
                found = await values()
                return len(found) <= 6 and sum(b'"known":false' not in value for value in found) <= 4

            await support.eventually(look, "trimmed")
            records = await world.records()
            assert [each.revision for each in records] == revisions[-5:]
            assert [each.previous for each in records] == revisions[-6:-1]
            assert [each.known for each in records] == [False] * 2 + [True] * 3

    run(test())


def test_who_does_not_lead_any_more_records_nothing(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with opened(etcd, tmp_path, prefix) as world:
            await world.users()
            key = own(prefix) + "/leader"
            async with Election(world.client, key, "a", ttl=60) as election:
                leadership = await anext(election)
                assert leadership is not None
                await world.client.put(key, b"b")  # without a lease; who was frozen has not noticed
                await world.client.delete(key)
                await world.client.put(key, b"b")
                frozen = Leadership(key, leadership.revision, leadership.lease, leadership.lease_id)
                assert frozen.valid
                former = Recorder(world.client, own(prefix), no_document)
                for attempt in (
                    former._follow(frozen),
                    former._record("users", 5, {}, {}, frozen),
                    former._trim("users", frozen),
                ):
                    with contextlib.suppress(Overtaken):
                        await attempt
                assert await world.records() == []
                assert await world.get("recorded") is None

    run(test())


@contextlib.asynccontextmanager
async def leading(etcd: Cluster, tmp_path: Path, prefix: str) -> AsyncIterator[tuple[World, Recorder, Leadership]]:
    """A recorder that is told what to record, and may."""
    async with (
        opened(etcd, tmp_path, prefix) as world,
        Election(world.client, own(prefix) + "/leader", "a", ttl=60) as election,
    ):
        leadership = await anext(election)
        assert leadership is not None
        yield world, Recorder(world.client, own(prefix), no_document), leadership


def test_many_changes_are_recorded_together_and_one_that_is_there_already_is_not_made_again(
    etcd: Cluster, tmp_path: Path, prefix: str
) -> None:
    async def test() -> None:
        async with leading(etcd, tmp_path, prefix) as (world, made, leadership):
            names = [f"services/users/rules/x{n}" for n in range(5)] + ["services/users/rules/x0"]
            values = [orjson.dumps({**RULE, "priority": n}) for n in range(6)]
            put = [await world.past(name, value) for name, value in zip(names, values, strict=True)]
            some = [(at, [(name, value)]) for at, name, value in zip(put, names, values, strict=True)]
            await made._tell(some[:4], None, leadership)
            lost = recorder.Untold("users", put[4], {names[4]: None}, {names[4]: values[4]})
            await made._record(lost.service, lost.revision, lost.before, lost.after, leadership)
            assert not await made._record_all([lost, recorder.Untold("users", put[5], {}, {})], leadership)
            await made._tell(some[4:], None, leadership)
            records = await world.records()
            assert [each.revision for each in records] == put
            assert records[-1].before == {names[0]: values[0]}
            left_by(records)

    run(test())


def test_a_history_is_looked_at_after_changes_of_its_own_service(
    etcd: Cluster, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were recorded together counted for every service among them: in a storm nearly every change of one
    brought about a look at its history."""

    async def test() -> None:
        async with leading(etcd, tmp_path, prefix) as (world, made, leadership):
            trimmed: list[str] = []

            async def trim(service: str, _: Leadership) -> None:
                trimmed.append(service)
                made._untrimmed[service] = 0

            monkeypatch.setattr(made, "_trim", trim)
            await made._follow(leadership)
            revision = await world.past("services/s0/rules/x", RULE)
            for number in range(2 * recorder.TRIM_EVERY + 1):
                value = orjson.dumps({**RULE, "priority": number})
                some = [(revision + n, [(f"services/s{n}/rules/x", value)]) for n in range(8)]
                await made._tell(some, {}, leadership)
                revision += 8
                await made._follow(leadership)
            assert Counter(trimmed) == {f"s{n}": 3 for n in range(8)}, "at first, and then after so many of its own"

    run(test())


RECORDED = [f"services/{service}/rules/{name}" for service in ("a", "b") for name in ("x", "y")]


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(RECORDED), st.sampled_from([None, b"{", b"1", b"2"])),
            min_size=1,
            max_size=3,
            unique_by=lambda change: change[0],
        ),
        max_size=6,
    ),
    st.data(),
)
@settings(deadline=None)
def test_changes_told_together_are_those_told_one_by_one(
    changes: list[list[tuple[str, bytes | None]]], data: st.DataObject
) -> None:
    own_keys = {RECORDED[0]: orjson.dumps({**RULE, "priority": 9})}
    written = [
        (
            at,
            [
                (key, value if value in (None, b"{") else orjson.dumps({**RULE, "priority": int(value)}))
                for key, value in each
            ],
        )
        for at, each in enumerate(changes, 1)
    ]
    cut = data.draw(st.integers(0, len(written)))
    state: dict[str, bytes] = {}
    one_by_one: list[recorder.Untold] = []
    together: list[recorder.Untold] = []

    def tell(some: list[tuple[int, list[tuple[str, bytes | None]]]], to: list[recorder.Untold]) -> None:
        untold, newer = recorder._untold(some, state, own_keys, lambda: None)
        to += untold
        for key, value in newer.items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value

    for each in written:
        tell([each], one_by_one)
    kept = dict(state)
    state.clear()
    for part in (written[:cut], written[cut:]):
        tell(part, together)
    assert (together, state) == (one_by_one, kept)


async def no_document() -> dict[str, bytes]:
    return {}


def test_the_log_is_whole_or_says_from_where_it_is(prefix: str) -> None:
    log = Log("/p/")

    def took(*revisions: int, value: bytes = b"[]") -> None:
        changes = (
            Change("/p/services/users/lists/a", each, KeyValue("/p/services/users/lists/a", value, each, each, 1, 0))
            for each in revisions
        )
        log.took(Batch(tuple(changes)))

    log.loaded(5)
    took(6, 7)
    assert (log.since, log.oldest(0)) == (7, [])  # nobody listens
    log.listen()
    took(8, 9)
    assert (log.since, [revision for revision, _ in log.oldest(7)]) == (7, [8, 9])
    assert log.oldest(9) == []
    took(10, value=b"x" * (ROOM // 2))
    took(11, value=b"x" * (ROOM // 2 + 1))
    assert (log.since, log.oldest(9)) == (11, [])
    took(12)
    log.loaded(20)
    assert (log.since, log.oldest(9), log.anew) == (20, [], False)
    log.loaded(3)
    assert (log.since, log.anew) == (3, True)


def test_a_put_uncovers_and_covers_what_the_document_says(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix, {"users": parts.users()}) as world:
            key = "services/users/split"
            of_file = (await world.store.read()).items[key].value
            await world.past(key, weights(50, 50))
            [first] = await world.records(count=1)
            assert first.before == {key: of_file}
            await world.past(key, None)
            *_, second = await world.records(count=2)
            assert second.after == {key: of_file}
            assert second.before == first.after

    run(test())


def test_a_proxys_own_store_shows_what_it_has_written_and_tells_of_others(
    etcd: Cluster, tmp_path: Path, prefix: str
) -> None:
    async def test() -> None:
        async with proxied(etcd, tmp_path, prefix) as world, opened(etcd, tmp_path, prefix) as other:
            await world.users()
            await world.records(count=1)
            for share in range(1, 6):
                revision = await world.edit({"services/users/split": weights(100 - share, share)})
                view = await world.store.read()
                assert view.items["services/users/split"].revision == revision
                assert (await other.store.read()).items == view.items
            based_on = (await other.store.read()).revision
            revision = await other.edit({"services/users/split": weights(1, 1)}, "bob")
            with pytest.raises(Conflict, match=f"bob set services/users/split in revision {revision}"):
                await world.edit({"services/users/split": weights(3, 1)}, based_on=based_on)
            # what a proxy has not heard of yet is not held against who has
            await world.edit({"services/users/split": weights(3, 1)}, based_on=revision)
            with pytest.raises(ConfigErrors, match=r"\$\.match\.pth"):
                await world.edit({"services/users/rules/x": {"match": {"pth": "/"}, "to": "v1"}})
            assert [each["node"] for each in await world.store.nodes()] == ["a"]

    run(test())


def test_versions_that_only_a_registry_has_can_have_a_share(etcd: Cluster, tmp_path: Path, prefix: str) -> None:
    registries = [{"kind": "grpc-go", "prefix": own(prefix) + "-others", "services": {"users": "users"}}]

    async def test() -> None:
        async with (
            proxied(etcd, tmp_path, prefix, registries=registries) as world,
            opened(etcd, tmp_path, prefix, registries=registries) as command,
        ):
            await world.users()
            await world.records(count=1)
            value = {"Op": 0, "Addr": "127.0.0.1:9009", "Metadata": {"version": "v9"}}
            await world.client.put(own(prefix) + "-others/users/127.0.0.1:9009", orjson.dumps(value))

            async def look() -> bool:
                return "users" in ((await world.store.read()).registered or {})

            await support.eventually(look, "the registered instance")
            await operations.set_split(world.store, "users", {"v1": 1, "v9": 1}, who="ann")
            with pytest.raises(ValueError, match="there is v1, v2, v9"):
                await operations.set_split(world.store, "users", {"v8": 1}, who="ann")
            assert (await command.store.read()).registered is None
            await operations.set_split(command.store, "users", {"v1": 1, "v8": 1}, who="ann")  # nobody can know

    run(test())


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["past", "edit"]),
            st.sampled_from(["split", "rules/x", "rules/y", "lists/staff"]),
            st.integers(0, 3),
        ),
        st.tuples(st.just("leader"), st.just(""), st.just(0)),
    ),
    min_size=3,
    max_size=14,
)
VALUES: dict[str, list[Any]] = {
    "split": [None, weights(9, 1), weights(1, 1), {"v1": -1}],
    "rules/x": [None, RULE, {"match": {}, "split": {"v1": 1, "v2": 1}}, b"{"],
    "rules/y": [None, RULE, {"match": {"path": "/y"}, "split": {"v1": 2, "v2": 1}}, {"match": {}, "to": "v1"}],
    "lists/staff": [None, ["ann"], ["ann", "bob"], [7]],
}


@settings(
    max_examples=10,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
@example(steps=[("edit", "rules/x", 1), ("past", "rules/x", 0), ("past", "rules/x", 3)])
def test_any_interleaving_gives_a_history_that_replays_to_what_is_in_force(
    etcd: Cluster, tmp_path: Path, prefix: str, steps: list[tuple[str, str, int]]
) -> None:
    fresh = f"{prefix}{uuid.uuid4().hex}"  # nothing of another example, not even in etcd's history

    async def test() -> None:
        folder = tmp_path / own(fresh).strip("/")
        folder.mkdir()
        async with opened(etcd, folder, fresh) as world:
            await world.users()
            terms = " ".join(what for what, _, _ in steps).split("leader")
            left = iter(step for step in steps if step[0] != "leader")
            for number, term in enumerate(terms):  # every other time nobody leads
                leader = proxied(etcd, folder, fresh) if number % 2 == 0 else contextlib.nullcontext()
                async with leader:
                    for _ in term.split():
                        what, name, chosen = next(left)
                        key, value = f"services/users/{name}", VALUES[name][chosen]
                        if what == "past":
                            await world.past(key, value)
                        else:
                            with contextlib.suppress(Conflict, ConfigErrors):
                                await world.edit({key: value})
            async with proxied(etcd, folder, fresh):
                await settled(world)

    run(test(), 20)


async def settled(world: World) -> None:
    """Until the history replays to what is in force."""
    problem: object = None

    async def look() -> bool:
        nonlocal problem
        problem = await mismatch(world)
        return problem is None

    try:
        await support.eventually(look, "the history")
    except AssertionError:
        raise AssertionError(problem) from None


async def mismatch(world: World) -> object:
    records = await world.records()
    assert len({each.revision for each in records}) == len(records)
    view = await world.store.read()
    there = {key: item.value for key, item in view.items.items() if in_force.recorded(key)}
    try:
        left = {key: value for key, value in left_by(records).items() if value is not None}
    except AssertionError as error:  # what lies between is not recorded yet
        return error
    good = left.keys() == there.keys() and all(alike(key, left[key], there[key]) for key in left)
    return None if good else (left, there)


def test_another_store_in_the_place_of_the_one_before_has_a_history_of_its_own(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graylb.control.etcd_side.LATE", 0.5)

    async def test() -> None:
        async with proxied(cluster, tmp_path, prefix) as world:
            await world.users()
            await world.records(count=1)
            for share in range(1, 6):
                await world.edit({"services/users/split": weights(100 - share, share)})
            await asyncio.to_thread(cluster.nodes[0].wipe)
            await again(world.users)
            await again(lambda: world.past("services/users/split", weights(1, 1)))

            async def look() -> list[str]:
                found = await again(world.records)
                return [each.action for each in found] if len(found) >= 2 else []

            assert set(await support.eventually(look, "records")) == {"put"}

            async def read() -> bool:
                view = await world.store.read()
                return b'"v2":1.0' in view.items["services/users/split"].value

            await support.eventually(read, "the new split")
            await world.edit({"services/users/split": weights(3, 1)})
            assert (await world.records())[-1].action == "set"

    with servers.running(tmp_path / "etcd") as cluster:
        run(test())


async def again(ask: Callable[[], Awaitable[T]]) -> T:
    """Until etcd answers."""
    while True:
        try:
            return await ask()
        except (EtcdError, ConfigStoreError):
            await asyncio.sleep(0.05)
