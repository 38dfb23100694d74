"""Document and keys made one: what wins, what is refused and what stays, and that a change touches its service only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _fast
from graylb.control import fragments
from graylb.control.sources import Fragment, Update
from graylb.model import build, documents
from tests.control.fragments import HEAD, Source, instance, split

RULE = {"match": {"headers": {"x-group": "test"}}, "to": "v2"}
ELSEWHERE = {"hosts": ["o.test"]}
SERVICE = {"stable": "v1", "sticky": [{"header": "x-user-id"}]}


def in_document(**services: Any) -> dict[str, Any]:
    return {"services": services}


def test_keys_make_the_same_service_as_a_document_would() -> None:
    source = Source()
    source.put(
        users__service=SERVICE,
        users__split=split({"v1": 95, "v2": 5}),
        users__rules__a=RULE,
        users__rules__b={**RULE, "priority": 5},
        users__lists__staff=["ann"],
        users__instances__one=instance(1),
        users__instances__two=instance(2, "v2", weight=7, metadata={"env": "gray"}),
    )
    whole = {
        **SERVICE,
        "split": split({"v1": 95, "v2": 5}),
        "rules": [{"name": "a", **RULE}, {"name": "b", **RULE, "priority": 5}],
        "lists": {"staff": ["ann"]},
        "instances": [instance(1), instance(2, "v2", weight=7, metadata={"env": "gray"})],
    }
    document = documents.load(str({**HEAD, "services": {"users": whole}}).replace("'", '"'), "test")
    part = document.services["users"]
    assert part.split is not None
    splits = {("users", None): build.snapshot.Split((("v1", 95.0), ("v2", 5.0)), "s", part.split.slots or "")}
    assert source.service() == build.build(document, splits, 1).services[0]
    assert source.applied is not None
    assert source.applied.snapshot.routes == build.build(document, splits, 1).routes
    _fast.Table(source.applied.image)


def test_part_by_part_the_key_wins_over_the_document() -> None:
    first, second = {"name": "first", **RULE}, {"name": "second", **RULE}
    source = Source(
        in_document(users={**SERVICE, "fallback": "any", "rules": [second, first], "lists": {"a": ["x"], "b": ["y"]}})
    )
    source.put(users__instances__one=instance(1), users__lists__b=["z"])
    assert [rule.name for rule in source.service().rules] == ["second", "first"]
    assert source.service().lists == (("a", ("x",)), ("b", ("z",)))
    source.put(users__rules__first={**RULE, "to": "v3"}, users__rules__aaa=RULE)
    rules = source.service().rules
    assert [(rule.name, rule.to.version if rule.to else None) for rule in rules] == [
        ("second", "v2"),
        ("first", "v3"),
        ("aaa", "v2"),
    ]
    assert source.service().fallback == "any"
    source.put(users__service={"stable": "v1"})
    assert (source.service().fallback, source.service().sticky) == ("stable", ())
    source.put(users__service=None, users__rules__first=None)
    assert source.service().fallback == "any"
    assert source.service().rules[1].to.version == "v2"  # type: ignore[union-attr]


def test_instances_are_united_by_address() -> None:
    source = Source(in_document(users={**SERVICE, "instances": [instance(1), instance(2)]}))
    source.put(users__instances__b=instance(2, weight=5), users__instances__a=instance(3))
    assert [(each.address[7:8], each.weight) for each in source.service().instances] == [
        ("1", 100),
        ("2", 5),
        ("3", 100),
    ]
    source.put(users__instances__again=instance(3, weight=9))  # registered anew before the old key was gone
    assert [each.weight for each in source.service().instances] == [100, 5, 9]
    source.put(users__instances__a=instance(3))  # the former one puts the same once more: now it is the newer one
    assert [each.weight for each in source.service().instances] == [100, 5, 100]
    source.put(users__instances__again=None, users__instances__b=None)
    assert [each.weight for each in source.service().instances] == [100, 100, 100]


def test_an_unchanged_service_stays_the_very_same_object() -> None:
    source = Source(in_document(own={**SERVICE, "hosts": ["own.test"], "instances": [instance(9)]}))
    source.put(users__instances__one=instance(1), orders__instances__one=instance(1), orders__service=ELSEWHERE)
    before = {name: source.service(name) for name in source.services}
    source.put(users__instances__two=instance(2))
    assert source.service("users") is not before["users"]
    assert all(source.service(name) is before[name] for name in ("own", "orders"))
    same = source.applied
    assert source.put(users__instances__two=instance(2)) is same  # the same value again
    assert source.list() is same
    source.edit(in_document(own={**SERVICE, "hosts": ["own.test"], "instances": [instance(9)]}))
    assert all(source.service(name) is before[name] for name in ("own", "orders"))


def test_what_does_not_fit_together_stays_as_it_was_and_is_told_of_the_key() -> None:
    source = Source()
    source.put(
        users__service=SERVICE, users__instances__one=instance(1), other__service={"hosts": ["o.test"], **SERVICE}
    )
    before = source.service()
    staff = {"match": {"headers": {"x-user-id": {"in": "staff"}}}, "to": "v2"}
    source.put(users__rules__staff=staff, other__instances__one=instance(2))
    (error,) = source.errors
    assert error.startswith("/graylb/services/users/rules/staff:1:1: $.match.headers")
    assert 'unknown list "staff"' in error
    assert source.service() is before
    assert len(source.service("other").instances) == 1
    source.put(users__instances__two=instance(3))  # is not applied by itself: the service stays whole
    assert source.service() is before
    source.put(users__lists__staff=["ann"])
    assert source.errors == []
    assert len(source.service().instances) == 2
    assert len(source.service().rules) == 1


def test_a_service_that_takes_anothers_route_is_left_out_and_told() -> None:
    source = Source()
    source.put(users__service=SERVICE)
    source.put(orders__service=SERVICE, more__service={**SERVICE, "hosts": ["m.test"]})
    (error,) = source.errors
    assert error.startswith("/graylb/services/orders/service:1:1: $: ")
    assert source.services == ["more", "users"]
    source.put(users__service={**SERVICE, "hosts": ["u.test"]})
    source.put(orders__service={**SERVICE, "paths": ["/"]})
    assert source.errors == []
    assert source.services == ["more", "orders", "users"]


def test_the_stable_version_has_to_be_known_and_is_missed_until_it_is() -> None:
    source = Source()
    source.put(users__rules__a=RULE)
    assert source.services == []
    assert "the stable version is unknown" in source.errors[0]
    source.put(users__instances__one=instance(1))
    assert (source.errors, source.service().stable) == ([], "v1")
    source.put(users__instances__two=instance(2, "v2"))
    assert "the stable version is unknown" in source.errors[0]
    assert len(source.service().instances) == 1
    source.put(users__service=SERVICE)
    assert source.errors == []
    assert len(source.service().instances) == 2


def test_a_document_that_does_not_fit_with_the_keys_is_refused_as_a_whole() -> None:
    source = Source(in_document(own={**SERVICE, "hosts": ["own.test"]}))
    source.put(users__service=SERVICE, users__instances__one=instance(1))
    before = source.applied
    (error,) = source.edit(in_document(own=SERVICE))
    assert "already goes to $.services.own" in error
    assert source.look() is before
    assert source.edit(in_document(own={**SERVICE, "paths": ["/own"]})) == []
    assert source.services == ["own", "users"]


def test_routes_of_the_document_lead_to_services_of_keys() -> None:
    source = Source({"routes": [{"paths": ["/u"], "service": "users"}], "services": {}})
    assert source.applied is None
    source.look()
    assert "no such service" in source.errors[0]
    source.put(users__service=SERVICE, users__instances__one=instance(1))
    assert source.errors == []
    assert source.applied is not None
    assert [(route.name, route.path) for route in source.applied.snapshot.routes] == [("route-1", "/u")]
    source.put(users__service=None)
    source.put(users__instances__one=None)
    assert source.services == []
    assert source.applied.snapshot.routes == ()
    assert len(source.errors) == 1


def test_under_a_sidecar_services_of_keys_are_outbound_ones() -> None:
    sidecar = {"service": "users", "version": "v1", "app": "127.0.0.1:9000"}
    source = Source()
    document = documents.load(str({"etcd": {}, "sidecar": sidecar}).replace("'", '"'), "graylb.yaml")
    base = source.base.__class__(document, {}, "graylb.yaml", document.resolved_sidecar)
    source.look(base=base)
    source.put(orders__instances__one=instance(1))
    assert source.applied is not None
    routes = {route.service: (route.host, route.listeners) for route in source.applied.snapshot.routes}
    assert routes["orders"] == ("orders", ("outbound",))
    assert routes["users-local"] == ("*", ("inbound",))
    source.put(x_y__instances__one=instance(1))
    if source.errors:
        assert "hosts for this service" in source.errors[0]


NAMES = ("users", "orders")
VALUES: dict[str, list[Any]] = {
    "service": [SERVICE, {"stable": "v2"}, {"stable": 7.5, "spit": 1}],
    "split": [split({"v1": 1}), split({"v1": 1, "v2": 1}), {"v1": 1}, {"v1": -1}, b"{"],
    "rules/a": [RULE, {**RULE, "to": "v1"}, {**RULE, "split": {"v1": 1}}],
    "rules/b": [{**RULE, "priority": 2}, {"match": {}, "split": split({"v2": 1})}],
    "instances/one": [instance(1), instance(1, "v2"), instance(2)],
    "instances/two": [instance(2), {"address": "x"}],
}
STEPS = st.lists(
    st.lists(
        st.sampled_from(
            [(f"{name}/{part}", value) for name in NAMES for part in VALUES for value in (*VALUES[part], None)]
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.lists(st.booleans(), min_size=12, max_size=12))
def test_step_by_step_it_comes_to_what_it_would_be_at_once(
    steps: list[list[tuple[str, Any]]], whole: list[bool]
) -> None:
    """The oracle: every key's last good value, decoded and put together by a source that never saw anything else."""
    source = Source(in_document(users={"hosts": ["u.test"]}, orders=ELSEWHERE))
    source.look()
    for step, listed in zip(steps, whole, strict=False):
        source.change(dict(step))
        if listed:
            source.list()
    again = Source(in_document(users={"hosts": ["u.test"]}, orders=ELSEWHERE))
    kept = {each.key: each for each in source.layers.fragments.all_good()}
    again.take(Update(1000, dict(kept), whole=True))
    if not source.layers.report.problems and not source.layers.report.held:
        assert source.applied is not None
        assert again.applied is not None
        assert source.applied.snapshot.services == again.applied.snapshot.services
        assert source.applied.snapshot.routes == again.applied.snapshot.routes
    refused = {each.key for each in source.layers.report.refused}
    bad = {"/graylb/" + key for key, each in source.keys.items() if key not in kept or kept[key] != each}
    assert refused | set(source.layers.report.pending) == bad


