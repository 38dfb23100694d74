"""Bodies of every framing, both ways, whole and in crumbs, unchanged and canonically framed."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from tests.conftest import Site
from tests.integration import wire
from tests.integration.client import chunked
from tests.integration.upstream import Call

SIZES = [0, 1, 2, 1023, 4096, 65535, 65536, 65537, 262144, 1 << 20]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def echo(call: Call) -> None:
    call.answer(200, call.body())


def echo_chunked(call: Call) -> None:
    body = call.body()
    call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked([body] if body else []))


def echo_close(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\n\r\n", call.body())
    call.close()


@pytest.mark.parametrize("size", SIZES)
def test_content_length_both_ways(site: Site, size: int) -> None:
    site.on("/", echo)
    body = noise(size)
    answer = site.ask("POST", "/", body=body)
    assert (answer.status, answer.framing, answer.body == body) == (200, "length", True)
    assert site.requests[0].get("content-length") == str(size)
    assert site.requests[0].get("transfer-encoding") is None
    assert bytes(site.requests[0].body) == body


@pytest.mark.parametrize("size", SIZES)
def test_chunked_both_ways(site: Site, size: int) -> None:
    site.on("/", echo_chunked)
    body = noise(size)
    pieces = [body[at : at + 7001] for at in range(0, size, 7001)]
    answer = site.ask_raw(site.request("POST", "/", "Transfer-Encoding: chunked") + chunked(pieces))
    assert (answer.status, answer.framing, answer.body == body) == (200, "chunked", True)
    data, _, rest = wire.parse_chunked(answer.wire_body)
    assert (data == body, rest) == (True, b"")
    assert site.requests[0].get("transfer-encoding") == "chunked"
    assert site.requests[0].get("content-length") is None
    assert bytes(site.requests[0].body) == body


@pytest.mark.parametrize("size", SIZES)
def test_close_delimited_answer(site: Site, size: int) -> None:
    """An HTTP/1.1 client gets it chunked and keeps its connection: the end is certain."""
    site.on("/", echo_close)
    body = noise(size)
    client = site.client().send(site.request("POST", "/", body=body))
    answer = client.response()
    assert (answer.status, answer.framing, answer.body == body) == (200, "chunked", True)
    assert client.send(site.request("POST", "/", body=b"again")).response().body == b"again"


def test_request_one_byte_at_a_time(site: Site) -> None:
    site.on("/drip", echo)
    body = noise(300)
    client = site.client().drip(site.request("POST", "/drip?x=1", "X-Name: value", body=body))
    assert client.response().body == body
    client.drip(
        site.request("POST", "/drip", "Transfer-Encoding: chunked") + chunked([body[:1], body[1:200], body[200:]])
    )
    assert client.response().body == body
    assert len(site.requests) == 2


def test_answer_one_byte_at_a_time(site: Site) -> None:
    body = noise(300)
    whole = {
        "/length": b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\nx-name: value\r\n\r\n" + body,
        "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunked([body[:1], body[1:200], body[200:]]),
    }

    def drip(call: Call) -> None:
        for byte in whole[call.request.target]:
            call.send(bytes([byte]))

    client = site.client()
    for path in whole:
        site.on(path, drip)
        assert client.send(site.request(target=path)).response().body == body
    assert len(site.upstream.connections) == 1


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 16, 17])
def test_chunks_cut_anywhere(site: Site, step: int) -> None:
    """The same chunked request cut at every multiple of `step`."""
    site.on("/", echo_chunked)
    body = noise(257)
    pieces = [body[:1], body[1:16], body[16:33], body[33:]]
    data = site.request("POST", "/", "Transfer-Encoding: chunked") + chunked(pieces)
    assert site.client().drip(data, step).response().body == body


def test_a_thousand_chunks_each_way(site: Site) -> None:
    site.on(
        "/", lambda call: call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunked(cut(call.body())))
    )

    def cut(data: bytes) -> list[bytes]:
        return [data[at : at + 13] for at in range(0, len(data), 13)]

    body = noise(13 * 1000)
    answer = site.ask_raw(site.request("POST", "/", "Transfer-Encoding: chunked") + chunked(cut(body)))
    assert (answer.status, answer.body == body) == (200, True)
    assert wire.parse_chunked(answer.wire_body)[0] == body
    assert bytes(site.requests[0].body) == body


def test_odd_but_valid_chunk_sizes_are_re_emitted_canonically(site: Site) -> None:
    """The upstream reads strictly: leading zeros, capitals and extensions must not reach it."""
    site.on("/", echo)
    raw = b'0005;name=value\r\nhello\r\n00A\r\n0123456789\r\n1;q="x;y"\r\n!\r\n000;last\r\n\r\n'
    answer = site.ask_raw(site.request("POST", "/", "Transfer-Encoding: chunked") + raw)
    assert (answer.status, answer.body) == (200, b"hello0123456789!")


def test_odd_but_valid_chunk_sizes_in_an_answer(site: Site) -> None:
    raw = b"0005;name=value\r\nhello\r\n00A\r\n0123456789\r\n000;last\r\n\r\n"
    site.on("/", lambda call: call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + raw))
    answer = site.ask()
    assert answer.body == b"hello0123456789"
    data, _, rest = wire.parse_chunked(answer.wire_body)
    assert (data, rest) == (b"hello0123456789", b"")


def test_trailers_are_dropped_both_ways(site: Site) -> None:
    trailers = b"5\r\nhello\r\n0\r\nX-Trailer: one\r\nContent-Length: 3\r\nHost: evil\r\n\r\n"

    def answer(call: Call) -> None:
        call.body()
        call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-trailer\r\n\r\n" + trailers)

    site.on("/", answer)
    client = site.client()
    for _ in range(2):
        data = site.request("POST", "/", "Transfer-Encoding: chunked", "Trailer: X-Trailer") + trailers
        reply = client.send(data).response()
        assert (reply.status, reply.body, reply.trailers) == (200, b"hello", [])
        assert wire.parse_chunked(reply.wire_body) == (b"hello", 1, b"")
    assert [bytes(request.body) for request in site.requests] == [b"hello", b"hello"]
    assert len(site.upstream.connections) == 1


def test_leading_zeros_in_content_length_are_re_emitted_canonically(site: Site) -> None:
    site.on("/", echo)
    answer = site.ask_raw(site.request("POST", "/", "Content-Length: 0005") + b"hello")
    assert (answer.status, answer.body) == (200, b"hello")
    assert site.requests[0].get("content-length") == "5"


def test_leading_zeros_in_an_answers_content_length(site: Site) -> None:
    site.on("/", lambda call: call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 005\r\n\r\nhello"))
    answer = site.ask()
    assert (answer.status, answer.body, answer.get("content-length")) == (200, b"hello", "5")


def test_post_without_a_body_announces_one_of_none(site: Site) -> None:
    """`Content-Length: 0` is passed on; a POST without any framing has no body, and the next request is read."""
    client = site.client()
    assert client.send(site.request("POST", "/", body=b"")).response().status == 200
    assert client.send(site.request("POST", "/bare")).response().status == 200
    assert client.send(site.request()).response().status == 200
    assert site.requests[0].get("content-length") == "0"
    assert [request.body_size for request in site.requests] == [0, 0, 0]


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "PUT", "QUERY"])
def test_any_method_may_carry_a_body(site: Site, method: str) -> None:
    site.on("/", echo)
    client = site.client()
    assert client.send(site.request(method, "/", body=b"content")).response(method).body == b"content"
    assert client.send(site.request("GET", "/next")).response().body == b"hello"
    assert (site.requests[0].method, bytes(site.requests[0].body)) == (method, b"content")


def test_answer_before_the_body_is_read(site: Site) -> None:
    """The upstream answers at the head; the body is still to come. The connection must not be reused half-read."""
    site.on("/early", lambda call: (call.answer(403, b"no"), call.close()))
    body = noise(1 << 20)
    client = site.client()
    head = site.request("POST", "/early", f"Content-Length: {len(body)}")
    client.send(head + body[:1000])
    answer = client.response()
    assert (answer.status, answer.body) == (403, b"no")
    assert site.ask().body == b"hello"
    assert site.requests[-1].connection == 2


def test_early_answer_of_an_upstream_that_goes_on_reading(site: Site) -> None:
    """A final answer before the whole body: the client gets it, and no other request rides on that connection."""
    gate = site.upstream.gate()

    def early(call: Call) -> None:
        call.answer(200, b"enough")
        gate.wait()

    site.on("/early", early)
    client = site.client().send(site.request("POST", "/early", "Content-Length: 100") + b"x" * 10)
    assert client.response().body == b"enough"
    client.close()
    gate.set()
    assert site.ask().body == b"hello"
    assert [request.connection for request in site.requests] == [1, 2]


def test_duplex(site: Site) -> None:
    """Pieces go through as they come, in both directions at once: a ping-pong within one exchange."""

    def pong(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while piece := call.read():
            call.send(b"%x\r\n%b\r\n" % (len(piece), piece.upper()))
        call.send(b"0\r\n\r\n")

    site.on("/", pong)
    client = site.client().send(site.request("POST", "/", "Transfer-Encoding: chunked"))
    buffer = b""

    def expect(mark: bytes) -> None:
        nonlocal buffer
        while mark not in buffer:
            piece = client.sock.recv(65536)
            assert piece, f"closed before {mark!r}: {buffer!r}"
            buffer += piece
        buffer = buffer.partition(mark)[2]

    for turn in range(10):
        client.send(b"6\r\nping-%d\r\n" % turn)
        expect(b"PING-%d\r\n" % turn)
    client.send(b"0\r\n\r\n")
    expect(b"0\r\n\r\n")


def test_large_bodies_both_ways_at_once(site: Site) -> None:
    """8 MiB up while 8 MiB come down: neither direction waits for the other's end."""
    size = 8 << 20
    digest = hashlib.sha256()

    def swap(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        sent = 0
        while piece := call.read():
            digest.update(piece)
            call.send(piece)
            sent += len(piece)
        assert sent == size

    site.on("/", swap)
    body = noise(size)
    got = hashlib.sha256()
    client = site.client()
    sender = threading.Thread(target=client.send, args=(site.request("POST", "/", body=body),))
    sender.start()
    answer = client.response(sink=got.update)
    sender.join()
    assert (answer.status, answer.size) == (200, size)
    assert digest.digest() == got.digest() == hashlib.sha256(body).digest()
