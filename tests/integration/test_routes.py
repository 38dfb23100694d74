"""Routes through real sockets: hosts, paths by whole elements, methods, rewrites, redirects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration import proxies
from tests.integration.client import Response, request
from tests.integration.upstream import Upstream


class Edge:
    def __init__(self, proxy: proxies.Proxy, upstream: Upstream) -> None:
        self.proxy, self.upstream = proxy, upstream

    def ask(self, target: str, host: str = "shop.test", method: str = "GET", *headers: str) -> Response:
        with self.proxy.client() as client:
            return client.send(request(method, target, host, headers)).response(method)

    def service(self, *arguments: Any) -> str | None:
        return self.ask(*arguments).get("x-graylb-service")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    upstream = Upstream("edge").start()

    def behind(**more: Any) -> dict[str, Any]:
        service = proxies.service(upstream.address, **more)
        return service if more else {key: service[key] for key in ("stable", "instances")}

    services = {
        "shop": behind(hosts=["shop.test"], paths=["/"]),
        "cart": behind(hosts=["shop.test"], paths=["/cart"]),
        "items": behind(hosts=["shop.test"], paths=[{"exact": "/cart/items"}, {"regex": "/items/[0-9]+"}]),
        "wild": behind(hosts=["*.shop.test"], paths=["/"]),
        "deep": behind(hosts=["*.eu.shop.test"], paths=["/"]),
        "only": behind(hosts=["only.test"], paths=["/only"]),
        "writer": behind(),
        "legacy": behind(),
    }
    routes = [
        {"name": "writes", "hosts": ["shop.test"], "paths": ["/cart"], "methods": ["POST"], "service": "writer"},
        {"name": "moved", "hosts": ["shop.test"], "paths": ["/old"], "redirect": {"status": 301, "path": "/new"}},
        {
            "name": "elsewhere",
            "hosts": ["shop.test"],
            "paths": ["/away"],
            "redirect": {"scheme": "https", "host": "b.test"},
        },
        {
            "name": "legacy",
            "hosts": ["shop.test"],
            "paths": ["/v0"],
            "service": "legacy",
            "rewrite": {"prefix": "/legacy"},
        },
        {"name": "strip", "hosts": ["shop.test"], "paths": ["/strip"], "service": "legacy", "rewrite": {"prefix": "/"}},
    ]
    doc = proxies.document(services, routes=routes)
    with proxies.running(tmp_path_factory.mktemp("routes"), doc) as proxy:
        yield Edge(proxy, upstream)
        upstream.stop()
    upstream.check()


@pytest.mark.parametrize(
    ("target", "service"),
    [
        ("/", "shop"),
        ("/x/y", "shop"),
        ("/cart", "cart"),
        ("/cart/", "cart"),
        ("/cart/x", "cart"),
        ("/cart?items=1", "cart"),
        ("/cartoon", "shop"),
        ("/Cart", "shop"),
        ("/cart/items", "items"),
        ("/cart/items/", "cart"),
        ("/items/12", "items"),
        ("/items/12/x", "shop"),
        ("//cart", "shop"),
    ],
)
def test_paths(edge: Edge, target: str, service: str) -> None:
    assert edge.service(target) == service


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("shop.test", "shop"),
        ("SHOP.Test", "shop"),
        ("shop.test:8080", "shop"),
        ("shop.test.", "shop"),
        ("a.shop.test", "wild"),
        ("a.b.shop.test", "wild"),
        ("a.eu.shop.test", "deep"),
        ("eu.shop.test", "wild"),
        ("notshop.test", None),
        ("test", None),
        ("127.0.0.1", None),
        ("[::1]:80", None),
    ],
)
def test_hosts(edge: Edge, host: str, service: str | None) -> None:
    answer = edge.ask("/", host)
    assert answer.get("x-graylb-service") == service
    assert answer.status == (200 if service else 404)


def test_a_host_without_that_path_is_not_served(edge: Edge) -> None:
    assert edge.ask("/only/x", "only.test").status == 200
    assert edge.ask("/", "only.test").status == 404


def test_methods(edge: Edge) -> None:
    assert edge.service("/cart", "shop.test", "POST") == "writer"
    assert edge.service("/cart", "shop.test", "PUT") == "cart"


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        ("/v0", "/legacy"),
        ("/v0/", "/legacy/"),
        ("/v0/a/b?x=%20", "/legacy/a/b?x=%20"),
        ("/v0?q", "/legacy?q"),
        ("/strip", "/"),
        ("/strip/a", "/a"),
        ("/strip?q=1", "/?q=1"),
    ],
)
def test_rewrites(edge: Edge, target: str, arrives: str) -> None:
    assert edge.ask(target).status == 200
    assert edge.upstream.requests[-1].target == arrives


def test_redirects(edge: Edge) -> None:
    before = len(edge.upstream.requests)
    answer = edge.ask("/old/x?keep=1")
    assert (answer.status, answer.get("location")) == (301, "http://shop.test/new?keep=1")
    answer = edge.ask("/away/x?keep=1")
    assert (answer.status, answer.get("location")) == (302, "https://b.test/away/x?keep=1")
    assert len(edge.upstream.requests) == before


def test_a_redirect_keeps_the_connection(edge: Edge) -> None:
    with edge.proxy.client() as client:
        data = request("POST", "/old", "shop.test", (), b"body") + request("GET", "/", "shop.test")
        client.send(data)
        assert client.response().status == 301
        assert client.response().status == 200