def test_what_is_stale_does_not_replace_what_is_newer() -> None:
    source = Source()
    source.put(users__instances__one=instance(1))
    before = source.put(users__instances__two=instance(2))
    old = Fragment("services/users/instances/one", b'{"address": "10.9.9.9:1", "version": "v1"}', 1)
    assert source.take(Update(1, {old.key: old}, whole=True, stale=True)) is before


@pytest.mark.parametrize("kind", ["list", "change"])
def test_all_keys_gone_at_once_are_held_and_one_that_goes_is_believed(kind: str) -> None:
    source = Source()
    source.put(users__instances__one=instance(1), orders__instances__one=instance(2), orders__service=ELSEWHERE)
    source.put(orders__instances__one=None, orders__service=None)
    assert (source.services, source.errors) == (["users"], [])
    source.put(users__instances__two=instance(3))
    if kind == "list":
        source.keys.clear()
        source.revision += 1
        source.list()
    else:
        source.put(users__instances__one=None, users__instances__two=None)
    assert len(source.service().instances) == 2
    (alarm,) = source.errors
    assert "went at once" in alarm
    source.list()  # again, and still held
    assert len(source.service().instances) == 2
    source.put(users__service={"stable": "v1"})  # somebody begins to restore; no instance yet
    assert len(source.service().instances) == 2
    source.put(users__instances__new=instance(7))
    assert [each.address for each in source.service().instances] == ["10.0.0.7:80"]
    assert source.errors == []
    source.put(users__service=None)
    source.put(users__instances__new=None)
    assert source.services == []


