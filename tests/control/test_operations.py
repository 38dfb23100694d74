"""Operations on a file store and on a dictionary with copies: whatever happens, both say the same."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from graylb.control import operations, plans
from graylb.control.config_store import ConfigStore, Conflict, Item, NotHere, View
from graylb.control.file_config import FileConfigStore
from graylb.control.operations import Outcome
from graylb.control.state import UnknownTarget
from graylb.control.store import Store, state_path
from graylb.model import documents, effective
from graylb.model.problems import ConfigErrors
from graylb.release.slots import Slots
from tests.control.copies import Copies, Step, alone, content, done, rule, steps, told, two_services
from tests.control.parts import Data, document, load, users, write

USERS = "services/users/"


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(steps)
def test_a_file_store_is_a_dictionary_with_copies(todo: list[tuple[Step, int | None]]) -> None:
    async def test(folder: Path) -> None:
        path = write(folder, two_services())
        file = FileConfigStore(path, Store(state_path(path)))
        Store(state_path(path)).put((await asyncio.to_thread(file._look)).base, expected=0)  # as a proxy does
        copies = Copies(await file.read())
        for step, ago in todo:
            before = await file.read()
            expected = None if ago is None else before.revision + ago
            outcomes, others = await done(file, step, expected), await done(copies, step, expected)
            assert told(outcomes) == told(others), step
            after = await file.read()
            assert content(after) == content(await copies.read()), step
            assert after.revision == (await copies.read()).revision
            assert [each["split"] for each in await operations.history(file)] == [
                each["split"] for each in await operations.history(copies)
            ]
            laws(before, after, step)
        await takes_its_own_export_back(file)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(test(Path(folder)))


def laws(before: View, after: View, step: Step) -> None:
    """Of slots, whatever wrote them; and who asks for one service changes no other."""
    if step[0] != "apply":
        odd = [key for key in {**before.items, **after.items} if not key.startswith(f"services/{step[1]}/")]
        assert [before.items.get(key) for key in odd] == [after.items.get(key) for key in odd]
    for key, item in after.items.items():
        if not key.endswith("/split"):
            continue
        data = json.loads(item.value)
        counts, whole = Slots.parse(data["slots"]).counts(), sum(data["weights"].values())
        for version, weight in data["weights"].items():
            assert abs(counts.get(version, 0) - 10_000 * weight / whole) < 2, key


async def takes_its_own_export_back(store: ConfigStore) -> None:
    """Also by way of YAML, and nothing is left to prune."""
    exported = await operations.export(store)
    back = documents.load(effective.to_yaml(exported), "exported", alone=True)
    for prune in (False, True):
        assert await operations.apply(store, back, prune=prune, who="ann") == []


# -- one by one ----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, document())


def on(path: Path) -> FileConfigStore:
    return FileConfigStore(path, Store(state_path(path)))


def put(path: Path, **items: Any) -> Outcome:
    """By the rest of keys below `services/users/`, with `_` for `/`."""
    texts = {
        USERS + key.replace("_", "/"): None if value is None else json.dumps(value).encode()
        for key, value in items.items()
    }
    return asyncio.run(operations.put(on(path), texts, who="ann"))


def value(path: Path, key: str) -> Any:
    return json.loads(asyncio.run(operations.get(on(path), USERS + key))[USERS + key].value)


def apply(path: Path, data: Data, **more: Any) -> list[Outcome]:
    return asyncio.run(operations.apply(on(path), alone(data), who="ann", **more))


def asked(path: Path) -> list[str]:
    """Rules in their order."""
    return [key.rpartition("/")[2] for key in asyncio.run(operations.get(on(path), USERS + "rules"))]


def test_a_bare_split_goes_on_from_the_slots_in_force(path: Path) -> None:
    asyncio.run(operations.set_split(on(path), "users", {"v1": 50, "v2": 30, "v3": 20}, who="ann"))
    before = Slots.parse(value(path, "split")["slots"]).owners()
    put(path, split={"v1": 40, "v2": 40, "v3": 20})
    after = Slots.parse(value(path, "split")["slots"]).owners()
    assert {(a, b) for a, b in zip(before, after, strict=True) if a != b} == {("v1", "v2")}


@pytest.mark.parametrize("bad", [{}, {"v1": 0.0}, {"v1": -1.0, "v2": 2.0}, {"v1": float("nan")}, {"v1": float("inf")}])
def test_weights_that_are_no_split(path: Path, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="split of users"):
        asyncio.run(operations.set_split(on(path), "users", bad, who="ann"))


def test_nothing_to_change_writes_nothing(path: Path) -> None:
    put(path, split={"v1": 50, "v2": 50})
    state = state_path(path).read_bytes()
    again = put(path, split={"v2": 50.0, "v1": 50.0})
    assert (again.service, again.keys, again.revision) == ("users", (), 2)
    assert state_path(path).read_bytes() == state


def test_rules_keep_the_order_that_a_document_gives_them_and_rollback_brings_back_the_old_one(path: Path) -> None:
    write(path.parent, document(users=users(rules=[{"name": "z", **rule("x")}, {"name": "a", **rule("y")}])))
    assert asked(path) == ["z", "a"]
    exported = asyncio.run(operations.export(on(path)))["services"]
    exported["users"]["rules"].reverse()
    (told,) = apply(path, exported)
    assert (asked(path), len(told.keys)) == (["a", "z"], 2)
    put(path, rules_m=rule("z"))
    assert asked(path) == ["a", "z", "m"]
    apply(path, {"users": {"rules": [{"name": "m", **rule("z")}, {"name": "z", **rule("x")}]}})
    assert asked(path) == ["m", "z", "a"]
    for order in (["a", "z", "m"], ["m", "z", "a"]):
        asyncio.run(operations.rollback(on(path), "users", who="ann"))
        assert asked(path) == order
    asyncio.run(operations.rollback(on(path), "users", to=1, who="ann"))
    assert asked(path) == ["z", "a"]


def test_without_an_order_of_its_own_priorities_keep_it() -> None:
    """etcd asks rules of one priority by name; a document that says otherwise must mean the same there."""

    class Unordered(Copies):
        async def read(self) -> View:
            return View(self.revision, dict(sorted(self.items.items())))

    async def test() -> None:
        services = {"users": {"stable": "v1", "rules": [{"name": "z", **rule("x")}, {"name": "a", **rule("y")}]}}
        store = Unordered(View(1, {"services/users/service": Item(b'{"stable": "v1"}', 1)}))
        assert await operations.apply(store, alone(services), who="ann")
        exported = (await operations.export(store))["services"]["users"]["rules"]
        assert [(each["name"], each["priority"]) for each in exported] == [("z", 20), ("a", 10)]
        assert await operations.apply(store, alone(services), who="ann") == []
        await takes_its_own_export_back(store)

    asyncio.run(test())


def test_instances_lists_and_new_services_belong_to_the_document(path: Path) -> None:
    state = state_path(path)
    for data, word in [
        ({"users": {"instances": [{"address": "127.0.0.1:9", "version": "v1"}]}}, "instances of users are kept in"),
        ({"users": {"lists": {"staff": ["ann"]}}}, "lists of users are kept in"),
        ({"shop": {"stable": "v1"}}, "add shop to"),
    ]:
        with pytest.raises(NotHere, match=word) as told:
            apply(path, {**data, "users": {**data.get("users", {}), "split": {"v1": 1}}})
        assert str(path) in str(told.value)
    assert not state.exists()
    same = users()["instances"]
    assert apply(path, {"users": {"instances": same}}) == []


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ({"split": {"v1": 0}}, "services/users/split:1:1: $: every weight is 0"),
        ({"rules_a": {"match": {}, "too": "v1"}}, "services/users/rules/a"),
        ({"rules_a": {"match": {"headers": {"x": {"in": "staff"}}}, "to": "v1"}}, "rules/a:1:1: $.match.headers.x.in"),
        ({"service": {"sticky": [{"header": "a"}, {"header": "a"}]}}, "services/users/service:1:1: $.sticky[1]"),
        ({"service": {"split": {"v1": 1}}}, "services/users/split instead"),
        ({"unknown": {}}, 'unknown part "unknown"'),
    ],
)
def test_errors_name_the_key(path: Path, items: Data, words: str) -> None:
    with pytest.raises(ConfigErrors) as told:
        put(path, rules_b=rule("x"), **items)
    assert words in str(told.value)
    assert not state_path(path).exists()


def test_deleting_what_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(UnknownTarget, match="no key services/users/rules/none"):
        put(path, rules_none=None)
    with pytest.raises(UnknownTarget, match="no key services/shop"):
        asyncio.run(operations.get(on(path), "services/shop"))


def test_somebody_who_writes_at_the_same_time_is_not_overwritten(path: Path) -> None:
    """The other one's change of another key stays, and where both change the split the later one goes on from it."""

    class Late(FileConfigStore):
        others = 3

        async def read(self) -> View:
            view = await super().read()
            if self.others:
                self.others -= 1
                share = 10 * (self.others + 1)
                await operations.set_split(on(path), "users", {"v1": 100 - share, "v3": share}, who="bob")
            return view

    store = Late(path, Store(state_path(path)))
    asyncio.run(operations.put(store, {USERS + "rules/a": json.dumps(rule("x")).encode()}, who="ann"))
    assert value(path, "split")["weights"] == {"v1": 90, "v3": 10}
    put(path, split={"v1": 1})
    store.others, seen = 1, asyncio.run(on(path).read()).revision
    with pytest.raises(Conflict, match=f"not {seen}: bob set the split of users to v1=90 v3=10"):
        asyncio.run(operations.set_split(store, "users", {"v2": 1}, who="ann", expected=seen))
    assert value(path, "split")["weights"] == {"v1": 90, "v3": 10}
    store.others = 10
    with pytest.raises(Conflict):
        asyncio.run(operations.set_split(store, "users", {"v2": 1}, who="ann"))


