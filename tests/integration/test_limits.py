"""Sizes: 64 KiB of head, 100 header lines, 16 KiB of target; one more is refused, none of it reaches an upstream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Site
from tests.integration import proxies
from tests.integration.upstream import Upstream

HEAD, HEADERS, URI = 65536, 100, 16384


def head_of(site: Site, size: int) -> bytes:
    """A GET of exactly `size` bytes in ten lines or so."""
    data = site.request("GET", "/", *(f"x-{number}: {'a' * 7000}" for number in range(8)), "x-fill: ")
    assert len(data) < size
    return data.replace(b"x-fill: ", b"x-fill: " + b"b" * (size - len(data)))


def test_largest_head(site: Site) -> None:
    data = head_of(site, HEAD)
    assert len(data) == HEAD
    assert site.ask_raw(data).status == 200
    assert site.requests[0].get("x-7") == "a" * 7000


@pytest.mark.parametrize("over", [1, 1000, 100_000])
def test_head_too_large(site: Site, over: int) -> None:
    client = site.client().send(head_of(site, HEAD + over))
    answer = client.response()
    assert (answer.status, answer.error, answer.get("connection")) == (431, "head-too-large", "close")
    assert client.closed()
    assert not site.requests


def test_head_without_an_end(site: Site) -> None:
    client = site.client().send(site.request()[:-2] + b"x-long: " + b"a" * 70_000)
    assert client.response().status == 431
    assert not site.requests


def test_head_too_large_in_pieces(site: Site) -> None:
    data = head_of(site, HEAD + 500)
    client = site.client().send(*(data[at : at + 4096] for at in range(0, len(data), 4096)))
    assert client.response().status == 431
    assert not site.requests


def headers_of(site: Site, count: int) -> bytes:
    """`count` header lines, Host among them."""
    return site.request("GET", "/", *(f"x-{number}: {number}" for number in range(count - 1)))


def test_most_headers(site: Site) -> None:
    assert site.ask_raw(headers_of(site, HEADERS)).status == 200
    assert site.requests[0].get("x-98") == "98"


@pytest.mark.parametrize("count", [HEADERS + 1, 200, 257, 1000, 5000])
def test_too_many_headers(site: Site, count: int) -> None:
    client = site.client().send(headers_of(site, count))
    answer = client.response()
    assert (answer.status, answer.error) == (431, "head-too-large")
    assert client.closed()
    assert not site.requests


def test_longest_target(site: Site) -> None:
    target = "/" + "a" * (URI - 1)
    assert site.ask("GET", target).status == 200
    assert site.requests[0].target == target


@pytest.mark.parametrize("target", ["/" + "a" * URI, "/?" + "q" * URI, "/" + "%41" * 6000, "/" + "a" * 60_000])
def test_target_too_long(site: Site, target: str) -> None:
    client = site.client().send(site.request("GET", target))
    answer = client.response()
    assert (answer.status, answer.error) == (414, "uri-too-long")
    assert client.closed()
    assert not site.requests


def test_chunk_extensions_are_bounded(site: Site) -> None:
    """A chunk may have an extension, not a megabyte of them."""
    data = site.request("POST", "/", "Transfer-Encoding: chunked")
    client = site.client().send(data + b"1;" + b"x" * 100_000)
    assert client.response().status in (400, 413, 431)
    assert not any(request.complete for request in site.requests)


def test_many_small_chunk_extensions_are_bounded(site: Site) -> None:
    data = site.request("POST", "/", "Transfer-Encoding: chunked")
    client = site.client()
    client.send(data + b"1;aaaa\r\nx\r\n" * 2000 + b"0\r\n\r\n")
    assert client.response().status in (200, 400, 413)


def test_trailers_are_bounded(site: Site) -> None:
    data = site.request("POST", "/", "Transfer-Encoding: chunked")
    client = site.client().send(data + b"1\r\nx\r\n0\r\n" + b"x-trailer: y\r\n" * 10_000)
    assert client.response().status in (400, 413, 431)
    assert not any(request.complete for request in site.requests)


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[proxies.Proxy, Upstream]]:
    upstream = Upstream("tight").start()
    limits = {"head_bytes": 2048, "headers": 10, "uri_bytes": 256}
    doc = proxies.document({"users": proxies.service(upstream.address)}, limits=limits)
    with proxies.running(tmp_path_factory.mktemp("tight"), doc) as proxy:
        yield proxy, upstream
        upstream.stop()
    upstream.check()


def test_limits_are_configurable(tight: tuple[proxies.Proxy, Upstream]) -> None:
    proxy, upstream = tight
    many = [f"x-{number}: 1" for number in range(9)]
    with proxy.client() as client:
        assert client.ask(headers=many).status == 200
        assert client.ask(target="/" + "a" * 255).status == 200
        assert client.ask(headers=["x: " + "a" * 1900]).status == 200
    for refused, status in (
        ({"headers": [*many, "x-one-more: 1"]}, 431),
        ({"target": "/" + "a" * 256}, 414),
        ({"headers": ["x: " + "a" * 2048]}, 431),
    ):
        with proxy.client() as client:
            assert client.ask(**refused).status == status
    assert len(upstream.requests) == 3
