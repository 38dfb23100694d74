"""What graylb tells upstreams of the client, and the hop-by-hop law in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Site
from tests.integration import proxies
from tests.integration.client import Response, request
from tests.integration.upstream import Request, Upstream

ME = "127.0.0.1"


class Edge:
    """A proxy of its own whose `forwarding` the tests edit while it runs."""

    def __init__(self, proxy: proxies.Proxy, upstream: Upstream) -> None:
        self.proxy, self.upstream = proxy, upstream

    def policy(self, **forwarding: Any) -> None:
        wanted = {**self.proxy.document, "forwarding": forwarding}
        if wanted != self.proxy.document:
            self.proxy.edit(wanted)

    def ask(self, *headers: str, host: str = "shop.test", version: str = "1.1") -> tuple[Request, Response]:
        with self.proxy.client() as client:
            answer = client.send(request("GET", "/", host, headers, version=version)).response()
        assert answer.status == 200
        return self.upstream.requests[-1], answer


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    upstream = Upstream("edge").start()
    doc = proxies.document({"users": proxies.service(upstream.address)})
    with proxies.running(tmp_path_factory.mktemp("edge"), doc) as proxy:
        yield Edge(proxy, upstream)
        upstream.stop()
    upstream.check()


def joined(arrived: Request, name: str) -> str | None:
    """All lines of a list header as one."""
    return ", ".join(arrived.all(name)) or None


def told(arrived: Request) -> tuple[str | None, str | None, str | None]:
    return joined(arrived, "x-forwarded-for"), arrived.get("x-forwarded-proto"), arrived.get("x-forwarded-host")


CLAIMS = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: other.test")


def test_default_is_append(site: Site) -> None:
    assert site.ask().status == 200
    assert told(site.requests[0]) == (ME, "http", site.host)
    assert site.requests[0].get("forwarded") is None
    assert site.requests[0].get("via") is None


def test_append_keeps_what_arrived(edge: Edge) -> None:
    edge.policy(x_forwarded="append")
    arrived, _ = edge.ask(*CLAIMS)
    assert told(arrived) == (f"203.0.113.9, {ME}", "https", "other.test")


def test_append_keeps_the_order_of_several_lines(edge: Edge) -> None:
    edge.policy(x_forwarded="append")
    arrived, _ = edge.ask("X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2, 3.3.3.3")
    assert joined(arrived, "x-forwarded-for") == f"1.1.1.1, 2.2.2.2, 3.3.3.3, {ME}"


def test_replace_starts_anew(edge: Edge) -> None:
    edge.policy(x_forwarded="replace")
    arrived, _ = edge.ask(*CLAIMS, "X-Forwarded-For: 8.8.8.8", host="shop.test:8080")
    assert told(arrived) == (ME, "http", "shop.test:8080")


def test_off_adds_nothing(edge: Edge) -> None:
    edge.policy(x_forwarded="off")
    arrived, _ = edge.ask()
    assert told(arrived) == (None, None, None)


def elements(value: str | None) -> list[dict[str, str]]:
    """RFC 7239 elements to dicts of lower-case names and unquoted values; enough for what graylb writes."""
    found = []
    for element in re.split(r",\s*(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", value or ""):
        pairs = [pair.partition("=") for pair in element.split(";") if pair]
        found.append({name.strip().lower(): text.strip('"') for name, _, text in pairs})
    return found


def test_forwarded_append(edge: Edge) -> None:
    edge.policy(x_forwarded="off", forwarded="append")
    arrived, _ = edge.ask("Forwarded: for=203.0.113.9;proto=https", host="shop.test:8080")
    first, own = elements(joined(arrived, "forwarded"))
    assert first == {"for": "203.0.113.9", "proto": "https"}
    assert (own["for"], own["proto"], own["host"]) == (ME, "http", "shop.test:8080")
    assert 'host="shop.test:8080"' in (joined(arrived, "forwarded") or ""), "a colon needs quotes in RFC 7239"


def test_forwarded_replace(edge: Edge) -> None:
    edge.policy(x_forwarded="append", forwarded="replace")
    arrived, _ = edge.ask("Forwarded: for=203.0.113.9;proto=https", "Forwarded: for=unknown")
    (own,) = elements(joined(arrived, "forwarded"))
    assert (own["for"], own["proto"], own["host"]) == (ME, "http", "shop.test")
    assert told(arrived) == (ME, "http", "shop.test")


def test_via(edge: Edge) -> None:
    """RFC 9110, 7.6.3: the received protocol's version and a pseudonym, appended, on requests and responses."""
    edge.policy(via=True)
    edge.upstream.on("/", lambda call: call.answer(200, b"x", "Via: 1.0 inner"))
    arrived, answer = edge.ask("Via: 1.1 outer")
    assert re.fullmatch(r"1\.1 outer, 1\.1 graylb", joined(arrived, "via") or "")
    assert re.fullmatch(r"1\.0 inner, 1\.1 graylb", ", ".join(answer.all("via")))
    arrived, _ = edge.ask(version="1.0")
    assert joined(arrived, "via") == "1.0 graylb"
    del edge.upstream.paths["/"]


