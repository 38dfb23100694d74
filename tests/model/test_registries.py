"""What frameworks write to etcd, read as they mean it; anything else is told apart without a surprise."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graylb.model import discovery, documents
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.registries import LAYOUTS, PREFIXES, Found, Layout, dedupe, names_in, parse, pick
from tests.model.registry_data import GOLDEN


def read(layout: Layout, rest: str, value: Any) -> tuple[Found, ...]:
    """Of `value` as JSON, below the layout's own prefix."""
    prefix = PREFIXES[layout]
    return parse(layout, prefix, f"{prefix}/{rest}" if prefix else rest, orjson.dumps(value))


def error(layout: Layout, rest: str, value: Any) -> str:
    with pytest.raises(ConfigErrors) as caught:
        read(layout, rest, value)
    return str(caught.value)


@pytest.mark.parametrize(("layout", "key", "value", "expected"), GOLDEN)
def test_what_each_framework_writes(layout: Layout, key: str, value: bytes, expected: tuple[Found, ...]) -> None:
    assert parse(layout, PREFIXES[layout], key, value) == expected
    if PREFIXES[layout]:
        assert parse(layout, PREFIXES[layout] + "/", key, value) == expected


def test_every_layout_has_an_example() -> None:
    assert {layout for layout, *_ in GOLDEN} == set(LAYOUTS) == PREFIXES.keys()


WORDS = (
    "name",
    "nodes",
    "address",
    "endpoints",
    "metadata",
    "version",
    "weight",
    "tags",
    "id",
    "network",
    "Op",
    "Addr",
)
DUBBO = ("Metadata", "ServiceName", "Host", "Port", "Weight", "Enable", "Tag", "ID")
texts = (
    st.sampled_from(["svc", "v1", "10.0.0.1:80", "http://[::1", "grpc://a:1?isSecure=true", "unix:/x", ""]) | st.text()
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda deeper: (
        st.lists(deeper, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS + DUBBO) | st.text(max_size=3), deeper, max_size=6)
    ),
    max_leaves=20,
)
rests = st.sampled_from(["svc/1", "d/svc/1", "svc/10.0.0.1:80", "svc.v2/1", "svc", "", "/", "//"]) | st.text()
raw = st.binary() | anything.map(lambda data: orjson.dumps(data, option=orjson.OPT_NON_STR_KEYS))


@given(st.sampled_from(LAYOUTS), rests, raw)
def test_nothing_but_the_declared_error(layout: Layout, rest: str, value: bytes) -> None:
    prefix = PREFIXES[layout]
    key = f"{prefix}/{rest}" if prefix else rest
    refused: tuple[ConfigError, ...] = ()
    found: tuple[Found, ...] = ()
    try:
        found = parse(layout, prefix, key, value)
    except ConfigErrors as caught:
        refused = caught.errors
    assert all(each.file == key and each.expected for each in refused)
    assert len({each.address for each in found}) == len(found)
    for each in found:
        assert each.service
        assert each.id
        assert 0 <= each.weight <= 1_000_000
        assert list(each.metadata) == sorted(each.metadata)


@given(st.sampled_from(LAYOUTS), st.text(), st.binary())
def test_any_key_at_all(layout: Layout, key: str, value: bytes) -> None:
    try:
        parse(layout, "/elsewhere", key, value)
    except ConfigErrors:
        return
    assert key.startswith("/elsewhere/")


def test_a_neighbour_whose_name_begins_alike_is_not_ours() -> None:
    value = {"id": "1", "name": "user", "endpoints": ["http://10.0.0.6:80"]}
    assert error("kratos", "user2/1", value) == (
        '/microservices/user2/1:1:1: $.name: got "user"; expected "user2", as the key says'
    )


@pytest.mark.parametrize("empty", [{"metadata": None, "endpoints": None}, {}, {"endpoints": []}])
def test_kratos_may_write_null(empty: dict[str, Any]) -> None:
    assert read("kratos", "user/1", {"id": "1", "name": "user", "version": "v1", **empty}) == ()


def test_kratos_schemes_and_weights() -> None:
    endpoints = ["http://10.0.0.6:80?isSecure=true", "grpcs://10.0.0.6:90?isSecure=true", "grpc://[FD00::1]:91"]
    value = {"id": "1", "name": "a/user", "metadata": {"weight": "0"}, "endpoints": endpoints}
    found = read("kratos", "a/user/1", value)
    assert [(each.scheme, each.address) for each in found] == [
        ("https", "10.0.0.6:80"),
        ("grpcs", "10.0.0.6:90"),
        ("grpc", "[fd00::1]:91"),
    ]
    assert {(each.service, each.id, each.weight) for each in found} == {("a/user", "1", 0)}
    assert pick(found, ("http", "grpc")) == found[2:]
    assert pick(found, ("http",)) == ()


