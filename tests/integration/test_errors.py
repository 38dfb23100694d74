"""graylb's own answers: status, reason header, text or JSON by Accept, and what becomes of the connection."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graylb.errors import BY_REASON
from tests.conftest import Site
from tests.integration import proxies
from tests.integration.client import Response
from tests.integration.upstream import Call, Upstream

JSON_ACCEPTS: list[str | None] = [
    "application/json",
    "text/html, application/json;q=0.9",
    "APPLICATION/JSON",
    "application/problem+json, application/json",
]
TEXT_ACCEPTS: list[str | None] = [None, "*/*", "text/html", "text/plain"]


def expect(answer: Response, status: int, reason: str) -> None:
    """An error answer of ours, as `graylb.errors` tells."""
    assert (answer.status, answer.error) == (status, reason)
    assert BY_REASON[reason].status == status
    assert answer.framing == "length"
    if answer.body:
        assert BY_REASON[reason].text.encode() in answer.body


@pytest.mark.parametrize("accept", JSON_ACCEPTS + TEXT_ACCEPTS)
def test_no_route_is_told_as_the_client_likes_it(site: Site, accept: str | None) -> None:
    lines = [f"Accept: {accept}"] if accept else []
    client = site.client()
    client.send(site.request("GET", "/", *lines).replace(site.host.encode(), b"nobody.test"))
    answer = client.response()
    expect(answer, 404, "no-route")
    if accept in JSON_ACCEPTS:
        assert answer.get("content-type") == "application/json"
        told = json.loads(answer.body)
        assert (told["error"], told["status"]) == ("no-route", 404)
        assert told["message"]
    else:
        assert (answer.get("content-type") or "").startswith("text/plain")
        assert answer.body.startswith(b"graylb: ")
    assert client.send(site.request()).response().status == 200, "a 404 of ours keeps the connection"
    assert len(site.requests) == 1


def test_no_route_with_a_body_keeps_the_framing(site: Site) -> None:
    client = site.client()
    lost = site.request("POST", "/", body=b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n").replace(
        site.host.encode(), b"nobody.test"
    )
    client.send(lost + site.request())
    expect(client.response(), 404, "no-route")
    following = client.rest() if client.ended else None
    if following is None:
        assert client.response().body == b"hello"
    assert [request.target for request in site.requests] in (["/"], [])


def test_error_for_head_has_no_body(site: Site) -> None:
    client = site.client()
    client.send(site.request("HEAD").replace(site.host.encode(), b"nobody.test") + site.request())
    answer = client.response("HEAD")
    expect(answer, 404, "no-route")
    assert client.response().body == b"hello"


def test_connection_refused(site: Site) -> None:
    site.upstream.refuse()
    client = site.client()
    for method, body in (("GET", None), ("POST", b"data")):
        expect(client.send(site.request(method, "/", body=body)).response(), 502, "connect-failed")


def test_no_instance(tmp_path: Path) -> None:
    """Weight 0 takes an instance out; `strict` finds nobody; the connection stays usable."""
    upstream = Upstream("only").start()
    rules = [{"name": "wants-v2", "match": {"headers": {"x-want": "v2"}}, "to": "v2", "fallback": "strict"}]
    users = proxies.service((upstream.address, "v1"), rules=rules)
    users["instances"].append({"address": "127.0.0.1:1", "version": "v2", "weight": 0})
    with proxies.running(tmp_path, proxies.document({"users": users})) as proxy, proxy.client() as client:
        expect(client.ask(headers=["X-Want: v2"]), 503, "no-instance")
        assert client.ask().status == 200
    upstream.stop()
    upstream.check()


INVALID = {
    "garbage": b"complete garbage\r\n\r\n",
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "http/2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "http/0.9 text": b"<html>hello</html>",
    "status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "signed length": b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
    "length list": b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\na",
    "huge length": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\na",
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding of http/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 1\r\n\r\na",
    "folded line": b"HTTP/1.1 200 OK\r\nx-a: 1\r\n b\r\ncontent-length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 0\r\n\r\n",
    "bare CR in a value": b"HTTP/1.1 200 OK\r\nx-a: a\rx-b: c\r\ncontent-length: 0\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nhello\r\ncontent-length: 0\r\n\r\n",
    "control in the reason": b"HTTP/1.1 200 O\x01K\r\ncontent-length: 0\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 200_000,
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_answers(site: Site, name: str) -> None:
    def answer(call: Call) -> None:
        call.send(INVALID[name])
        call.close()

    site.on("/bad", answer)
    client = site.client()
    reply = client.send(site.request(target="/bad")).response()
    assert reply.status == 502
    assert reply.error in ("upstream-invalid", "upstream-reset")
    if name not in ("not http", "http/0.9 text"):  # these end before a blank line: either reason is right
        assert reply.error == "upstream-invalid"
    assert client.send(site.request()).response().body == b"hello", "the client did nothing wrong"
    site.upstream.connections[0].wait_closed()


@pytest.mark.parametrize(
    "raw", [b"zz\r\n", b"-1\r\n", b"5\r\nhelloX", b"fffffffffffffffff\r\n", b"5 \r\nhello\r\n", b"5\nhello\r\n"]
)
def test_a_bad_chunk_in_an_answer_ends_it_unfinished(site: Site, raw: bytes) -> None:
    """With its head in one piece: a 502 of ours or a cut. Behind a head that is on its way: a cut."""
    gate = site.upstream.gate()

    def answer(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        gate.wait()
        call.send(raw + b"\r\n0\r\n\r\n")
        call.wait_gone()
        call.close()

    def at_once(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n" + raw + b"\r\n0\r\n\r\n")
        call.wait_gone()
        call.close()

    site.on("/later", answer)
    client = site.client().send(site.request(target="/later"))
    got = client.sock.recv(65536)
    gate.set()
    got += client.rest()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert not got.endswith(b"0\r\n\r\n"), "the client was told that the answer is complete"
    site.on("/at-once", at_once)
    got = site.client().send(site.request("GET", "/at-once", "Connection: close")).rest()
    assert got.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 502 "))
    assert not got.endswith(b"0\r\n\r\n"), "the client was told that the answer is complete"
    for connection in site.upstream.connections:
        connection.wait_closed()


# -- time ----------------------------------------------------------------------------------------------------------


def test_response_timeout(impatient: Site) -> None:
    """0.5 s in this site's document; counted from the end of the request."""
    impatient.on("/think", lambda call: (call.body(), call.wait_gone(), call.close()))
    client = impatient.client().send(impatient.request("POST", "/think", body=b"data"))
    expect(client.response(), 504, "response-timeout")
    impatient.upstream.connections[0].wait_closed()
    assert client.send(impatient.request()).response().status == 200
    assert len(impatient.requests) == 2, "a POST that timed out is not repeated"