def test_another_store_counts_anew() -> None:
    source = Source()
    source.revision = 500
    source.put(users__instances__one=instance(1))
    assert source.applied is not None
    assert source.applied.revision == 501
    source.revision = 7
    source.keys = {}
    key = "services/users/instances/one"
    source.keys[key] = Fragment(key, b'{"address": "10.0.0.5:80", "version": "v1"}', 7)
    assert source.list().revision == 7
    assert source.service().instances[0].address == "10.0.0.5:80"


def test_the_revision_is_that_of_the_newest_change_in_force() -> None:
    source = Source()
    first = source.put(users__instances__one=instance(1))
    assert first.revision == source.revision
    assert source.put(users__instances__two=b"{") is first
    assert source.put(users__split={"v1": 1}) is first
    assert source.put(users__instances__two=instance(2)).revision == source.revision
    assert source.put(users__instances__two=None).revision == source.revision


def test_a_value_that_graylb_itself_stumbles_over_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    source.put(users__instances__one=instance(1))
    decode = fragments.keys.decode

    def stumble(suffix: str, value: bytes, *, prefix: str = "") -> Any:
        if b"odd" in value:
            raise RuntimeError("a bug")
        return decode(suffix, value, prefix=prefix)

    monkeypatch.setattr(fragments.keys, "decode", stumble)
    source.put(users__instances__one={"odd": 1}, users__instances__two=instance(2))
    assert len(source.service().instances) == 2
    (error,) = source.errors
    assert "/graylb/services/users/instances/one" in error
    assert "a bug" in error