def test_without_via_what_arrives_goes_on(edge: Edge) -> None:
    edge.policy(via=False)
    arrived, answer = edge.ask("Via: 1.1 outer")
    assert joined(arrived, "via") == "1.1 outer"
    assert answer.all("via") == []


# -- hop-by-hop ----------------------------------------------------------------------------------------------------

HOP_REQUEST = [
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "TE: gzip",
    "Trailer: X-Sum",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
]


def names(message: Request | Response) -> set[str]:
    return {name for name, _ in message.headers}


@pytest.mark.parametrize("line", HOP_REQUEST)
def test_hop_by_hop_request_headers_are_removed(site: Site, line: str) -> None:
    """Named in Connection or not."""
    name = line.partition(":")[0]
    assert site.ask("GET", "/", line).status == 200
    assert site.ask("GET", "/", f"Connection: {name}", line).status == 200
    for arrived in site.requests:
        assert name.lower() not in names(arrived)


@pytest.mark.parametrize(
    "connection", ["x-private, X-OTHER", "x-private,,x-other ,", "close, x-private, x-other", "x-other,\tx-private"]
)
def test_headers_named_in_connection_are_removed(site: Site, connection: str) -> None:
    lines = [f"Connection: {connection}", "X-Private: 1", "x-other: 2", "X-Private: 3", "X-Kept: 4"]
    assert site.ask("GET", "/", *lines).status == 200
    assert names(site.requests[0]) & {"x-private", "x-other", "x-kept"} == {"x-kept"}


def test_several_connection_lines(site: Site) -> None:
    lines = ["X-A: 1", "Connection: x-a", "X-B: 2", "Connection: x-b, keep-alive", "X-C: 3"]
    assert site.ask("GET", "/", *lines).status == 200
    assert names(site.requests[0]) & {"x-a", "x-b", "x-c"} == {"x-c"}


def test_connection_cannot_remove_what_others_rely_on(site: Site) -> None:
    """A stranger must not be able to strip identity, framing or the mark."""
    named = "host, content-length, x-forwarded-for, x-forwarded-proto, x-forwarded-host, x-service-version"
    lines = [f"Connection: {named}", "X-Forwarded-For: 203.0.113.9", "X-Service-Version: v1"]
    assert site.ask("POST", "/", *lines, body=b"body").status == 200
    arrived = site.requests[0]
    assert (arrived.get("host"), arrived.get("content-length")) == (site.host, "4")
    assert told(arrived) == (f"203.0.113.9, {ME}", "http", site.host)
    assert arrived.get("x-service-version") == "v1"
    assert bytes(arrived.body) == b"body"