def test_response_timeout_does_not_count_while_the_request_arrives(impatient: Site) -> None:
    client = impatient.client().send(impatient.request("POST", "/", "Content-Length: 6"))
    end = time.monotonic() + 1.2
    for byte in b"abcdef":
        client.send(bytes([byte]))
        time.sleep(max(0.0, min(0.2, end - time.monotonic())))  # the passing of time is what is tested
    assert client.response().status == 200


def test_a_slow_answer_that_moves_is_not_cut(impatient: Site) -> None:
    def slow(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        for byte in b"abcdef":
            call.send(bytes([byte]))
            time.sleep(0.2)  # the passing of time is what is tested

    impatient.on("/slow", slow)
    assert impatient.ask(target="/slow").body == b"abcdef"


def test_idle_timeout_within_an_answer(impatient: Site) -> None:
    """No byte for 0.5 s within a body: cut, visibly unfinished."""

    def stall(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        call.wait_gone()
        call.close()

    impatient.on("/stall", stall)
    client = impatient.client().send(impatient.request(target="/stall"))
    got = client.rest()
    assert got.endswith(b"hello")
    impatient.upstream.connections[0].wait_closed()


def test_connect_timeout(tmp_path: Path) -> None:
    """A listener whose backlog is full neither accepts nor refuses."""
    with socket.socket() as deaf, socket.socket() as one, socket.socket() as two:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (one, two):
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        users = proxies.service(address, timeouts={"connect": 0.5, "response": 5, "idle": 5})
        with proxies.running(tmp_path, proxies.document({"users": users})) as proxy, proxy.client() as client:
            expect(client.ask(), 504, "connect-timeout")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[proxies.Proxy, Upstream]]:
    """A proxy with short client timeouts."""
    upstream = Upstream("hasty").start()
    limits = {"header_timeout": 0.5, "idle_timeout": 0.7, "body_timeout": 0.5, "upstream_idle_timeout": 0.5}
    doc = proxies.document({"users": proxies.service(upstream.address)}, limits=limits)
    with proxies.running(tmp_path_factory.mktemp("hasty"), doc) as proxy:
        yield proxy, upstream
        upstream.stop()
    upstream.check()


def test_header_timeout(hasty: tuple[proxies.Proxy, Upstream]) -> None:
    with hasty[0].client() as client:
        answer = client.send(b"GET / HTTP/1.1\r\nHost: x").response()
        expect(answer, 408, "header-timeout")
        assert answer.get("connection") == "close"
        assert client.closed()


def test_header_timeout_is_for_the_whole_head(hasty: tuple[proxies.Proxy, Upstream]) -> None:
    """A drip of bytes does not push it back."""
    with hasty[0].client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        end = time.monotonic() + 5
        client.sock.settimeout(0.1)
        got = b""
        while not got:
            assert time.monotonic() < end, "still waiting after ten times the header timeout"
            client.send(b"x")
            try:
                got = client.sock.recv(65536)
            except TimeoutError:
                continue
        assert b" 408 " in got


def test_header_timeout_of_a_second_request(hasty: tuple[proxies.Proxy, Upstream]) -> None:
    with hasty[0].client() as client:
        assert client.ask().status == 200
        expect(client.send(b"GET / HTTP/1.1\r\n").response(), 408, "header-timeout")


def test_an_idle_client_is_closed_without_a_word(hasty: tuple[proxies.Proxy, Upstream]) -> None:
    with hasty[0].client() as client:
        assert client.ask().status == 200
        assert client.closed()


def test_body_timeout(hasty: tuple[proxies.Proxy, Upstream]) -> None:
    proxy, upstream = hasty
    upstream.requests.clear()
    with proxy.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        expect(client.response(), 408, "body-timeout")
        assert client.closed()
    upstream.connections[upstream.requests[-1].connection - 1].wait_closed()
    assert not upstream.requests[-1].complete


def test_an_idle_upstream_connection_is_closed(hasty: tuple[proxies.Proxy, Upstream]) -> None:
    proxy, upstream = hasty
    with proxy.client() as client:
        assert client.ask().status == 200
    upstream.connections[upstream.requests[-1].connection - 1].wait_closed()


@pytest.mark.parametrize("garbage", [b"x", b"HTTP/2", b"\x16\x03\x01", b"SSH-2.0-x\r\n"])
def test_garbage_is_refused_before_it_is_a_whole_line(site: Site, garbage: bytes) -> None:
    """It used to be kept until the response timeout when it was shorter than a status line."""

    def answer(call: Call) -> None:
        call.send(garbage)
        call.wait_gone()

    site.on("/garbage", answer)
    expect(site.ask("GET", "/garbage"), 502, "upstream-invalid")