def test_a_change_of_instances_or_of_another_service_is_no_conflict(tmp_path: Path) -> None:
    data = document(users=users(hosts=["users"]), orders=users(hosts=["orders"]))
    path = write(tmp_path, data)
    asyncio.run(operations.set_split(on(path), "users", {"v1": 1}, who="ann"))
    seen = asyncio.run(on(path).read()).revision
    asyncio.run(operations.set_split(on(path), "orders", {"v1": 1}, who="bob"))
    data["services"]["users"]["instances"].append({"address": "127.0.0.1:9009", "version": "v4"})
    write(tmp_path, data)
    told = asyncio.run(operations.set_split(on(path), "users", {"v4": 1}, who="ann", expected=seen))
    assert told.after == "v4=1"
    with pytest.raises(Conflict, match="ann set the split of users to v4=1"):
        asyncio.run(operations.set_split(on(path), "users", {"v1": 1}, who="ann", expected=seen))


def test_an_edit_of_the_document_is_a_change_too(path: Path) -> None:
    asyncio.run(operations.set_split(on(path), "users", {"v1": 1}, who="ann"))
    seen = asyncio.run(on(path).read()).revision
    write(path.parent, document(users=users(fallback="any")))
    with pytest.raises(Conflict, match="file changed users"):
        asyncio.run(operations.set_split(on(path), "users", {"v2": 1}, who="ann", expected=seen))


