"""Somebody goes away in the middle: the other side is told, connections are not leaked, half answers not completed."""

from __future__ import annotations

import contextlib
import socket
import threading

import psutil
import pytest

from tests.conftest import Site
from tests.integration.client import chunked
from tests.integration.upstream import Call

PIECE = b"x" * 65536


def endless(call: Call) -> None:
    """An answer without an end, until graylb goes."""
    call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        call.send(b"10000\r\n" + PIECE + b"\r\n")


@pytest.mark.parametrize("way", ["reset", "close"])
def test_client_gone_mid_answer(site: Site, way: str) -> None:
    site.on("/endless", endless)
    client = site.client().send(site.request(target="/endless"))
    assert client.sock.recv(65536)
    client.reset() if way == "reset" else client.close()
    site.upstream.connections[0].wait_closed()
    assert site.ask().body == b"hello"


@pytest.mark.parametrize("way", ["reset", "close"])
@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_client_gone_mid_request(site: Site, way: str, framing: str) -> None:
    """The upstream must see its connection end, never a completed body."""
    client = site.client().send(site.request("POST", "/", framing), b"3e8\r\n" + b"x" * 1000)
    site.upstream.wait(lambda: bool(site.requests) and site.requests[0].body_size >= 1000, "the body's first bytes")
    client.reset() if way == "reset" else client.close()
    site.upstream.connections[0].wait_closed()
    assert not site.requests[0].complete
    assert site.ask().body == b"hello"


@pytest.mark.parametrize("way", ["reset", "close"])
def test_client_gone_while_the_upstream_thinks(site: Site, way: str) -> None:
    """The upstream request is cancelled: at once on a reset, within the half-close grace on a close."""
    gone: list[bool] = []
    site.on("/think", lambda call: (gone.append(call.wait_gone()), call.close()))
    client = site.client().send(site.request("POST", "/think", body=b"a whole body"))
    site.upstream.wait_requests(1)
    client.reset() if way == "reset" else client.close()
    site.upstream.connections[0].wait_closed()
    assert gone == [True]


def test_client_gone_with_requests_still_in_the_pipeline(site: Site) -> None:
    site.on("/think", lambda call: (call.wait_gone(), call.close()))
    client = site.client().send(site.request(target="/think") + site.request("POST", "/second", body=b"x"))
    site.upstream.wait_requests(1)
    client.reset()
    site.upstream.connections[0].wait_closed()
    assert site.ask(target="/third").status == 200
    assert [request.target for request in site.requests] == ["/think", "/third"]


@pytest.mark.parametrize("framed", ["length", "chunked", "close"])
def test_half_closed_client_gets_its_answer(site: Site, framed: str) -> None:
    body = b"answer" * 1000

    def answer(call: Call) -> None:
        call.body()
        if framed == "length":
            call.answer(200, body)
        elif framed == "chunked":
            call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunked([body]))
        else:
            call.send(b"HTTP/1.1 200 OK\r\n\r\n", body)
            call.close()

    site.on("/", answer)
    client = site.client().send(site.request("POST", "/", body=b"data"))
    client.half_close()
    reply = client.response()
    assert (reply.status, reply.body) == (200, body)
    assert client.closed()