def test_the_first_scheme_wins_and_instances_without_any_are_taken() -> None:
    http, grpc = Found("s", "1", "a:1", scheme="http"), Found("s", "1", "a:2", scheme="grpc")
    plain, other = Found("s", "2", "b:1"), Found("t", "1", "c:1", scheme="http")
    assert pick([http, grpc, plain, other], ("grpc", "http")) == (grpc, plain, other)
    assert pick([http, grpc, plain, other], ("http", "grpc")) == (http, plain, other)


def test_the_last_of_an_address_counts() -> None:
    old, new = Found("s", "1", "a:1", "v1"), Found("s", "2", "a:1", "v2")
    other, elsewhere = Found("t", "1", "a:1"), Found("s", "1", "a:1", domain="d")
    assert dedupe([old, other, new, elsewhere]) == (other, new, elsewhere)


def test_go_micro_names_with_slashes_are_dashed_in_keys() -> None:
    node = {"id": "a/b-1", "address": "10.0.0.5:80", "metadata": None}
    value = {"name": "a/b", "version": "latest", "metadata": {"env": "x", "own": "1"}, "nodes": [node, node]}
    assert read("go-micro", "a-b/a-b-1", value) == (
        Found("a-b", "a/b-1", "10.0.0.5:80", "latest", metadata=(("env", "x"), ("own", "1"))),
    )
    assert '$.name: got "a/b"; expected "ab", as the key says' in error("go-micro", "ab/1", value)
    assert "DOMAIN/SERVICE/NODE" in error("go-micro", "x/y/a-b/1", value)


def test_go_micro_of_a_node_without_an_address() -> None:
    value = {"name": "s", "nodes": [{"id": "1", "address": "10.0.0.5:80"}, {"id": "2"}]}
    assert '$.nodes[1].address: got ""; expected HOST:PORT' in error("go-micro", "s/1", value)
    assert read("go-micro", "s/1", {"name": "s", "nodes": None}) == ()


@pytest.mark.parametrize(
    ("name", "service", "version"),
    [
        ("user.rpc", "user.rpc", ""),
        ("user.rpc.v2", "user.rpc", "v2"),
        ("user.rpc/v2", "user.rpc", "v2"),
        ("user.rpc@v1.2.0-rc.1", "user.rpc", "v1.2.0-rc.1"),
        ("user-v10", "user", "v10"),
        ("v2", "v2", ""),
        ("user.video", "user.video", ""),
    ],
)
def test_go_zero_has_its_version_in_the_key(name: str, service: str, version: str) -> None:
    assert parse("go-zero", "", f"{name}/758", b"10.0.0.7:80") == (Found(service, "758", "10.0.0.7:80", version),)
    assert parse("go-zero", "/x/", f"/x/{name}/758", b"10.0.0.7:80\n")[0].service == service


@pytest.mark.parametrize(("given", "counts"), [(10, 10), (0, 10), (-5, 10), (None, 10), (250, 250), (20.0, 20)])
def test_kitex_weights(given: Any, counts: int) -> None:
    value = {"network": "tcp", "address": "10.0.0.9:80", "weight": given, "tags": None}
    assert read("kitex", "echo/10.0.0.9:80", value) == (Found("echo", "10.0.0.9:80", "10.0.0.9:80", weight=counts),)


def test_kitex_on_a_unix_socket() -> None:
    value = {"network": "unix", "address": "/run/echo.sock", "weight": 5, "tags": {}}
    assert read("kitex", "a/echo//run/echo.sock", value) == (
        Found("a/echo", "/run/echo.sock", "unix:/run/echo.sock", weight=5),
    )
    assert "$.network" in error("kitex", "echo/x", {**value, "network": "udp"})


@pytest.mark.parametrize("metadata", [None, "v2", ["v2"], {"version": None}])
def test_grpc_go_metadata_may_be_anything(metadata: Any) -> None:
    value = {"Op": 0, "Addr": "10.0.0.8:90", "Metadata": metadata}
    assert read("grpc-go", "orders/x", value) == (Found("orders", "x", "10.0.0.8:90"),)


def test_grpc_go_deleted() -> None:
    assert read("grpc-go", "orders/x", {"Op": 1, "Addr": "10.0.0.8:90"}) == ()
    assert "$.Op" in error("grpc-go", "orders/x", {"Op": 2, "Addr": "10.0.0.8:90"})