def test_connection_cannot_unframe_a_chunked_body(site: Site) -> None:
    data = site.request("POST", "/", "Connection: transfer-encoding", "Transfer-Encoding: chunked")
    answer = site.ask_raw(data + b"4\r\nbody\r\n0\r\n\r\n")
    assert answer.status in (200, 400)
    assert [bytes(arrived.body) for arrived in site.requests] in ([b"body"], [])


def test_te_trailers_is_the_only_one_that_may_pass(site: Site) -> None:
    assert site.ask("GET", "/", "TE: trailers", "Connection: TE").status == 200
    assert set(site.requests[0].all("te")) <= {"trailers"}
    assert site.ask("GET", "/", "TE: trailers, deflate;q=0.5", "Connection: TE").status == 200
    assert set(site.requests[1].all("te")) <= {"trailers"}


@pytest.mark.parametrize("upgrade", ["h2c", "websocket, h2c", "TLS/1.0", "foo/2, bar"])
def test_upgrade_without_a_body_is_an_ordinary_request(site: Site, upgrade: str) -> None:
    """Stripped, so the upstream cannot switch; the connection goes on as HTTP/1.1."""
    lines = [f"Upgrade: {upgrade}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"]
    client = site.client().send(site.request("GET", "/", *lines) + site.request("GET", "/next"))
    assert client.response().status == 200
    assert client.response().status == 200
    assert names(site.requests[0]) & {"upgrade", "http2-settings"} == set()


def test_header_names_with_underscores_do_not_pass(site: Site) -> None:
    """Dropped or refused: some upstreams read them as hyphens."""
    answer = site.ask("GET", "/", "X_Forwarded_For: 1.2.3.4", "User_Group: beta")
    assert answer.status in (200, 400)
    for arrived in site.requests:
        assert not {name for name in names(arrived) if "_" in name}


def test_hop_by_hop_response_headers_are_removed(site: Site) -> None:
    lines = [
        "Connection: x-private, keep-alive",
        "X-Private: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Upgrade: h2c",
        "Trailer: X-Sum",
        "X-Kept: 2",
    ]
    site.on("/", lambda call: call.answer(200, b"x", *lines))
    answer = site.ask()
    gone = {"x-private", "keep-alive", "proxy-connection", "upgrade", "trailer"}
    assert names(answer) & (gone | {"x-kept"}) == {"x-kept"}
    assert (answer.get("connection") or "keep-alive").lower() == "keep-alive"


def test_an_answers_connection_cannot_remove_its_framing(site: Site) -> None:
    site.on("/", lambda call: call.answer(200, b"hello", "Connection: content-length, x-graylb-service"))
    answer = site.ask()
    assert (answer.get("content-length"), answer.body) == ("5", b"hello")


def test_decision_headers(site: Site) -> None:
    answer = site.ask()
    assert (answer.get("x-graylb-service"), answer.get("x-graylb-version")) == (site.name, "v1")
    assert re.fullmatch(r"[1-9][0-9]*", answer.get("x-graylb-revision") or "")


def test_decision_headers_cannot_be_forged_by_an_upstream(site: Site) -> None:
    lines = ["X-Graylb-Version: v9", "x-graylb-service: evil", "x-graylb-error: no-route", "X-Graylb-Rule: evil"]
    site.on("/", lambda call: call.answer(200, b"x", *lines))
    answer = site.ask()
    assert answer.all("x-graylb-version") == ["v1"]
    assert answer.all("x-graylb-service") == [site.name]
    assert (answer.all("x-graylb-error"), answer.all("x-graylb-rule")) == ([], [])


def test_decision_headers_are_off_by_default(tmp_path: Path) -> None:
    upstream = Upstream("plain").start()
    doc = proxies.document({"users": proxies.service(upstream.address)})
    del doc["decision_headers"]
    with proxies.running(tmp_path, doc) as proxy, proxy.client() as client:
        assert not [name for name in names(client.ask()) if name.startswith("x-graylb")]
    upstream.stop()
    upstream.check()
