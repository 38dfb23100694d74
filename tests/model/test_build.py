"""Document -> Snapshot: what each setting becomes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from graylb.model.build import SplitRequest, build, split_requests
from graylb.model.documents import Document, load
from graylb.model.snapshot import (
    Backoff,
    Condition,
    Connections,
    Hedge,
    Instance,
    Limits,
    Listener,
    Match,
    Redirect,
    Retries,
    RetryBudget,
    Route,
    Service,
    Snapshot,
    Split,
    StickyKey,
    Subset,
    Timeouts,
    Tunnels,
)
from tests.model.snapshots import snapshot_of


def document(service: dict[str, Any] | None = None, **top: Any) -> Document:
    whole = {"listeners": [{"address": "127.0.0.1:1"}], "services": {"users": {"stable": "v1", **(service or {})}}}
    return load(json.dumps({**whole, **top}), "x.json")


def users(**service: Any) -> Service:
    (found,) = snapshot_of(document(service)).services
    return found


def matched(**match: Any) -> Match:
    lists = {"ids": ["u1"]}
    return users(rules=[{"name": "r", "match": match, "to": "v1"}], lists=lists).rules[0].match


HEADER: dict[str, Any] = {"kind": "header", "name": "a"}


@pytest.mark.parametrize(
    ("value", "condition"),
    [
        ("b", Condition(op="exact", values=("b",), **HEADER)),
        ("", Condition(op="exact", values=("",), **HEADER)),
        (True, Condition(op="exact", values=("true",), **HEADER)),
        (5, Condition(op="exact", values=("5",), **HEADER)),
        (["b", 1, "b"], Condition(op="in", values=("b", "1"), **HEADER)),
        ({"exact": "b"}, Condition(op="exact", values=("b",), **HEADER)),
        ({"prefix": "b"}, Condition(op="prefix", values=("b",), **HEADER)),
        ({"suffix": "b"}, Condition(op="suffix", values=("b",), **HEADER)),
        ({"regex": "b+"}, Condition(op="regex", values=("b+",), **HEADER)),
        ({"present": True}, Condition(op="present", **HEADER)),
        ({"present": False}, Condition(op="present", negate=True, **HEADER)),
        ({"not": {"present": False}}, Condition(op="present", **HEADER)),
        ({"in": ["b", "c"]}, Condition(op="in", values=("b", "c"), **HEADER)),
        ({"in": "ids"}, Condition(op="in", list_name="ids", **HEADER)),
        ({"number": ">=1,<5"}, Condition(op="number", values=(">=1,<5",), **HEADER)),
        ({"number": 5}, Condition(op="number", values=("5",), **HEADER)),
        ({"semver": "^1.2"}, Condition(op="semver", values=("^1.2",), **HEADER)),
        ({"not": "b"}, Condition(op="exact", values=("b",), negate=True, **HEADER)),
        ({"not": ["b"]}, Condition(op="in", values=("b",), negate=True, **HEADER)),
        ({"not": {"in": "ids"}}, Condition(op="in", list_name="ids", negate=True, **HEADER)),
        ({"not": {"not": {"not": {"prefix": "b"}}}}, Condition(op="prefix", values=("b",), negate=True, **HEADER)),
    ],
)
def test_operators(value: Any, condition: Condition) -> None:
    assert matched(headers={"A": value}) == Match(all=(condition,))


@pytest.mark.parametrize(
    ("match", "condition"),
    [
        ({"path": "/a"}, Condition("path", "exact", ("/a",))),
        ({"path": {"prefix": "/a/"}}, Condition("path", "path_prefix", ("/a",))),
        ({"path": {"prefix": "/"}}, Condition("path", "path_prefix", ("/",))),
        ({"path": {"not": {"prefix": "/a"}}}, Condition("path", "path_prefix", ("/a",), negate=True)),
        ({"path": {"suffix": ".js"}}, Condition("path", "suffix", (".js",))),
        ({"method": ["GET", "M-SEARCH"]}, Condition("method", "in", ("GET", "M-SEARCH"))),
        ({"cookies": {"Uid": "1"}}, Condition("cookie", "exact", ("1",), "Uid")),
        ({"query": {"Q x": {"present": True}}}, Condition("query", "present", (), "Q x")),
        ({"metadata": {"X-Tenant": "a"}}, Condition("metadata", "exact", ("a",), "x-tenant")),
        ({"grpc": {"service": "a.B"}}, Condition("grpc_service", "exact", ("a.B",))),
        ({"grpc": {"method": {"prefix": "Get"}}}, Condition("grpc_method", "prefix", ("Get",))),
        ({"client_ip": "10.0.0.1"}, Condition("client_ip", "cidr", ("10.0.0.1/32",))),
        (
            {"client_ip": ["10.0.0.0/8", "2001:DB8::/32"]},
            Condition("client_ip", "cidr", ("10.0.0.0/8", "2001:db8::/32")),
        ),
        ({"client_ip": {"not": "::1"}}, Condition("client_ip", "cidr", ("::1/128",), negate=True)),
        (
            {"client_certificate": {"suffix": ".test"}},
            Condition("header", "suffix", (".test",), ":client-certificate"),
        ),
        ({"api_version": 1}, Condition("api_version", "exact", ("v1",))),
        ({"api_version": ["v1", "2"]}, Condition("api_version", "in", ("v1", "v2"))),
        ({"device": {"not": "bot"}}, Condition("device", "exact", ("bot",), negate=True)),
        ({"mark": {"present": False}}, Condition("mark", "present", negate=True)),
    ],
)
def test_kinds(match: dict[str, Any], condition: Condition) -> None:
    assert matched(**match) == Match(all=(condition,))
    assert matched(**{"not": match}) == Match(none=((condition,),))
    assert matched(**{"not": [match, {"path": "/"}]}) == Match(
        none=((condition,), (Condition("path", "exact", ("/",)),))
    )


def test_an_empty_match_holds_for_everything() -> None:
    assert matched() == Match()


def test_rules_stand_in_decision_order() -> None:
    rules = [{"name": n, "priority": p, "match": {}, "to": "v1"} for n, p in [("a", 0), ("b", 5), ("c", 0), ("d", 5)]]
    rules.append({"name": "e", "match": {}, "to": "v1"})
    assert [rule.name for rule in users(rules=rules).rules] == ["b", "d", "a", "c", "e"]


def test_targets() -> None:
    to = {"version": "v2", "semver": ">=2", "metadata": {"z": 1, "a": True}}
    rules = [{"name": "a", "match": {}, "to": to, "fallback": "any"}, {"name": "b", "match": {}, "to": 2}]
    first, second = users(rules=rules).rules
    assert first.to == Subset("v2", ">=2", (("a", "true"), ("z", "1")))
    assert first.fallback == "any"
    assert second.to == Subset("2")
    assert second.fallback is None


def test_instances() -> None:
    instances = [
        {"address": "[0::1]:080", "version": "v1", "weight": 0, "metadata": {"b": 1, "a": "x"}, "zone": "a"},
        {"address": "localhost:9", "version": 2},
    ]
    assert users(instances=instances).instances == (
        Instance("[::1]:80", "v1", 0, (("a", "x"), ("b", "1")), "a"),
        Instance("127.0.0.1:9", "2", 100),
    )


def test_service_settings() -> None:
    sticky = [{"metadata": "X"}, {"header": "Y"}, {"cookie": "Z"}, {"query": "q"}, {"client_ip": True}]
    found = users(sticky=sticky, fallback="strict", policy="least_request", timeouts={"connect": "250ms", "idle": "2m"})
    assert found.sticky == (
        StickyKey("metadata", "x"),
        StickyKey("header", "y"),
        StickyKey("cookie", "Z"),
        StickyKey("query", "q"),
        StickyKey("client_ip"),
    )
    assert (found.fallback, found.policy) == ("strict", "least_request")
    assert found.timeouts == Timeouts(0.25, 15.0, 120.0)


def test_defaults_are_those_of_the_snapshot() -> None:
    found = snapshot_of(document())
    bare = Snapshot(1, found.listeners, found.routes, (Service("users", "v1", None),))
    assert found == bare
    assert found.routes == (Route("users", "*", "prefix", "/", service="users"),)


def test_top_level_settings() -> None:
    found = snapshot_of(
        document(
            admin={"address": "127.0.0.1:0"},
            workers="auto",
            decision_headers=True,
            forwarding={"x_forwarded": "off", "forwarded": "replace", "via": True},
            limits={"head_bytes": "8KiB", "uri_bytes": 4096, "idle_timeout": "1.5m", "upstream_idle_connections": 0},
        )
    )
    assert (found.admin, found.workers, found.decision_headers) == ("127.0.0.1:0", 0, True)
    assert (found.forwarding.x_forwarded, found.forwarding.forwarded, found.forwarding.via) == ("off", "replace", True)
    assert found.limits == replace(found.limits, head_bytes=8192, uri_bytes=4096, idle_timeout=90.0, headers=100)
    assert found.services[0].connections == Connections(idle=0)


def test_limits_of_clients() -> None:
    assert snapshot_of(document()).limits == Limits()
    assert snapshot_of(document(limits={"client_connections": "auto"})).limits == Limits()
    assert snapshot_of(document(limits={"client_connections": 5})).limits == Limits(client_connections=5)
    assert snapshot_of(document(pin_workers=True)).pin_workers is True


@pytest.mark.parametrize(
    ("listener", "found"),
    [
        ({"address": "localhost:0"}, Listener("127.0.0.1:0")),
        ({"address": "LocalHost.:0"}, Listener("127.0.0.1:0")),
        ({"address": "[0::]:80", "role": "inbound"}, Listener("[::]:80", "inbound", "inbound")),
        ({"address": "1.2.3.4:80", "role": "inbound", "name": "in.2"}, Listener("1.2.3.4:80", "inbound", "in.2")),
        ({"address": "unix:/run/x.sock"}, Listener("unix:/run/x.sock")),
        ({"address": "unix:/run/x.sock", "mode": "0660"}, Listener("unix:/run/x.sock", mode=0o660)),
        ({"address": "unix:/run/x.sock", "mode": 600}, Listener("unix:/run/x.sock", mode=0o600)),
        (
            {"address": "unix:/" + "x" * 106, "proxy_protocol": True},
            Listener("unix:/" + "x" * 106, proxy_protocol=True),
        ),
        ({"address": "[::]:80", "proxy_protocol": False}, Listener("[::]:80")),
        (
            {"address": "[::]:80", "proxy_protocol": {"trusted": ["10.0.0.0/8", "::1"]}},
            Listener("[::]:80", proxy_protocol=True, trusted=("10.0.0.0/8", "::1/128")),
        ),
        ({"address": "[::]:80", "grpc_health": True}, Listener("[::]:80", grpc_health=True)),
        ({"address": "[::]:80", "protocols": ["http/1.1"]}, Listener("[::]:80", protocols=("http/1.1",))),
    ],
)
def test_listeners(listener: dict[str, Any], found: Listener) -> None:
    assert snapshot_of(document(listeners=[listener])).listeners == (found,)


@pytest.mark.parametrize("written", ["0660", '"0660"', "660", "0o660"])
def test_a_mode_is_octal_however_it_is_written(written: str) -> None:
    text = f"listeners: [{{address: 'unix:/x', mode: {written}}}]\nservices: {{a: {{stable: v1}}}}\n"
    assert snapshot_of(load(text, "x")).listeners[0].mode == 0o660


def test_instances_on_unix_sockets() -> None:
    addresses = ["unix:/run/a b.sock".replace(" ", "-"), "unix:80"]  # the second is a port of a host of that name
    instances = [{"address": each, "version": "v1"} for each in addresses]
    assert [each.address for each in users(instances=instances).instances] == addresses


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ({}, Connections()),
        ({"idle": 3}, Connections(idle=3)),
        (
            {
                "max": 9, "queue": 0, "queue_timeout": "250ms", "warm": 2, "idle": 4, "idle_timeout": "2m",
                "proxy_protocol": "off",
            },
            Connections(9, 0, 0.25, 2, 4, 120.0),
        ),
        ({"proxy_protocol": "v2"}, Connections(proxy_protocol="v2")),
        ({"protocol": "http1", "streams": 7}, Connections(protocol="http1", streams=7)),
    ],
)  # fmt: skip
def test_connections(written: dict[str, Any], found: Connections) -> None:
    assert users(connections=written).connections == found


def test_retries() -> None:
    assert users().retries == Retries()
    written = {"grpc_status": ["unavailable", "aborted", "unavailable"], "attempts": 3}
    assert users(retries=written).retries == Retries(grpc_status=("aborted", "unavailable"), attempts=3)
    written = {
        "on": ["5xx", "reset", "5xx"], "statuses": [429, 503, 429], "methods": ["PUT", "GET", "PUT"],
        "per_try_timeout": "250ms", "backoff": {"base": 0}, "budget": {"percent": 50, "min_per_second": 0.5},
        "other_version": True, "same_instance": True, "buffer": "8KiB", "hedge": {"delay": "30ms"},
    }  # fmt: skip
    assert users(retries=written).retries == Retries(
        on=("reset", "5xx"),
        statuses=(429, 503),
        methods=("GET", "PUT"),
        per_try_timeout=0.25,
        backoff=Backoff(0.0, 0.25),
        budget=RetryBudget(50.0, 0.5),
        other_version=True,
        same_instance=True,
        buffer=8192,
        hedge=Hedge(0.03),
    )
    assert users(retries={"per_try_timeout": 0, "on": []}).retries == Retries(on=())


def test_the_time_of_a_whole_request() -> None:
    assert users().timeouts.request == 0
    assert users(timeouts={"request": "30s"}).timeouts.request == 30
    assert users(timeouts={"request": 0}).timeouts.request == 0


def test_idle_connections_are_those_of_the_limits_unless_the_service_says() -> None:
    limits = {"upstream_idle_connections": 7, "upstream_idle_timeout": "9s"}
    (found,) = snapshot_of(document({"connections": {"idle": 3}}, limits=limits)).services
    assert found.connections == Connections(idle=3, idle_timeout=9.0)
    (found,) = snapshot_of(document({"connections": {"idle_timeout": 1}}, limits=limits)).services
    assert found.connections == Connections(idle=7, idle_timeout=1.0)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("keep", Tunnels()),
        ("cut", Tunnels("cut")),
        ("drain 30s", Tunnels("drain", 30.0)),
        ("drain  1.5 m", Tunnels("drain", 90.0)),
        ({"drain": "250ms"}, Tunnels("drain", 0.25)),
        ({"drain": 5}, Tunnels("drain", 5.0)),
    ],
)
def test_tunnels(written: Any, found: Tunnels) -> None:
    assert users(tunnels=written).tunnels == found
    assert load(json.dumps(document({"tunnels": written}).to_data()), "x").services["users"].tunnels == found


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_split_requests() -> None:
    rules = [
        {"name": "ab", "match": {}, "split": {"weights": {"a": 1, "b": 0, "c": 2}, "salt": "s"}},
        {"name": "plain", "match": {}, "to": "v1"},
    ]
    slots = "v1:0-4999 v2:5000-9999"
    split = {"weights": {"v2": 50, "v1": 50, "v3": 0}, "salt": "x", "slots": slots}
    assert split_requests(document({"split": split, "rules": rules})) == {
        ("users", None): SplitRequest("users", None, (("v2", 50.0), ("v1", 50.0)), "x", slots, "v1"),
        ("users", "ab"): SplitRequest("users", "ab", (("a", 1.0), ("c", 2.0)), "s", None, "v1"),
    }
    assert split_requests(document()) == {}


def test_zero_weights_are_left_out_of_what_the_store_gives() -> None:
    whole = document({"split": {"v1": 1, "v2": 0}})
    found = build(whole, {("users", None): Split((("v1", 1.0), ("v2", 0.0)), "s", "v1:0-9999")}, 7)
    assert found.services[0].split == Split((("v1", 1.0),), "s", "v1:0-9999")
    assert found.revision == 7


def test_the_store_may_add_a_split_but_must_give_those_asked_for() -> None:
    split = Split((("v1", 1.0),), "s", "v1:0-9999")
    assert build(document(), {("users", None): split}, 1).services[0].split == split
    with pytest.raises(KeyError):
        build(document({"split": {"v1": 1}}), {}, 1)


@pytest.mark.parametrize(
    ("service", "stable"),
    [
        ({"stable": "v9", "split": {"v1": 1}}, "v9"),
        ({"split": {"v1": 5, "v2": 95}}, "v2"),
        ({"split": {"v2": 50, "v1": 50}}, "v2"),
        (
            {"instances": [{"address": "127.0.0.1:1", "version": "v3"}, {"address": "127.0.0.1:2", "version": "v3"}]},
            "v3",
        ),
        ({"split": {"v1": 1}, "instances": [{"address": "127.0.0.1:1", "version": "v3"}]}, "v1"),
    ],
)
def test_the_stable_version_is_inferred(service: dict[str, Any], stable: str) -> None:
    whole = {"listeners": [{"address": "127.0.0.1:1"}], "services": {"users": service}}
    assert snapshot_of(load(json.dumps(whole), "x")).services[0].stable == stable


# ---- routes ----------------------------------------------------------------------------------------------------------


def routes_of(*routes: dict[str, Any], **service: Any) -> tuple[Route, ...]:
    return snapshot_of(document(service, routes=list(routes))).routes


def test_the_short_form_makes_a_route_for_each_host_and_path() -> None:
    paths = ["/a/", {"exact": "/a/"}, {"regex": "/[0-9]"}, {"prefix": "/"}]
    assert routes_of(hosts=["A.example", "*.b.example"], paths=paths) == tuple(
        Route("users", host, kind, path, service="users")  # type: ignore[arg-type]
        for host in ("a.example", "*.b.example")
        for kind, path in (("prefix", "/a"), ("exact", "/a/"), ("regex", "/[0-9]"), ("prefix", "/"))
    )


def test_a_service_that_routes_name_has_its_short_form_only_when_it_gives_one() -> None:
    route = {"service": "users", "paths": ["/x"]}
    named = Route("route-1", "*", "prefix", "/x", service="users")
    assert routes_of(route) == (named,)
    assert routes_of(route, hosts=["*"]) == (named, Route("users", "*", "prefix", "/", service="users"))
    assert routes_of(route, paths=["/y"]) == (named, Route("users", "*", "prefix", "/y", service="users"))


def test_route_conditions() -> None:
    route = {
        "name": "r",
        "service": "users",
        "methods": ["POST", "GET", "POST"],
        "headers": {"A": ["x", "y"]},
        "query": {"Q": {"not": "1"}},
        "rewrite": {"prefix": "/v1/"},
        "paths": ["/x"],
    }
    conditions = (
        Condition("method", "in", ("GET", "POST")),
        Condition("header", "in", ("x", "y"), "a"),
        Condition("query", "exact", ("1",), "Q", True),
    )
    assert routes_of(route) == (
        Route("r", "*", "prefix", "/x", Match(conditions), service="users", rewrite_prefix="/v1"),
    )
    assert routes_of({"service": "users", "methods": ["GET"]})[0].match.all == (Condition("method", "exact", ("GET",)),)


def test_routes_by_listener() -> None:
    listeners = [{"address": "127.0.0.1:1", "name": name} for name in ("a", "b", "c")]
    listeners[0]["address"], listeners[1]["address"] = "127.0.0.1:2", "127.0.0.1:3"
    routes = [
        {"service": "users", "listeners": ["b", "a", "b"]},
        {"service": "users", "listeners": ["c"]},  # the same host and path, but on another listener
    ]
    found = snapshot_of(document(listeners=listeners, routes=routes))
    assert [(each.name, each.listeners) for each in found.routes] == [("route-1", ("a", "b")), ("route-2", ("c",))]
    found = snapshot_of(document({"listeners": ["c"]}, listeners=listeners, routes=routes[:1]))
    assert [(each.name, each.listeners) for each in found.routes] == [("route-1", ("a", "b")), ("users", ("c",))]


def test_redirects() -> None:
    found, *_ = routes_of(
        {"redirect": {"status": 308, "scheme": "https", "host": "B.example:8443", "path": "/x"}}, hosts=["a"]
    )
    assert found.redirect == Redirect(308, "https", "b.example:8443", "/x")
    assert found.service is None
    found, *_ = routes_of({"redirect": {"host": "[::1]"}, "paths": ["/x"]}, paths=["/y"])
    assert found.redirect == Redirect(302, None, "[::1]", None)


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("*", "*"),
        ("*.Example", "*.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "[::1]"),
        ("[0::1]", "[::1]"),
        ("_a.b", "_a.b"),
    ],
)
def test_hosts(host: str, canonical: str) -> None:
    assert routes_of(hosts=[host])[0].host == canonical


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_lists() -> None:
    files = {"a.txt": "\ufeff# people\n u1 \r\n\nu2 # on call\nu#3\n#u4\nu1\nu5\t# x\n", "b.txt": ""}
    whole = {"listeners": [{"address": "127.0.0.1:1"}]}
    lists = {"z": ["u", 1, True, "u"], "a": {"file": "a.txt"}, "b": {"file": "b.txt"}, "c": [], "d": {"file": "a.txt"}}
    text = json.dumps({**whole, "services": {"users": {"stable": "v1", "lists": lists}}})
    found = load(text, "x", files.__getitem__)
    assert found.files == ("a.txt", "b.txt")
    a = ("u1", "u2", "u#3", "u5")
    assert snapshot_of(found).services[0].lists == (("a", a), ("b", ()), ("c", ()), ("d", a), ("z", ("u", "1", "true")))


def test_a_list_of_100_000_ids_is_whole() -> None:
    ids = tuple(f"user-{number}" for number in range(100_000))
    block = "".join(f"        - {each}\n" for each in ids)
    text = "listeners: [{address: 127.0.0.1:1}]\nservices:\n  users:\n    stable: v1\n    lists:\n"
    text += f"      inline:\n{block}      file: {{file: ids.txt}}\n"
    found = load(text, "x", lambda name: "\n".join(ids))
    assert snapshot_of(found).services[0].lists == (("file", ids), ("inline", ids))
