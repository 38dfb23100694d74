"""Presets in processes: a sidecar between an app and its neighbours, an edge by option, and live change of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control import parts
from tests.control.running import started
from tests.integration import proxies
from tests.integration.client import Client, Response, request
from tests.integration.proxies import Document, Proxy, until
from tests.integration.upstream import Call, Upstream, greet, running

CART = ("cart", "CART:8000", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local")


class Sidecar:
    """The local app is `app`, version v2 of users; its neighbours are two versions of cart, and users v1."""

    def __init__(self, folder: Path, upstreams: list[Upstream]) -> None:
        self.app, self.cart1, self.cart2, self.users1 = upstreams
        self.app.on("/chain", self.call_cart)
        self.proxy = Proxy(folder, self.document())
        self.inbound, self.outbound = json.loads(self.proxy.ports_file.read_bytes())["listeners"]

    def document(self) -> Document:
        def neighbour(*versions: Upstream, **more: Any) -> dict[str, Any]:
            instances = [{"address": each.address, "version": f"v{n}"} for n, each in enumerate(versions, 1)]
            return {"stable": "v1", "instances": instances, **more}

        tester = {"name": "tester", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}
        return {
            "preset": "sidecar",
            "sidecar": {
                "service": "users", "version": "v2", "app": self.app.address, "namespace": "shop",
                "inbound": "127.0.0.1:0", "outbound": "127.0.0.1:0",
            },
            "admin": {"address": "127.0.0.1:0"},
            "decision_headers": True,
            "services": {
                "cart": neighbour(self.cart1, self.cart2, split={"v1": 50, "v2": 50}, rules=[tester]),
                "users": neighbour(self.users1),
            },
        }  # fmt: skip

    def ask(self, side: str, host: str, target: str = "/", *headers: str) -> Response:
        with Client(side) as client:
            return client.send(request("GET", target, host, headers)).response()

    def call_cart(self, call: Call) -> None:
        """What the app does for /chain: its own call of cart, through the outbound side."""
        answer = self.ask(self.outbound, "cart", "/basket", "user-group: beta")
        call.answer(
            200, f"cart {answer.get('x-graylb-version')} says {answer.body.decode()}".encode(), "x-upstream: app"
        )


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with running("app", "cart-v1", "cart-v2", "users-v1") as upstreams:
        made = Sidecar(tmp_path_factory.mktemp("sidecar"), upstreams)
        try:
            yield made
        except BaseException:
            made.proxy.kill()
            raise
        made.proxy.stop()


@pytest.mark.parametrize(
    "host", ["users", "users.shop", "cart", "cart.shop.svc.cluster.local", "10.9.8.7:15006", "any.example"]
)
def test_whatever_comes_in_goes_to_the_app(sidecar: Sidecar, host: str) -> None:
    answer = sidecar.ask(sidecar.inbound, host, "/any/path")
    assert (answer.get("x-upstream"), answer.get("x-graylb-version")) == ("app", "v2")
    assert answer.get("x-graylb-service") == "users-local"


@pytest.mark.parametrize("host", CART)
def test_calls_go_to_other_services_by_name(sidecar: Sidecar, host: str) -> None:
    answer = sidecar.ask(sidecar.outbound, host, "/", "user-group: beta")
    assert (answer.get("x-upstream"), answer.get("x-graylb-rule")) == ("cart-v2", "tester")
    found = {sidecar.ask(sidecar.outbound, host).get("x-upstream") for _ in range(12)}
    assert found == {"cart-v1", "cart-v2"}


def test_calls_as_to_a_forward_proxy(sidecar: Sidecar) -> None:
    """What clients send that know the sidecar as http_proxy."""
    answer = sidecar.ask(sidecar.outbound, "cart.shop", "http://cart.shop/x", "user-group: beta")
    assert (answer.status, answer.get("x-upstream")) == (200, "cart-v2")
    assert sidecar.cart2.requests[-1].target == "/x"


def test_the_local_service_is_one_thing_from_outside_and_another_from_inside(sidecar: Sidecar) -> None:
    assert sidecar.ask(sidecar.inbound, "users").get("x-upstream") == "app"
    assert sidecar.ask(sidecar.outbound, "users").get("x-upstream") == "users-v1"


@pytest.mark.parametrize("host", ["any.example", "users-local", "cart.example", "cart.shop.example"])
def test_calls_to_nobody_we_know_get_404(sidecar: Sidecar, host: str) -> None:
    assert (sidecar.ask(sidecar.outbound, host).status, sidecar.ask(sidecar.inbound, host).status) == (404, 200)


def test_a_whole_chain(sidecar: Sidecar) -> None:
    """From outside to the app, whose own call goes to the version of cart that its rule names."""
    answer = sidecar.ask(sidecar.inbound, "users.shop", "/chain")
    assert (answer.status, answer.body) == (200, b"cart v2 says hello")
    assert sidecar.cart2.requests[-1].target == "/basket"


def test_explain_by_listener_says_what_the_sidecar_does(sidecar: Sidecar) -> None:
    for listener, service in (("inbound", "users-local"), ("outbound", "cart")):
        done = proxies.cli(
            "explain", "-c", sidecar.proxy.file, "--json", "--listener", listener, "--header", "Host: cart.shop"
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["service"] == service


def test_live_change_of_a_sidecar(sidecar: Sidecar) -> None:
    changed = copy.deepcopy(sidecar.document())
    changed["services"]["cart"]["split"] = {"v2": 1}
    changed["services"]["stock"] = {"instances": [{"address": sidecar.users1.address, "version": "v1"}]}
    changed["sidecar"]["version"] = "v3"
    sidecar.proxy.edit(changed)
    assert {sidecar.ask(sidecar.outbound, "cart").get("x-upstream") for _ in range(6)} == {"cart-v2"}
    assert sidecar.ask(sidecar.outbound, "stock.shop").get("x-graylb-service") == "stock"
    assert sidecar.ask(sidecar.inbound, "x").get("x-graylb-version") == "v3"
    without = {key: value for key, value in changed.items() if key != "sidecar"}
    sidecar.proxy.write(without)
    refusal = until(lambda: sidecar.proxy.status()["refusal"], "a refusal")
    assert "$.sidecar: missing" in refusal["errors"][0]["text"]
    assert sidecar.ask(sidecar.inbound, "x").get("x-graylb-version") == "v3"
    sidecar.proxy.edit(sidecar.document())


# ---- by option -------------------------------------------------------------------------------------------------------


def seen_by(upstream: Upstream, address: str) -> str | None:
    """What the instance is told of a stranger who tells a tale."""
    with Client(address) as client:
        answer = client.send(request(headers=["X-Forwarded-For: 6.6.6.6", "X-Wish: v1"])).response()
    assert answer.status == 200
    values = [value for name, value in upstream.requests[-1].headers if name.lower() == "x-forwarded-for"]
    return ", ".join(values) or None


def test_an_edge_by_option(tmp_path: Path) -> None:
    """The document alone is none: it has no listener. Commands on it learn the preset from the proxy that runs."""
    with running("v1") as (upstream,):
        upstream.default = greet
        document: dict[str, Any] = {
            "services": {"users": {"instances": [{"address": upstream.address, "version": "v1"}]}}
        }
        file = parts.write(tmp_path, document)
        options = ("--edge", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1")
        with started(tmp_path, file, *options) as edge:
            (address,) = edge.ports["listeners"]
            assert seen_by(upstream, address) == "127.0.0.1"
            done = proxies.cli("explain", "--admin", edge.admin, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["service"] == "users"
            done = proxies.cli("split", "users", "v1=1", "--admin", edge.admin, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["applied"] is True
            revision = edge.status()["revision"]
            parts.write(tmp_path, {**document, "forwarding": {"x_forwarded": "append"}})
            until(lambda: edge.status()["revision"] > revision, "the change")
            assert seen_by(upstream, address) == "6.6.6.6, 127.0.0.1"  # what the document says wins
            assert edge.status()["preset"] == "edge"
            assert edge.stop() == 0


def test_a_preset_that_the_document_does_not_bear(tmp_path: Path) -> None:
    file = parts.write(tmp_path, {"services": {"users": {"stable": "v1"}}})
    for options, text in (
        (["--sidecar"], "$.sidecar: missing"),
        (["--sidecar", "--edge"], "expected one of them"),
        ([], "$.listeners: missing"),
    ):
        done = proxies.cli("run", "-c", file, *options)
        assert done.returncode in (1, 2)
        assert text in done.stderr
