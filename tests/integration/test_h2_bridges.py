"""HTTP/1.1 on one side, HTTP/2 on the other, in both directions and every framing, over real sockets."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import httpx
import pytest

from graylb import builds
from graylb.model.snapshot import Timeouts
from tests.conftest import Site
from tests.integration import engines, proxies
from tests.integration.client import Client, chunked
from tests.integration.client import request as plain
from tests.integration.h2_ends import Answer, Fields, H2Client, H2Upstream, fields
from tests.integration.upstream import Call

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")

BIG = bytes(range(256)) * 4096  # 1 MiB


def h2(site: Site) -> H2Client:
    return H2Client(site.proxy.address)


def ask(
    client: H2Client, site: Site, path: str, *more: tuple[str, str], method: str = "GET", body: bytes = b""
) -> Answer:
    return client.ask(fields(*more, method=method, path=path, host=site.host), body)


# ---- a client of HTTP/2, an instance of HTTP/1.1 ---------------------------------------------------------------------


def test_a_request_without_a_body(site: Site) -> None:
    with h2(site) as client:
        answer = ask(client, site, "/a?b=c", ("x-mine", "1"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"))
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.get("x-upstream") == site.upstream.name
    (asked,) = site.requests
    assert (asked.method, asked.target, asked.get("host")) == ("GET", "/a?b=c", site.host)
    assert asked.get("cookie") == "a=1; b=2"
    assert asked.get("x-mine") == "1"
    assert asked.get("x-forwarded-proto") == "http"
    assert not asked.all("content-length")
    assert not asked.all("transfer-encoding")


@pytest.mark.parametrize("size", [1, 100_000, len(BIG)])
@pytest.mark.parametrize("counted", [True, False])
def test_a_request_with_a_body(site: Site, size: int, counted: bool) -> None:
    site.on("/echo", lambda call: call.answer(200, call.body()))
    body = BIG[:size]
    more = [("content-length", str(size))] if counted else []
    with h2(site) as client:
        answer = ask(client, site, "/echo", *more, method="POST", body=body)
    assert (answer.status, answer.body == body) == (200, True)
    (asked,) = site.requests
    assert (asked.get("content-length"), asked.get("transfer-encoding")) == (
        (str(size), None) if counted else (None, "chunked")
    )


def numbered(*more: tuple[str, str], host: str, path: str = "/echo") -> tuple[list[Fields], list[bytes]]:
    """40 requests with bodies of their own, some of them empty."""
    bodies = [b"%d," % number * (number % 7) for number in range(40)]
    return [fields(*more, method="POST", path=f"{path}?{number}", host=host) for number in range(40)], bodies


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_requests_that_come_whole_keep_their_own_bodies(site: Site, counted: bool, heads_first: bool) -> None:
    site.on("/echo", lambda call: call.answer(200, call.body()))
    heads, bodies = numbered(host=site.host)
    if counted:
        heads = [[*head, ("content-length", str(len(body)))] for head, body in zip(heads, bodies, strict=True)]
    with h2(site) as client:
        for _ in range(2):
            answers = client.ask_at_once(heads, bodies, heads_first=heads_first)
            assert [(answer.status, answer.body) for answer in answers] == [(200, body) for body in bodies]


def test_whole_requests_that_graylb_answers_itself(site: Site) -> None:
    with h2(site) as client:
        answers = client.ask_at_once(*numbered(host="nowhere.test"), heads_first=True)
        assert [answer.status for answer in answers] == [404] * 40
        assert ask(client, site, "/").status == 200


def _close_delimited(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\nkeep-alive: 5\r\n\r\n", BIG[:300_000])
    call.close()


ANSWERS = {
    "length": lambda call: call.answer(200, BIG[:300_000]),
    "chunked": lambda call: call.send(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n",
        chunked(BIG[at : at + 10_000] for at in range(0, 300_000, 10_000)),
    ),
    "close": _close_delimited,
}


@pytest.mark.parametrize("framing", ANSWERS)
def test_an_answer_in_every_framing(site: Site, framing: str) -> None:
    site.on("/it", ANSWERS[framing])
    with h2(site) as client:
        for _ in range(2):
            answer = ask(client, site, "/it")
            assert (answer.status, answer.ended, answer.body == BIG[:300_000]) == (200, True, True)
            assert not {"connection", "transfer-encoding", "keep-alive", "x-hop"} & {name for name, _ in answer.headers}
            assert answer.get("content-length") == ("300000" if framing == "length" else None)


@pytest.mark.parametrize("status", [204, 304])
def test_answers_that_have_no_body(site: Site, status: int) -> None:
    site.on("/it", lambda call: call.send(b"HTTP/1.1 %d X\r\netag: a\r\n\r\n" % status))
    with h2(site) as client:
        answer = ask(client, site, "/it")
    assert (answer.status, answer.body, answer.ended, answer.get("etag")) == (status, b"", True, "a")


def test_head_has_the_length_and_no_body(site: Site) -> None:
    site.on("/it", lambda call: call.answer(200, b"12345"))
    with h2(site) as client:
        answer = ask(client, site, "/it", method="HEAD")
        assert (answer.status, answer.body, answer.get("content-length")) == (200, b"", "5")
        assert ask(client, site, "/it").body == b"12345"


def test_early_hints_go_before_the_answer(site: Site) -> None:
    site.on("/it", lambda call: (call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), call.answer(200, b"x")))
    with h2(site) as client:
        answer = ask(client, site, "/it")
    assert (answer.interim, answer.status, answer.body) == ([103], 200, b"x")


def test_an_answer_that_is_cut_short_is_reset_not_ended(site: Site) -> None:
    site.on("/cut", lambda call: (call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"), call.close()))
    with h2(site) as client:
        answer = ask(client, site, "/cut")
        assert (answer.status, answer.ended) == (200, False)
        assert answer.reset is not None
        assert ask(client, site, "/").status == 200  # the connection lives


def test_errors_of_graylb_over_http2(site: Site) -> None:
    with h2(site) as client:
        answer = client.ask(fields(host="nowhere.test"))
        assert (answer.status, answer.get("x-graylb-error")) == (404, "no-route")
        assert answer.body == b"graylb: no route matches this host and path\n"
        assert ask(client, site, "/").status == 200


def test_streams_of_one_connection_do_not_wait_for_each_other(site: Site) -> None:
    go_on = site.upstream.gate()
    site.on("/slow", lambda call: (go_on.wait(), call.answer(200, b"slow")))
    with h2(site) as client:
        slow = client.begin(fields(path="/slow", host=site.host), end=True)
        for _ in range(20):
            assert ask(client, site, "/").status == 200
        go_on.set()
        assert client.answer(slow).body == b"slow"


def test_a_client_that_resets_a_stream_has_its_request_given_up(site: Site) -> None:
    gone: list[bool] = []
    site.on("/hang", lambda call: gone.append(call.wait_gone()))
    with h2(site) as client:
        stream = client.begin(fields(path="/hang", host=site.host), end=True)
        site.upstream.wait_requests(1)
        client.h2.reset_stream(stream, 8)
        client.flush()
        site.upstream.wait(lambda: bool(gone), "the end of the connection")
        assert ask(client, site, "/").status == 200
    assert gone == [True]


def test_grpc_web_is_http1_to_the_instance(site: Site) -> None:
    """Its trailers are part of the body, so it needs no HTTP/2 and passes as it is."""
    body = b"\0\0\0\0\2hi" + b"\x80\0\0\0\x0fgrpc-status:0\r\n"
    kind = "content-type: application/grpc-web+proto"
    site.on("/a.B/C", lambda call: (call.body(), call.answer(200, body, kind)))
    with site.client() as client:
        message = b"\0\0\0\0\2hi"
        client.send(plain("POST", "/a.B/C", site.host, [kind], message))
        assert client.response("POST").body == body
    with h2(site) as client:
        web = ("content-type", "application/grpc-web-text")
        assert ask(client, site, "/a.B/C", web, method="POST", body=message).body == body
    assert [bytes(each.body) for each in site.requests] == [message, message]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(site: Site) -> None:
    options = ["-sS", "--http2-prior-knowledge", "-H", f"host: {site.host}", "-d", "a=b", "-w", "%{http_version}"]
    outside = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's, for us alone
    found = subprocess.run(
        ["curl", *options, f"http://{site.proxy.address}/x"], capture_output=True, text=True, timeout=20, env=outside
    )
    assert (found.stdout, found.stderr) == ("hello2", "")


@pytest.mark.skipif(shutil.which("nghttp") is None, reason="no nghttp here")
def test_nghttp(site: Site) -> None:
    command = ["nghttp", "-H", f":authority: {site.host}", f"http://{site.proxy.address}/x"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (found.returncode, found.stdout) == (0, "hello")


# ---- a client of HTTP/1.1 or HTTP/2, an instance of HTTP/2 -----------------------------------------------------------


@dataclass
class Scene:
    proxy: proxies.Proxy
    upstream: H2Upstream

    def client(self) -> Client:
        return self.proxy.client()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    upstream = H2Upstream()
    try:
        doc = proxies.document({"up": proxies.service(upstream.address, connections={"protocol": "h2"})})
        with proxies.running(tmp_path_factory.mktemp("bridge"), doc) as proxy:
            yield Scene(proxy, upstream)
    finally:
        upstream.close()


def test_http1_to_http2(scene: Scene) -> None:
    with scene.client() as client:
        more = ["Connection: x-hop", "X-Hop: 1", "X-Mine: 2", "Upgrade: foo", "TE: gzip"]
        answer = client.send(plain("GET", "/?q=1", "up.test", more)).response()
    assert (answer.status, answer.body, answer.get("x-upstream")) == (200, b"", "h2")
    asked = scene.upstream.requests[-1]
    pseudo = {(":method", "GET"), (":scheme", "http"), (":authority", "up.test"), (":path", "/?q=1")}
    assert set(asked.headers[:4]) == pseudo
    names = {name for name, _ in asked.headers}
    assert "x-mine" in names
    assert not names & {"host", "connection", "x-hop", "upgrade", "te", "transfer-encoding"}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [1, 100_000, len(BIG)])
def test_http1_bodies_to_http2(scene: Scene, framing: str, size: int) -> None:
    body = BIG[:size]
    with scene.client() as client:
        for _ in range(2):
            if framing == "length":
                client.send(plain("POST", "/", "up.test", body=body))
            else:
                head = plain("POST", "/", "up.test", ["Transfer-Encoding: chunked"])
                client.send(head, chunked(body[at : at + 70_000] for at in range(0, size, 70_000)))
            answer = client.response("POST")
            assert (answer.status, answer.framing, answer.body == body) == (200, "length", True)
    asked = scene.upstream.requests[-1]
    assert asked.body == body
    assert asked.all("content-length") == ([str(size)] if framing == "length" else [])


def test_http2_answers_of_unknown_length_to_http1(scene: Scene) -> None:
    with scene.client() as client:
        answer = client.send(plain("GET", "/300000", "up.test")).response()
        assert (answer.framing, answer.body) == ("chunked", b"x" * 300_000)
        answer = client.send(plain("GET", "/trailers", "up.test")).response()
        assert (answer.status, answer.trailers) == (200, [])  # HTTP/1 does without
    with scene.client() as client:
        answer = client.send(plain("GET", "/300000", "up.test", version="1.0")).response()
        assert (answer.framing, answer.body) == ("close", b"x" * 300_000)


def test_http2_answers_without_a_body_to_http1(scene: Scene) -> None:
    with scene.client() as client:
        assert client.send(plain("GET", "/empty", "up.test")).response().status == 204
        assert client.send(plain("HEAD", "/300000", "up.test")).response("HEAD").status == 200
        assert client.send(plain("GET", "/hints", "up.test")).response().interim == [103]


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("path", ["/", "/refuse"])
def test_whole_requests_to_http2(scene: Scene, path: str, heads_first: bool) -> None:
    heads, bodies = numbered(host="up.test", path=path)
    with H2Client(scene.proxy.address) as client:
        answers = client.ask_at_once(heads, bodies, heads_first=heads_first)
        assert [(answer.status, answer.body) for answer in answers] == [(200, body) for body in bodies]
        assert client.ask(fields(host="up.test")).status == 200


def test_an_instance_that_resets_a_stream(scene: Scene) -> None:
    with scene.client() as client:
        answer = client.send(plain("GET", "/reset", "up.test")).response()
    assert (answer.status, answer.error) == (502, "upstream-reset")


def test_an_instance_that_refuses_a_stream_is_asked_again(scene: Scene) -> None:
    """It says that it has not looked at the request, so any method may be repeated (RFC 9113 section 8.7)."""
    with scene.client() as client:
        answer = client.send(plain("POST", "/refuse", "up.test", body=b"once")).response("POST")
    assert (answer.status, answer.body) == (200, b"once")


def test_a_refused_request_as_long_as_a_window_is_asked_again(scene: Scene) -> None:
    """Bug: so much arrives before anything has left, and with its head it was a little too long to be kept."""
    with H2Client(scene.proxy.address) as client:
        answer = client.ask(fields(method="POST", path="/refuse-long"), BIG[:65535])
    assert (answer.status, answer.body == BIG[:65535]) == (200, True)


def test_http2_on_both_sides(scene: Scene) -> None:
    with H2Client(scene.proxy.address) as client:
        trailers: Fields = [("x-sum", "1")]
        answer = client.ask(fields(("x-mine", "1"), method="POST", path="/trailers"), BIG, trailers)
        assert (answer.status, answer.body == BIG, answer.trailers) == (200, True, [("x-end", "yes")])
        assert scene.upstream.requests[-1].trailers == trailers
        assert client.ask(fields(path="/reset")).status == 502
        assert client.ask(fields(path="/empty")).status == 204


@pytest.mark.parametrize("first", ["it", "a former one"])
def test_the_first_request_of_a_session_has_its_answer_waited_for_as_long_as_any(first: str) -> None:
    """An instance that is reached and never answers kept the request that the session was made for without a clock."""

    async def test(rig: engines.Rig) -> None:
        with closing(H2Upstream()) as upstream:
            rig.swap(
                engines.service(
                    upstream.address,
                    connections={"protocol": "h2"},
                    timeouts=Timeouts(connect=5.0, response=0.1, idle=60.0),
                )
            )
            if first == "a former one":
                assert (await rig.ask()).status == 200
            answer = await rig.ask("GET", "/Hang")
            assert (answer.status, answer.get("x-graylb-error")) == (504, "response-timeout")
            assert rig.stats["sessions"] == 1
            rig.swap(engines.service(rig.refusing()))

    engines.run(test)


def test_requests_share_connections_to_an_instance(scene: Scene) -> None:
    before = len(scene.upstream.requests)
    with httpx.Client(base_url=f"http://{scene.proxy.address}") as client:
        for _ in range(20):
            assert client.get("/").status_code == 200
    assert len({each.connection for each in scene.upstream.requests[before:]}) == 1


# ---- the law of the downgrade ----------------------------------------------------------------------------------------


BAD_HEADS: dict[str, Fields] = {
    "a-newline-in-a-value": fields(("x-a", "b\r\nx-injected: 1")),
    "a-nul-in-a-value": fields(("x-a", "b\0c")),
    "a-newline-in-the-path": fields(path="/ HTTP/1.1\r\nhost: other.test\r\n\r\nGET /x"),
    "a-space-in-the-path": fields(path="/a b"),
    "a-fragment": fields(path="/a#b"),
    "a-relative-path": fields(path="a"),
    "an-empty-path": fields(path=""),
    "a-method-with-a-space": fields(method="GET / HTTP/1.1"),
    "another-host": fields(("host", "other.test")),
    "a-second-host": fields(("host", "graylb.test"), ("host", "graylb.test")),
    "userinfo": fields(host="me@graylb.test"),
    "a-path-in-the-authority": fields(host="graylb.test/x"),
    "a-port-that-is-none": fields(host="graylb.test:8o"),
    "a-bracket-that-stays-open": fields(host="[::1"),
    "two-authorities-in-one": fields(host="graylb.test,other.test"),
    "a-host-with-a-space": [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "graylb.test other")],
    "no-host": [(":method", "GET"), (":scheme", "http"), (":path", "/")],
    "an-odd-scheme": [(":method", "GET"), (":scheme", "ftp"), (":authority", "graylb.test"), (":path", "/")],
    "a-connection-header": fields(("connection", "close")),
    "transfer-encoding": fields(("transfer-encoding", "chunked"), method="POST"),
    "an-upgrade": fields(("upgrade", "websocket")),
    "te-gzip": fields(("te", "gzip")),
    "a-capital-in-a-name": fields(("X-A", "b")),
    "a-space-in-a-name": fields(("x a", "b")),
    "a-colon-in-a-name": fields(("x:a", "b")),
    "an-unknown-pseudo-header": fields((":x", "b")),
    "a-pseudo-header-at-the-end": [*fields(), ("x-a", "b"), (":path", "/other")],
    "two-paths": [*fields(), (":path", "/other")],
    "no-path": [(":method", "GET"), (":scheme", "http"), (":authority", "graylb.test")],
    "two-lengths": fields(("content-length", "1"), ("content-length", "2"), method="POST"),
    "a-length-that-is-none": fields(("content-length", "+1"), method="POST"),
    "connect": [(":method", "CONNECT"), (":authority", "graylb.test:80")],
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_what_is_not_lawful_goes_no_further(site: Site, name: str) -> None:
    head = [(key, value.replace("graylb.test", site.host)) for key, value in BAD_HEADS[name]]
    with h2(site) as client:
        answer = client.ask(head)
        refused = answer.reset is not None or client.gone is not None or 400 <= answer.status < 500
        assert refused, answer
    with h2(site) as client:
        assert ask(client, site, "/after").status == 200
    assert [each.target for each in site.requests] == ["/after"]


def test_what_comes_behind_a_request_of_length_0_is_no_part_of_it(site: Site) -> None:
    """Its head is all of it, so it may have been answered when the byte comes."""
    with h2(site) as client:
        ask(client, site, "/bad", ("content-length", "0"), method="POST", body=b"x")
    site.upstream.settle()
    assert all(not each.body for each in site.requests)
    assert {each.target for each in site.requests} <= {"/bad"}


@pytest.mark.parametrize(("said", "sent"), [(3, 5), (5, 3), (5, 0)])
def test_a_length_that_the_body_has_not(site: Site, said: int, sent: int) -> None:
    """The instance must never take it for a whole request, nor what is too much for another one."""
    with h2(site) as client:
        answer = ask(client, site, "/bad", ("content-length", str(said)), method="POST", body=b"x" * sent)
        assert answer.status >= 400 or answer.reset is not None or client.gone is not None
    site.upstream.settle()
    assert not any(each.complete for each in site.requests)
    assert {each.target for each in site.requests} <= {"/bad"}
    site.upstream.faults.clear()  # a request that was cut off is what is wanted here
