"""Presets: what they fill in, that the document wins, and that a document in full is the same document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from graylb.model import effective, presets
from graylb.model.base import Part
from graylb.model.documents import Document, load
from graylb.model.problems import ConfigErrors
from graylb.model.schema import json_schema
from graylb.model.snapshot import Forwarding, Instance, Limits, Listener, Route, Service, Snapshot
from graylb.model.source_map import parse
from tests.model import generated, goldens
from tests.model.schemas import fits
from tests.model.snapshots import snapshot_of

CONFIG = Path(__file__).parents[2] / "config"
SCHEMA = json_schema()
USERS = {"stable": "v1", "instances": [{"address": "10.0.0.1:80", "version": "v1"}]}
SIDECAR = {"service": "users", "version": "v2", "app": "127.0.0.1:8000"}


def read_file(name: str) -> str:
    return (CONFIG / name).read_text(encoding="utf-8")


def of(data: dict[str, Any], preset: presets.Name | None = None) -> Snapshot:
    return snapshot_of(load(json.dumps(data), "x", preset=preset))


# ---- a document in full ----------------------------------------------------------------------------------------------


def check_in_full(document: Document) -> str:
    """What is printed gives an equal snapshot, and is in full itself."""
    text = effective.to_yaml(effective.full(document))
    again = load(text, "printed", read_file)
    assert snapshot_of(again) == snapshot_of(document)
    assert not list(left_out(again))
    assert effective.to_yaml(effective.full(again)) == text
    assert fits(parse(text, "printed").data, SCHEMA, SCHEMA)
    return text


def left_out(value: Any) -> Iterator[tuple[str, str]]:
    """Settings that have a value which was not written. Those without have none that could be."""
    if isinstance(value, Part):
        for name in type(value).model_fields:
            if getattr(value, name) is not None and name not in value.model_fields_set:
                yield type(value).__name__, name
        value = value.given()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
        yield from left_out(each)


@pytest.mark.parametrize("name", ["edge", "sidecar"])
def test_the_presets_in_full(name: str) -> None:
    text = read_file(f"{name}.yaml")
    full = check_in_full(load(text, name, read_file))
    assert "preset" not in parse(full, name).data
    goldens.check(f"{name}.full.yaml", full)


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.stem)
def test_samples_in_full(path: Path) -> None:
    check_in_full(load(path.read_text(), path.name, read_file))


@settings(max_examples=40, deadline=None)
@given(generated.DOCUMENTS)
def test_any_document_in_full(data: dict[str, Any]) -> None:
    check_in_full(load(json.dumps(data), "x"))


@settings(max_examples=40, deadline=None)
@given(generated.PRESET_DOCUMENTS)
def test_any_document_with_a_preset_in_full(data: dict[str, Any]) -> None:
    document = load(json.dumps(data), "x")
    check_in_full(document)
    assert fits(data, SCHEMA, SCHEMA)
    assert load(json.dumps(document.to_data()), "y") == document  # as the store takes it, with commands' changes


@pytest.mark.parametrize(
    "word", ["1e3", "0o17", "0x1F", "off", "yes", "017", "1:30", "null", "~", "2024-11-05", "", "a: b"]
)
def test_texts_stay_texts(word: str) -> None:
    rules = [{"name": "r", "match": {"headers": {"a": word}}, "to": "v1"}]
    document = load(json.dumps({"preset": "edge", "services": {"users": {**USERS, "rules": rules}}}), "x")
    again = load(effective.to_yaml(effective.full(document)), "x")
    assert snapshot_of(again).services[0].rules[0].match.all[0].values == (word,)


def test_a_default_name_that_another_route_has_is_not_spelt_out() -> None:
    routes = [{"hosts": ["a"], "service": "users"}, {"name": "route-1", "hosts": ["b"], "service": "users"}]
    document = load(json.dumps({"preset": "edge", "services": {"users": USERS}, "routes": routes}), "x")
    assert [route.get("name") for route in effective.full(document)["routes"]] == [None, "route-1"]
    check_in_full(document)


# ---- edge ------------------------------------------------------------------------------------------------------------


def test_an_edge_that_says_nothing() -> None:
    found = of({"preset": "edge", "services": {"users": USERS}})
    assert found == replace(
        of({"listeners": [{"address": "0.0.0.0:8080"}], "services": {"users": USERS}}),
        admin="127.0.0.1:9900",
        workers=0,
        forwarding=Forwarding("replace", "replace", via=True),
        limits=Limits(head_bytes=32768, uri_bytes=8192, header_timeout=5.0, body_timeout=30.0),
    )


def test_what_an_edge_says_wins() -> None:
    said = {
        "listeners": [{"address": "[::]:80", "name": "six"}],
        "admin": {"address": "127.0.0.1:1"},
        "workers": 1,
        "decision_headers": True,
        "forwarding": {"via": False},
        "limits": {"header_timeout": 10, "headers": 50, "upstream_idle_connections": 5},
        "services": {"users": USERS},
    }
    found = of(said, "edge")
    assert found == replace(
        of(said),
        forwarding=Forwarding("replace", "replace", via=False),
        limits=Limits(32768, 50, 8192, 10.0, body_timeout=30.0),
    )


def test_the_preset_of_the_command_line_is_that_of_the_document() -> None:
    for preset in ({"preset": "edge"}, {"preset": "sidecar", "sidecar": SIDECAR}, {"sidecar": SIDECAR}):
        data = {**preset, "services": {"cart": USERS}}
        name: presets.Name = "edge" if preset.get("preset") == "edge" else "sidecar"
        without = {key: value for key, value in data.items() if key != "preset"}
        assert of(data) == of(data, name) == of(without, name)


@pytest.mark.parametrize(
    ("data", "asked", "text"),
    [
        (
            {"preset": "edge"},
            "sidecar",
            "$.preset: the document is for preset edge; expected sidecar, as --sidecar asks",
        ),
        ({"sidecar": SIDECAR}, "edge", "$.sidecar: the document is for preset sidecar; expected edge, as --edge asks"),
        ({}, "sidecar", "$.sidecar: missing; expected {service: NAME, version: VERSION, app: ADDRESS:PORT}"),
    ],
)
def test_a_preset_that_does_not_fit(data: dict[str, Any], asked: presets.Name, text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        of({**data, "services": {"users": USERS}}, asked)
    assert [str(error).partition(": ")[2] for error in caught.value.errors] == [text]


# ---- sidecar ---------------------------------------------------------------------------------------------------------


def test_a_sidecar_that_says_nothing() -> None:
    """The local app only: the outbound side leads nowhere."""
    found = of({"sidecar": SIDECAR})
    assert found == Snapshot(
        revision=1,
        listeners=(
            Listener("0.0.0.0:15006", "inbound", "inbound"),
            Listener("127.0.0.1:15001", "outbound", "outbound"),
        ),
        routes=(Route("users-local", "*", "prefix", "/", service="users-local", listeners=("inbound",)),),
        services=(Service("users-local", "v2", None, instances=(Instance("127.0.0.1:8000", "v2"),)),),
        admin="127.0.0.1:15000",
    )


def test_other_services_by_their_names_on_the_outbound_side() -> None:
    services = {
        "Cart": USERS,
        "users": {**USERS, "split": {"v1": 9, "v2": 1}},  # the local service, its other versions and its split
        "prices": {**USERS, "hosts": ["prices.example"], "paths": ["/p"]},
        "edge": {**USERS, "listeners": ["inbound"]},
        "routed": USERS,
    }
    routes = [{"name": "r", "hosts": ["r.example"], "service": "routed"}]
    found = of({"sidecar": {**SIDECAR, "namespace": "Shop", "domain": "corp"}, "services": services, "routes": routes})
    assert {(each.name, each.host, each.path, each.listeners) for each in found.routes} == {
        ("r", "r.example", "/", ("outbound",)),
        ("users-local", "*", "/", ("inbound",)),
        ("prices", "prices.example", "/p", ("outbound",)),
        *(
            (name, name.lower() + rest, "/", (side,))
            for name, side in (("Cart", "outbound"), ("users", "outbound"), ("edge", "inbound"))
            for rest in ("", ".shop", ".shop.svc", ".shop.svc.corp")
        ),
    }
    assert [each.host for each in of({"sidecar": SIDECAR, "services": {"cart": USERS}}).routes] == ["cart", "*"]


def test_the_inbound_service_may_say_more() -> None:
    local = {"timeouts": {"response": "60s"}, "connections": {"max": 7}, "paths": ["/api"]}
    found = of({"sidecar": SIDECAR, "services": {"users-local": local}})
    (service,) = found.services
    assert (service.timeouts.response, service.connections.max) == (60.0, 7)
    assert service.instances == (Instance("127.0.0.1:8000", "v2"),)
    assert [(each.host, each.path, each.listeners) for each in found.routes] == [("*", "/api", ("inbound",))]


@pytest.mark.parametrize(
    ("listeners", "part", "found"),
    [
        ([], {"inbound": "[::]:1"}, [("[::]:1", "inbound"), ("127.0.0.1:15001", "outbound")]),
        ([("127.0.0.1:2", "inbound")], {}, [("127.0.0.1:2", "inbound"), ("127.0.0.1:15001", "outbound")]),
        (
            [("127.0.0.1:2", "inbound")],
            {"inbound": "[::]:1"},
            [("127.0.0.1:2", "inbound"), ("[::]:1", "inbound"), ("127.0.0.1:15001", "outbound")],
        ),
        (
            [("127.0.0.1:2", "edge")],
            {"outbound": "unix:/x"},
            [("127.0.0.1:2", "edge"), ("0.0.0.0:15006", "inbound"), ("unix:/x", "outbound")],
        ),
    ],
)
def test_the_two_sides(listeners: list[tuple[str, str]], part: dict[str, str], found: list[tuple[str, str]]) -> None:
    own = {"listeners": [{"address": at, "role": role} for at, role in listeners]} if listeners else {}
    snapshot = of({**own, "sidecar": {**SIDECAR, **part}})
    assert [(each.address, each.name) for each in snapshot.listeners] == found
    assert all(each.role == each.name for each in snapshot.listeners)


def test_errors_stand_where_the_text_is() -> None:
    text = """
sidecar: {service: users, version: v2, app: 127.0.0.1:8000}
listeners:
  - {address: 127.0.0.1:15001}
services:
  cart:
    stable: v1
    connections: {max: 1, warm: 2}
  search: {hosts: [cart], stable: v1}
routes:
  - {hosts: [a.example], service: cat, listeners: [outbuond]}
"""
    with pytest.raises(ConfigErrors) as caught:
        load(text, "x")
    assert [(error.line, error.path) for error in caught.value.errors] == [
        (4, "$.listeners[0].address"),
        (8, "$.services.cart.connections.warm"),
        (9, "$.services.search"),
        (11, "$.routes[0].service"),
        (11, "$.routes[0].listeners[0]"),
    ]
