"""Instances of registries among those of document and keys: what wins, what stays, what is told, and what it costs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb.control.last_good import LastGood
from graylb.control.layers import Layers
from graylb.control.prepare import Applied
from graylb.control.registered import Registered, Registries
from graylb.control.sources import Fragment, Update
from graylb.model import discovery, documents
from graylb.model.problems import ConfigErrors
from graylb.model.snapshot import Instance, Service
from tests.control.fragments import Source, instance

SERVICE = {"stable": "v1"}
KRATOS = {"kind": "kratos", "services": {"user": "users"}}
KITEX = {"kind": "kitex", "services": {"user": "users"}}


def kratos(number: int, version: str = "v1", name: str = "user", **more: Any) -> dict[str, Any]:
    endpoints = [f"http://10.0.0.{number}:80?isSecure=false", f"grpc://10.0.0.{number}:90?isSecure=false"]
    return {"id": str(number), "name": name, "version": version, "metadata": None, "endpoints": endpoints, **more}


def kitex(number: int, version: str = "v1", weight: int = 10) -> dict[str, Any]:
    return {"network": "tcp", "address": f"10.0.0.{number}:80", "weight": weight, "tags": {"version": version}}


class Store:
    """One etcd with registries and keys of ours, and layers that follow it."""

    def __init__(self, document: dict[str, Any], *registries: dict[str, Any]) -> None:
        self.source = Source.__new__(Source)
        whole = {"registries": [{"etcd": {}, **each} for each in registries], **document}
        parts = documents.load(orjson.dumps({"listeners": [{"address": "127.0.0.1:0"}], **whole}), "x").registries
        self.registries = Registries(
            Registered(part, prefix, below) for part in parts for prefix, below in part.watched
        )
        self.source.layers = Layers("/graylb/", self.registries)
        self.source.revision, self.source.keys, self.source.applied = 1, {}, None
        self.source.base = self.source.read(whole)
        self.keys: list[dict[str, Fragment]] = [{} for _ in self.registries.every]
        self.whole = whole

    def put(self, index: int = 0, /, **values: Any) -> Applied:
        """Below the prefix: `user__1` stands for user/1; None deletes, bytes are put as they are."""
        return self.change(index, {name.replace("__", "/"): value for name, value in values.items()})

    def change(self, index: int, values: dict[str, Any]) -> Applied:
        self.source.revision += 1
        changes: dict[str, Fragment | None] = {}
        for key, value in values.items():
            text = value if isinstance(value, bytes) else orjson.dumps(value)
            changes[key] = None if value is None else Fragment(key, text, self.source.revision)
        for key, each in changes.items():
            if each is None:
                self.keys[index].pop(key, None)
            else:
                self.keys[index][key] = each
        return self.take(index, Update(self.source.revision, changes))

    def relist(self, index: int = 0, *, stale: bool = False) -> Applied:
        return self.take(index, Update(self.source.revision, dict(self.keys[index]), whole=True, stale=stale))

    def take(self, index: int, *updates: Update) -> Applied:
        async def offered() -> None:
            for update in updates:
                self.layers.offer_registered(index, update)
            self.layers.collect()

        asyncio.run(offered())
        return self.source.look()

    @property
    def layers(self) -> Layers:
        return self.source.layers

    @property
    def report(self) -> Any:
        """Of the first registry."""
        return self.layers.report.registries[0]

    @property
    def errors(self) -> list[str]:
        return self.source.errors

    def service(self, name: str = "users") -> Service:
        return self.source.service(name)

    def found(self, name: str = "users") -> list[str]:
        """`3=v1` for each instance of 10.0.0.3, weights other than 100 behind a star."""
        return list(map(told, self.service(name).instances))


def told(each: Instance) -> str:
    number = each.address.removeprefix("10.0.0.").removesuffix(":80")
    return f"{number}={each.version}" + (f"*{each.weight}" if each.weight != 100 else "")


def users(**more: Any) -> dict[str, Any]:
    return {"services": {"users": {**SERVICE, **more}}}


def test_document_and_keys_win_by_address_and_the_first_registry_over_the_next() -> None:
    store = Store(users(instances=[instance(1, weight=1)]), KRATOS, KITEX)
    store.put(0, user__a=kratos(1, "v2"), user__b=kratos(2, "v2"), user__c=kratos(3, "v2"))
    store.put(1, user__d=kitex(3, "v3"), user__e=kitex(4, "v3", 7))
    assert store.found() == ["1=v1*1", "2=v2", "3=v2", "4=v3*7"]
    store.source.put(users__instances__x=instance(2, "v9"))
    assert store.found() == ["1=v1*1", "2=v9", "3=v2", "4=v3*7"]
    store.put(0, user__c=None)
    store.source.put(users__instances__x=None)
    assert store.found() == ["1=v1*1", "2=v2", "3=v3*10", "4=v3*7"]


def test_of_two_keys_with_one_address_the_newer_counts() -> None:
    """A go-zero service that registers again does so under another key, while the former one lives on."""
    store = Store(users(), {"kind": "go-zero", "services": {"user.rpc": "users"}})
    store.change(0, {"user.rpc.v2/9": b"10.0.0.1:80"})
    store.change(0, {"user.rpc.v1/1": b"10.0.0.1:80"})
    assert store.found() == ["1=v1"]
    store.change(0, {"user.rpc.v1/1": None})
    assert store.found() == ["1=v2"]


def test_a_change_touches_its_service_and_nothing_else() -> None:
    services = {name: {**SERVICE, "hosts": [f"{name}.test"]} for name in ("users", "orders")}
    store = Store({"services": services}, KRATOS)
    store.put(user__1=kratos(1), orders__1=kratos(2, name="orders"))
    before = {name: store.service(name) for name in services}
    same = store.put(user__2=kratos(3))
    assert store.service("users") is not before["users"]
    assert store.service("orders") is before["orders"]
    assert store.put(user__2=kratos(3)) is same  # put again, as some frameworks do all the time
    assert store.relist() is same
    assert store.put(nobody__1=kratos(4, name="nobody")) is same


def test_services_that_nobody_asked_for_appear_only_with_take_all() -> None:
    keys = {"user/1": kratos(1), "cart/1": kratos(2, name="cart"), "a/b/1": kratos(3, name="a/b")}
    store = Store({}, KRATOS)
    store.change(0, keys)
    assert store.source.services == ["users"]
    assert store.errors == []
    store.source.put(cart__rules__any={"match": {}, "to": "v1"})  # somebody begins to care
    assert store.found("cart") == ["2=v1"]
    store = Store({}, {**KRATOS, "take": "all"})
    store.change(0, keys)
    assert store.source.services == ["cart", "users"]
    assert store.source.applied is not None
    assert {route.host for route in store.source.applied.snapshot.routes} == {"cart", "users"}
    (error,) = store.errors
    assert error == (
        '/microservices/a/b/1:1:1: "a/b" is no name of a service here; expected services of the registry to give it one'
    )
    store.put(cart__1=None)
    assert store.source.services == ["users"]


def test_a_name_that_is_no_host_is_told_of_its_key() -> None:
    store = Store({}, {"kind": "kratos", "take": "all"})
    store.change(0, {"a_/1": kratos(1, name="a_"), "b../1": kratos(2, name="b.."), "ok/1": kratos(3, name="ok")})
    assert store.source.services == ["a_", "ok"]
    (error,) = store.errors
    assert error.startswith("/microservices/b../1:1:1: $: no hosts; expected hosts for this service")
    store.source.put(**{"b..__service": {"hosts": ["b.test"]}})
    assert store.source.services == ["a_", "b..", "ok"]
    assert store.errors == []


def test_a_service_made_by_a_registry_needs_its_stable_version_once_it_has_two() -> None:
    store = Store({}, {"kind": "kratos", "take": "all"})
    store.put(cart__1=kratos(1, name="cart"))
    assert store.errors == []
    store.put(cart__2=kratos(2, "v2", name="cart"))
    (error,) = store.errors
    assert "the stable version is unknown: instances of several versions" in error
    assert store.found("cart") == ["1=v1"]
    store.source.put(cart__service={"stable": "v1"})
    assert store.found("cart") == ["1=v1", "2=v2"]


def test_versions_of_tags_of_names_and_of_those_that_say_none(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(users(), KRATOS)
    store.put(user__1=kratos(1, ""), user__2=kratos(2))
    assert store.found() == ["1=unversioned", "2=v1"]
    assert store.report.unversioned == ("users",)
    assert [each for each in caplog.messages if "users name no version" in each] == [
        "registry kratos: instances of users name no version; they have unversioned (default_version gives another)"
    ]
    store.put(user__1=None)
    assert store.report.unversioned == ()
    store = Store(users(), {**KRATOS, "version_from": "metadata.release", "default_version": "v0"})
    store.put(user__1=kratos(1, metadata={"release": "v7"}), user__2=kratos(2), user__3=kratos(3))
    assert store.found() == ["1=v7", "2=v0", "3=v0"]
    assert store.report.unversioned == ()
    store.put(user__1=kratos(1, metadata={"release": "a b"}))
    assert store.errors == [
        '/microservices/user/1:1:1: $.metadata.release: got "a b"; expected a version: letters, digits and any of . _ '
        "+ : / @ -"
    ]
    assert store.found() == ["1=v7", "2=v0", "3=v0"]
    named = {"user": "users", "next": {"service": "users", "version": "v2"}}
    store = Store(users(), {"kind": "go-zero", "services": named, "default_version": "v1"})
    store.change(0, {"user/1": b"10.0.0.1:80"})
    store.change(1, {"next/2": b"10.0.0.2:80", "nextdoor/3": b"10.0.0.3:80"})
    assert store.found() == ["1=v1", "2=v2"]


def test_addresses_by_scheme_and_what_has_none_of_them() -> None:
    store = Store(users(), KRATOS)
    store.put(user__1=kratos(1), user__2=kratos(2, endpoints=["grpc://10.0.0.2:90"]))
    assert store.found() == ["1=v1"]
    assert store.report.unserved == 1
    assert store.errors == []
    store = Store(users(), {**KRATOS, "schemes": ["grpc", "http"]})
    store.put(user__1=kratos(1))
    assert [each.address for each in store.service().instances] == ["10.0.0.1:90"]


def test_go_micro_domains() -> None:
    named = {"greeter": "users", "billing/greeter": "bills"}
    store = Store(
        {"services": {"bills": {"stable": "v1", "hosts": ["b"]}, **users()["services"]}},
        {"kind": "go-micro", "services": named},
    )
    for key in ("greeter/1", "billing/greeter/2", "shop/greeter/3"):
        number = key[-1]
        node = {"id": number, "address": f"10.0.0.{number}:80"}
        store.change(0, {key: {"name": "greeter", "version": "v1", "nodes": [node]}})
    assert (store.found(), store.found("bills")) == (["1=v1", "3=v1"], ["2=v1"])


def test_what_makes_no_sense_keeps_the_last_good_and_is_told_only_of_services_that_are_wanted() -> None:
    store = Store({"services": {"users": SERVICE, "orders": {**SERVICE, "hosts": ["o"]}}}, KRATOS)
    store.put(user__1=kratos(1))
    store.put(cart__1=kratos(9, name="cart"))
    store.change(0, {"user/1": b"{", "orders/7": b"[]", "cart/1": b"??", "cart/2": b"??", "stray": b""})
    assert store.found() == ["1=v1"]
    assert [each.split(":")[0] for each in store.errors] == ["/microservices/orders/7", "/microservices/user/1"]
    report = store.report
    assert [each.key for each in report.refused] == ["/microservices/orders/7", "/microservices/user/1"]
    since = report.refused[1].since
    store.put(user__1=b"{{")
    assert store.report.refused[1].since == since
    store.put(user__1=kratos(2), orders__7=None)
    assert (store.found(), store.errors) == (["2=v1"], [])


def test_a_value_that_graylb_itself_stumbles_over_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(users(), KRATOS)
    read = discovery.read

    def stumble(part: Any, prefix: str, key: str, value: bytes) -> Any:
        if b"odd" in value:
            raise RuntimeError("a bug")
        return read(part, prefix, key, value)

    monkeypatch.setattr(discovery, "read", stumble)
    store.put(user__1=kratos(1, metadata={"odd": "1"}), user__2=kratos(2))
    assert store.found() == ["2=v1"]
    assert "a bug" in store.errors[0]


@pytest.mark.parametrize("kind", ["list", "change"])
def test_all_keys_gone_at_once_are_held_and_one_that_goes_is_believed(kind: str) -> None:
    store = Store({"services": {"users": SERVICE, "orders": {**SERVICE, "hosts": ["o"]}}}, KRATOS)
    store.put(
        user__1=kratos(1), user__2=kratos(2), orders__1=kratos(3, name="orders"), orders__2=kratos(4, name="orders")
    )
    store.put(user__2=None)
    assert store.found() == ["1=v1"]
    store.put(user__2=kratos(2))
    if kind == "list":
        store.keys[0].clear()
        store.relist()
    else:
        store.put(user__1=None, user__2=None, orders__1=None, orders__2=None)
    assert (store.found(), store.found("orders")) == (["1=v1", "2=v1"], ["3=v1", "4=v1"])
    (alarm,) = store.errors
    assert "below /microservices/ went at once at 2" in alarm
    assert store.report.held == 4
    store.relist()  # and again
    assert store.found() == ["1=v1", "2=v1"]
    store.put(user__1=b"{")  # no instance yet
    assert store.found() == ["1=v1", "2=v1"]
    store.put(user__9=kratos(9))
    assert store.found() == ["1=v1", "9=v1"]  # that of the bad value is the last good one of its key
    store.relist()
    assert store.found("orders") == ["3=v1", "4=v1"]
    store.put(orders__1=kratos(3, name="orders"))
    assert store.found("orders") == ["3=v1"]
    assert [each for each in store.errors if "at once" in each] == []


def test_the_revision_is_that_of_what_people_change() -> None:
    """Who waits for the revision of a change is not to be told that it is in force because of some instance."""
    store = Store(users(), KRATOS)
    before = store.source.put(users__service={"stable": "v1"})
    after = store.put(user__1=kratos(1))
    assert after.revision == before.revision
    assert after.digest != before.digest


def test_two_keys_that_were_all_are_held_and_the_last_one_alone_is_not() -> None:
    store = Store(users(), KRATOS)
    store.put(user__1=kratos(1), user__2=kratos(2))
    store.put(user__1=None, user__2=None)
    assert store.found() == ["1=v1", "2=v1"]
    store.put(user__1=kratos(1))
    assert store.found() == ["1=v1"]
    store.put(user__1=None)
    assert store.found() == []


def test_a_copy_to_try_changes_on_has_the_instances_of_its_time() -> None:
    store = Store(users(), KRATOS, KITEX)
    old, new = (
        Fragment("user/1", orjson.dumps(kratos(1, "v1")), 5),
        Fragment("user/2", orjson.dumps(kratos(1, "v2")), 4),
    )
    store.take(0, Update(5, {old.key: old, new.key: new}))
    store.put(1, user__3=kitex(3))
    _, copy = store.layers.copy()
    store.put(0, user__1=None)
    store.put(1, user__4=kitex(4))
    assert sorted(map(told, (built for _, built in copy.registries.instances("users").values()))) == ["1=v1", "3=v1*10"]
    assert store.found() == ["1=v2", "3=v1*10", "4=v1*10"]
    base = store.source.read({**store.whole, "services": {"users": {**SERVICE, "hosts": ["u.test"]}}})
    assert copy.update(base, {})
    assert [told(each) for each in copy.snapshot(1).services[0].instances] == ["1=v1", "3=v1*10"]


def test_what_is_stale_does_not_replace_what_is_newer() -> None:
    store = Store(users(), KRATOS)
    store.put(user__1=kratos(1))
    store.put(user__2=kratos(2))
    old = Fragment("user/1", orjson.dumps(kratos(1, "v0")), 1)
    assert store.take(0, Update(1, {old.key: old}, whole=True, stale=True)) is store.source.applied
    assert store.found() == ["1=v1", "2=v1"]


def test_another_store_counts_anew() -> None:
    store = Store(users(), KRATOS)
    store.source.revision = 500
    store.put(user__1=kratos(1))
    fresh = Fragment("user/1", orjson.dumps(kratos(5)), 7)
    store.take(0, Update(7, {fresh.key: fresh}, whole=True))
    assert store.found() == ["5=v1"]
    assert store.registries.every[0].revision == 7


def test_what_was_good_last_is_kept_on_disk_for_its_own_registry_only(tmp_path: Any) -> None:
    store = Store(users(), KRATOS, KITEX)
    store.source.put(users__instances__x=instance(9))
    store.put(0, user__1=kratos(1))
    store.put(0, user__1=b"{")
    store.put(1, user__2=kitex(2))
    file = LastGood(tmp_path / "kept")
    file.write(store.layers.kept("then"))
    kept = file.read("/graylb/")
    assert kept is not None
    for parts, expected in (
        ((KRATOS, KITEX), ["9=v1", "1=v1", "2=v1*10"]),
        ((KITEX,), ["9=v1", "2=v1*10"]),
        (({**KRATOS, "prefix": "/elsewhere"},), ["9=v1"]),
    ):
        again = Store(users(), *parts)
        again.layers.seed(kept)
        again.source.look()
        assert again.found() == expected
        assert again.errors == []
    revision, fragments = kept.registries["kratos /microservices/"]
    odd = Fragment("user/odd", b"{", 1)  # of a graylb that understood it
    again = Store(users(), KRATOS)
    again.layers.seed(replace(kept, registries={"kratos /microservices/": (revision, (*fragments, odd))}))
    again.source.look()
    assert again.errors == []
    again.put(0, user__3=kratos(3))
    again.relist()  # the source has the last word
    assert again.found() == ["9=v1", "3=v1"]


NAMES = ("users", "orders")
VALUES: list[list[tuple[int, str, Any]]] = [
    [(0, f"{name}/{key}", kratos(number, version, name=name)) for version in ("v1", "v2")]
    for name in NAMES
    for key, number in (("a", 1), ("b", 2), ("c", 1))
]
VALUES += [
    [(1, f"{name}/{key}", kitex(number, version)) for version in ("v1", "v3")]
    for name in NAMES
    for key, number in (("a", 2), ("b", 3))
]
CHANGES = [each for group in VALUES for each in group]
CHANGES += [(index, key, bad) for (index, key, _), *_ in VALUES for bad in (b"{", None)]
OWN = [
    (f"{name}/instances/{key}", value)
    for name in NAMES
    for key in "xy"
    for value in (instance(1, "own"), instance(3, "own", weight=5), None)
]


def oracle(
    document: dict[str, Any], own: dict[str, Fragment], registries: list[dict[str, Fragment]], name: str
) -> set[str]:
    """Everything anew, from what counts least to what counts most; the later word of an address stays."""
    best: dict[str, str] = {}

    def say(data: dict[str, Any]) -> None:
        best[data["address"]] = told(Instance(data["address"], data["version"], data.get("weight", 100)))

    def by_age(keys: dict[str, Fragment], start: str) -> list[Any]:
        found = [each for key, each in keys.items() if key.startswith(start)]
        return [orjson.loads(each.value) for each in sorted(found, key=lambda each: (each.revision, each.key))]

    for data in by_age(registries[1], f"{name}/"):
        say({**data, "version": data["tags"]["version"]})
    for data in by_age(registries[0], f"{name}/"):
        say({"address": data["endpoints"][0].removeprefix("http://").partition("?")[0], "version": data["version"]})
    for data in document["services"][name]["instances"]:
        say(data)
    for data in by_age(own, f"services/{name}/"):
        say(data)
    return set(best.values())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(CHANGES), max_size=4), st.lists(st.sampled_from(OWN), max_size=2), st.booleans()
        ),
        min_size=1,
        max_size=10,
    )
)
def test_step_by_step_it_comes_to_the_union_of_what_was_good_last(
    steps: list[tuple[list[tuple[int, str, Any]], list[tuple[str, Any]], bool]],
) -> None:
    document = {
        "services": {
            "users": {**SERVICE, "hosts": ["u"], "instances": [instance(2, "doc")]},
            "orders": {**SERVICE, "hosts": ["o"], "instances": [instance(5, "doc")]},
        }
    }
    store = Store(document, {"kind": "kratos"}, {"kind": "kitex"})
    stay = {"stay/1": kratos(77, name="stay")}, {"stay/1": kitex(77)}  # so that never all of them go at once
    good: list[dict[str, Fragment]] = [{}, {}]
    own: dict[str, Fragment] = {}
    store.source.change({"users/instances/stay": instance(8)})
    own["services/users/instances/stay"] = store.source.keys["services/users/instances/stay"]
    for index in (0, 1):
        store.change(index, stay[index])
    for changes, puts, whole in steps:
        for index in (0, 1):
            here = {key: value for each, key, value in changes if each == index}
            if not here:
                continue
            store.change(index, here)
            for key, value in here.items():
                if value is None:
                    good[index].pop(key, None)
                elif value != b"{":
                    good[index][key] = store.keys[index][key]
            if whole:
                store.relist(index)
        if puts:
            store.source.change(dict(puts))
            for key, value in dict(puts).items():
                if value is None:
                    own.pop(f"services/{key}", None)
                else:
                    own[f"services/{key}"] = store.source.keys[f"services/{key}"]
        for name in NAMES:
            assert set(store.found(name)) == oracle(document, own, good, name)
    wrong = {
        store.registries.every[index].prefix + key
        for index in (0, 1)
        for key, each in store.keys[index].items()
        if each.value == b"{"
    }
    assert {each.key for report in store.layers.report.registries for each in report.refused} == wrong


def test_a_document_whose_route_is_taken_by_a_registrys_service_is_refused() -> None:
    store = Store({}, {"kind": "kratos", "take": "all"})
    store.put(cart__1=kratos(1, name="cart"))
    before = store.source.applied
    with pytest.raises(ConfigErrors, match="already goes to"):
        store.source.look(
            base=store.source.read({**store.whole, "services": {"own": {"stable": "v1", "hosts": ["cart"]}}})
        )
    assert store.source.look() is before