@pytest.mark.parametrize(
    ("more", "weight"),
    [
        ({}, 100),
        ({"Weight": 0}, 100),
        ({"Weight": -1}, 100),
        ({"Weight": 30}, 30),
        ({"Weight": 30, "Enable": False}, 0),
        ({"Weight": 30, "Healthy": False}, 0),
    ],
)
def test_dubbo_weights(more: dict[str, Any], weight: int) -> None:
    value = {"ServiceName": "shop", "Host": "fd00::1", "Port": 20, "Tag": "gray", "Metadata": None, **more}
    assert read("dubbo-go", "shop/x", value) == (
        Found("shop", "x", "[fd00::1]:20", weight=weight, metadata=(("tag", "gray"),)),
    )


def test_metadata_is_text() -> None:
    value = {"Addr": "a:1", "Metadata": {"n": 1, "yes": True, "deep": {"x": [1]}, "none": None, "": "x", "weight": "x"}}
    assert read("grpc-go", "s/1", value) == (
        Found("s", "1", "a:1", metadata=(("deep", '{"x":[1]}'), ("n", "1"), ("weight", "x"), ("yes", "true"))),
    )


@pytest.mark.parametrize(
    ("layout", "rest", "value", "said"),
    [
        ("kratos", "user/1", b"", "not valid JSON"),
        ("kratos", "user/1", b"[]", "$: got []; expected a mapping such as"),
        ("kratos", "user/1", b'{"name":"user","endpoints":[7]}', "$.endpoints[0]: got 7; expected a text"),
        ("kratos", "user/1", b'{"name":"user","endpoints":["10.0.0.1:8"]}', "expected a URL such as grpc://"),
        ("kratos", "user/1", b'{"name":"user","metadata":[1]}', "$.metadata: got a list; expected a mapping"),
        ("kratos", "user/1", b'{"name":"user","version":"a b"}', '$.version: got "a b"; expected a version'),
        ("go-zero", "758", b"10.0.0.7:80", "parts of the key are missing; expected SERVICE/ID"),
        ("go-zero", "user/758", b"10.0.0.7", '$: got "10.0.0.7"; expected HOST:PORT'),
        ("go-zero", "user/758", b"\xff", "not UTF-8; expected an address"),
        ("kitex", "e/1", b'{"address":"a:1","weight":"x"}', '$.weight: got "x"; expected a whole number'),
        ("dubbo-go", "s/1", b'{"Host":"a","Port":70000}', "$.Port: got 70000; expected a whole number from 1 to 65535"),
        ("dubbo-go", "s/1", b'{"ServiceName":"t"}', '$.ServiceName: got "t"; expected "s", as the key says'),
    ],
)
def test_errors_say_what_was_expected(layout: Layout, rest: str, value: bytes, said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(layout, "/p", f"/p/{rest}", value)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"/p/{rest}:1:")


def test_the_examples_of_the_page_are_what_frameworks_write() -> None:
    """Each is read as an instance of the very service that its registry maps."""
    page = (Path(__file__).parents[2] / "docs" / "registries.md").read_text()
    section = page.partition("## Each framework")[2]
    examples = re.findall(r"`registries: (\[.*?\])`.*?```console\n(.*?)```", section, re.DOTALL)
    assert [yaml.safe_load(settings)[0]["kind"] for settings, _ in examples] == list(LAYOUTS)
    for settings, commands in examples:
        text = f"{{listeners: [{{address: 127.0.0.1:0}}], etcd: {{}}, registries: {settings}}}"
        (part,) = documents.load(text, "x").registries
        for command in commands.splitlines():
            words = shlex.split(command)
            assert words[:3] == ["$", "etcdctl", "put"]
            (found,) = [
                reading
                for prefix, below in part.watched
                if words[3].startswith(prefix + below)
                and (reading := discovery.read(part, prefix, words[3], words[4].encode())).instances
            ]
            assert found.service == "users"
            assert not found.unversioned


def test_what_the_service_of_a_key_may_be_called() -> None:
    assert names_in("kratos", "a/b/1") == {"a", "a/b", "b"}
    assert names_in("go-zero", "user.rpc.v2/1") == {"user.rpc.v2", "user.rpc"}
    assert names_in("kitex", "stray") == set()


def test_a_scheme_that_is_not_served_is_worth_a_word() -> None:
    text = "{listeners: [{address: 127.0.0.1:0}], registries: [{kind: kratos, etcd: {}, schemes: [grpc, grpcs]}]}"
    (warning,) = documents.load(text, "x").warnings
    assert str(warning) == (
        "x:1:93: $.registries[0].schemes[1]: "
        "instances are asked without TLS, whatever grpcs says, unless their service has connections.tls"
    )