def test_half_closed_client_gets_a_long_answer_whole(site: Site) -> None:
    """The answer has begun: the grace is over and the download goes on to its end."""
    size = 8 << 20
    client = site.client()
    shut = site.upstream.gate()

    def long(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        shut.wait()
        for _ in range(size // len(PIECE)):
            call.send(PIECE)

    site.on("/long", long)
    client.send(site.request(target="/long"))
    site.upstream.wait_requests(1)
    client.half_close()
    shut.set()
    assert client.response().size == size


def test_half_closed_client_of_a_pipeline(site: Site) -> None:
    data = b"".join(site.request(target=f"/{number}") for number in range(5))
    client = site.client().send(data)
    client.half_close()
    for _ in range(5):
        assert client.response().status == 200
    assert client.closed()


def test_half_close_within_a_request_is_its_end(site: Site) -> None:
    """No complete request will come any more: nothing is invented."""
    client = site.client().send(site.request("POST", "/", "Content-Length: 100") + b"x" * 10)
    site.upstream.wait_requests(1)
    client.half_close()
    client.rest()
    site.upstream.connections[0].wait_closed()
    assert not site.requests[0].complete


def test_close_within_a_head(site: Site) -> None:
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: ")
    client.half_close()
    assert b" 200 " not in client.rest()
    assert not site.requests


# -- the upstream goes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("sent", [b"", b"HTT", b"HTTP/1.1 200 OK\r\ncontent-le"])
def test_upstream_gone_before_its_head(site: Site, way: str, sent: bytes) -> None:
    def leave(call: Call) -> None:
        call.body()
        call.send(sent)
        call.close() if way == "close" else call.reset()

    site.on("/", leave)
    answer = site.ask("POST", "/", body=b"once")
    assert (answer.status, answer.error) == (502, "upstream-reset")
    assert len(site.requests) == 1, "not to be repeated: it may have been acted upon"


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("framing", [b"content-length: 100000", b"transfer-encoding: chunked"])
def test_upstream_gone_within_its_body(site: Site, way: str, framing: bytes) -> None:
    """The client must be able to tell: its connection ends short of the promised end."""
    ready = site.upstream.gate()

    def leave(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", b"5\r\nhello\r\n")
        ready.wait()
        call.close() if way == "close" else call.reset()

    site.on("/", leave)
    client = site.client().send(site.request())
    got = client.sock.recv(65536)
    ready.set()
    got += client.rest()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert not got.endswith(b"0\r\n\r\n")
    assert len(got) < 1000


def test_upstream_reset_within_a_close_delimited_body(site: Site) -> None:
    """A reset is no orderly end: the chunked answer of the client must stay unfinished."""
    ready = site.upstream.gate()

    def leave(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        ready.wait()
        call.reset()

    site.on("/", leave)
    client = site.client().send(site.request())
    got = client.sock.recv(65536)
    ready.set()
    got += client.rest()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert not got.endswith(b"0\r\n\r\n")


def test_a_cut_answer_that_only_its_end_delimits_is_reset(site: Site) -> None:
    """An HTTP/1.0 client would take an orderly close for the end of a whole answer."""

    def cut(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        call.close()

    site.on("/cut", cut)
    host, _, port = site.proxy.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as client:
        client.sendall(b"GET /cut HTTP/1.0\r\nHost: %s\r\n\r\n" % site.host.encode())
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: client.recv(65536), b""))


def test_upstream_gone_while_the_body_is_sent(site: Site) -> None:
    """It answers and closes without reading 8 MiB: the client gets the answer or a 502, and never hangs."""
    site.on("/", lambda call: (call.answer(413, b"no"), call.close()))
    data = site.request("POST", "/", body=b"x" * (8 << 20))
    client = site.client()

    def pour() -> None:
        with contextlib.suppress(OSError):  # graylb may close after the answer
            client.send(data)

    sender = threading.Thread(target=pour)
    sender.start()
    answer = client.response()
    client.close()
    sender.join()
    assert answer.status in (413, 502)
    assert site.ask(target="/next").body == b"hello"


def test_a_thousand_short_lives_leave_nothing_behind(site: Site) -> None:
    """Clients that come and go in every state: the worker's descriptors return to where they were."""
    site.on("/think", lambda call: (call.wait_gone(), call.close()))
    (worker,) = site.proxy.workers()
    assert site.ask().status == 200
    before = psutil.Process(worker).num_fds()
    for number in range(200):
        client = site.proxy.client()
        if number % 4 == 1:
            client.send(b"GET / HT")
        elif number % 4 == 2:
            client.send(site.request("POST", "/", "Content-Length: 10") + b"x")
        elif number % 4 == 3:
            client.send(site.request(target="/think"))
        client.reset() if number % 2 else client.close()
    site.upstream.wait(lambda: psutil.Process(worker).num_fds() <= before, f"descriptors back at {before}")
    assert site.ask().status == 200