def test_a_document_that_is_not_valid_is_no_reason_to_refuse(path: Path) -> None:
    asyncio.run(operations.set_split(on(path), "users", {"v1": 1, "v2": 1}, who="ann"))
    write(path.parent, "services: [")
    for words in ("v1=95 v2=5", "v1=1 v2=1"):
        told = asyncio.run(operations.rollback(on(path), "users", who="ann"))
        assert told.after == words
        assert "the document is not valid" in told.note
    assert "the document is not valid" in put(path, rules_a=rule("x")).note
    assert load(document(users=users())).services  # and what is in force is none of it
    state_path(path).unlink()
    with pytest.raises(ConfigErrors):
        put(path, rules_a=rule("x"))


def test_how_far_back_a_rollback_can_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graylb.control.state.KEEP_CONTENTS", 3)
    for share in range(10, 60, 10):
        asyncio.run(operations.set_split(on(path), "users", {"v1": 100 - share, "v2": share}, who="ann"))
    history = asyncio.run(operations.history(on(path), "users"))
    assert [each["known"] for each in history] == [True] * 3 + [False] * 3
    assert [each["split"] for each in history][::-1] == [
        "v1=95 v2=5",
        *(f"v1={100 - s} v2={s}" for s in range(10, 60, 10)),
    ]
    with pytest.raises(UnknownTarget, match="users at revision 2 is no longer kept"):
        asyncio.run(operations.rollback(on(path), "users", to=2, who="ann"))
    assert asyncio.run(operations.rollback(on(path), "users", to=4, who="ann")).after == "v1=70 v2=30"


def test_every_key_tells_its_newest_change(path: Path) -> None:
    asyncio.run(operations.set_split(on(path), "users", {"v1": 1, "v2": 1}, who="ann"))
    put(path, rules_a=rule("x"))
    items = asyncio.run(on(path).read()).items
    told = {key.removeprefix(USERS): (item.revision, item.origin) for key, item in items.items()}
    assert told["split"] == (2, "state")
    assert told["rules/a"] == (3, "state")
    assert told["service"] == (1, "state")
    assert told["instances/127.0.0.1:9001"][1] == "file"


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.integers(0, 12), st.integers(0, 40))),
    st.integers(20, 60),
)
def test_parts_have_everything_once_and_fit(services: dict[str, tuple[int, int]], at_once: int) -> None:
    items: dict[str, bytes | None] = {}
    for name, (rest, instances) in services.items():
        items |= {f"services/{name}/instances/{n}": b"{}" for n in range(instances)}
        items |= {f"services/{name}/rules/{n}": b"{}" for n in range(rest)}
    parts = plans.in_parts(items, at_once)
    assert plans.in_parts(items, None) == ([items] if items else [])
    assert sorted(key for part in parts for key in part) == sorted(items)
    for part in parts:
        named = {key.split("/")[1] for key in part}
        assert len(part) + plans.OVERHEAD * len(named) <= at_once
    for name in services:
        first = [part for part in parts if any(key.startswith(f"services/{name}/") for key in part)][:1]
        rules = [key for key in items if key.startswith(f"services/{name}/rules/")]
        assert all(key in part for part in first for key in rules)
