"""The corners of HTTP/1: HEAD, bodiless statuses, 1xx, HTTP/1.0 on either side, pipelining, HTTP/0.9 answers."""

from __future__ import annotations

import socket

import pytest

from tests.conftest import Site
from tests.integration import wire
from tests.integration.client import chunked
from tests.integration.upstream import Call

CHUNKED_HELLO = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked([b"hel", b"lo"])


# -- HEAD and bodiless statuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n",
    ],
)
def test_head_has_no_body_and_the_connection_goes_on(site: Site, head: bytes) -> None:
    site.on("/head", lambda call: call.send(head))
    client = site.client()
    for _ in range(2):
        answer = client.send(site.request("HEAD", "/head") + site.request("GET", "/next")).response("HEAD")
        assert (answer.status, answer.body) == (int(head.split()[1]), b"")
        if b"content-length: 12345" in head:
            assert answer.get("content-length") == "12345"
        following = client.response()
        assert (following.status, following.body) == (200, b"hello")
    assert len(site.upstream.connections) == 1, "an answer to HEAD ends at its head: the connection is good"


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("extra", ["", "content-length: 5", "transfer-encoding: chunked"])
def test_statuses_without_a_body(site: Site, status: int, extra: str) -> None:
    """No body whatever the head says; what follows on the connection is the next answer."""
    lines = [f"HTTP/1.1 {status} Status", 'etag: "x"', *([extra] if extra else []), "", ""]
    head = "\r\n".join(lines)
    site.on("/none", lambda call: call.send(head.encode()))
    client = site.client().send(site.request(target="/none") + site.request(target="/next"))
    answer = client.response()
    assert (answer.status, answer.body, answer.get("etag")) == (status, b"", '"x"')
    if status == 204:
        assert answer.get("content-length") is None, "RFC 9110, 8.6: no Content-Length in a 204"
        assert answer.get("transfer-encoding") is None, "RFC 9112, 6.1: no Transfer-Encoding in a 204"
    following = client.response()
    assert (following.status, following.body) == (200, b"hello")


def test_a_body_behind_204_reaches_nobody(site: Site) -> None:
    site.on("/none", lambda call: call.send(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\nEVIL"))
    client = site.client()
    for _ in range(3):
        assert client.send(site.request(target="/none")).response().status == 204
        assert client.send(site.request()).response().body == b"hello"


def test_empty_answer_with_length_zero(site: Site) -> None:
    site.on("/empty", lambda call: call.answer(200, b""))
    client = site.client().send(site.request(target="/empty") + site.request())
    assert client.response().get("content-length") == "0"
    assert client.response().body == b"hello"


@pytest.mark.parametrize(
    "line", ["HTTP/1.1 200 ", "HTTP/1.1 299 Gar\xe4ge of (many) words", "HTTP/1.1 599 X", "HTTP/1.1 200"]
)
def test_odd_status_lines_pass(site: Site, line: str) -> None:
    site.on("/odd", lambda call: call.send(line.encode("latin-1") + b"\r\ncontent-length: 2\r\n\r\nok"))
    answer = site.ask(target="/odd")
    assert (answer.status, answer.body, answer.version) == (int(line.split()[1]), b"ok", "1.1")


# -- 1xx -------------------------------------------------------------------------------------------------------


def test_expect_100_continue(site: Site) -> None:
    def careful(call: Call) -> None:
        assert call.request.get("expect") == "100-continue"
        call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        call.answer(200, call.body())

    site.on("/careful", careful)
    client = site.client()
    for body in (b"first", b"second"):
        client.send(site.request("POST", "/careful", "Expect: 100-continue", f"Content-Length: {len(body)}"))
        interim = b""
        while not interim.endswith(b"\r\n\r\n"):
            piece = client.sock.recv(1)
            assert piece
            interim += piece
        assert interim.startswith(b"HTTP/1.1 100 ")
        answer = client.send(body).response()
        assert (answer.status, answer.body, answer.interim) == (200, body, [])


def test_expect_100_continue_refused(site: Site) -> None:
    """A final answer in place of 100: the client never sends the body; that upstream connection is not reused."""

    def refuse(call: Call) -> None:
        call.answer(413, b"too much")
        call.wait_gone()
        call.close()

    site.on("/refuse", refuse)
    client = site.client().send(site.request("POST", "/refuse", "Expect: 100-continue", "Content-Length: 1000"))
    answer = client.response()
    assert (answer.status, answer.body, answer.interim) == (413, b"too much", [])
    assert site.ask().body == b"hello"
    assert [request.connection for request in site.requests] == [1, 2]


def test_expect_100_continue_without_waiting(site: Site) -> None:
    """The body comes at once; an upstream that sends no 100 is fine."""
    answer = site.ask_raw(site.request("POST", "/", "Expect: 100-continue", body=b"impatient"))
    assert (answer.status, answer.interim) == (200, [])
    assert bytes(site.requests[0].body) == b"impatient"


def test_interim_answers_are_passed_on(site: Site) -> None:
    def hints(call: Call) -> None:
        call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
        call.answer(200, b"done")

    site.on("/hints", hints)
    client = site.client().send(site.request(target="/hints") + site.request())
    answer = client.response()
    assert (answer.status, answer.body, answer.interim) == (200, b"done", [103, 102])
    assert client.response().body == b"hello"
    assert len(site.upstream.connections) == 1


def test_interim_and_final_answer_and_close_in_one_piece(site: Site) -> None:
    """What came before the end of the stream counts, however it was cut."""

    def all_at_once(call: Call) -> None:
        call.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")
        call.close()

    site.on("/hints", all_at_once)
    for _ in range(10):
        answer = site.ask(target="/hints")
        assert (answer.status, answer.body, answer.interim) == (200, b"done", [103])


def test_interim_answers_are_not_for_http_1_0(site: Site) -> None:
    """RFC 9110, 15.2: no 1xx to an HTTP/1.0 client."""
    site.on("/hints", lambda call: (call.send(b"HTTP/1.1 103 Early Hints\r\n\r\n"), call.answer(200, b"done")))
    answer = site.ask(target="/hints", version="1.0")
    assert (answer.status, answer.body, answer.interim) == (200, b"done", [])


def test_expect_of_http_1_0_is_ignored(site: Site) -> None:
    answer = site.ask("POST", "/", "Expect: 100-continue", body=b"old", version="1.0")
    assert (answer.status, answer.interim) == (200, [])
    assert bytes(site.requests[0].body) == b"old"


def test_unasked_switching_of_protocols_is_an_invalid_answer(site: Site) -> None:
    site.on(
        "/",
        lambda call: (
            call.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            call.wait_gone(),
            call.close(),
        ),
    )
    answer = site.ask()
    assert (answer.status, answer.error) == (502, "upstream-invalid")


# -- HTTP/1.0 ----------------------------------------------------------------------------------------------------


def test_http_1_0_client_is_closed_after_its_answer(site: Site) -> None:
    client = site.client().send(site.request(version="1.0"))
    answer = client.response()
    assert (answer.status, answer.body) == (200, b"hello")
    assert (answer.get("connection") or "close") == "close"
    assert client.closed()


def test_http_1_0_client_with_keep_alive(site: Site) -> None:
    client = site.client()
    for _ in range(3):
        answer = client.send(site.request("GET", "/", "Connection: keep-alive", version="1.0")).response()
        assert (answer.status, answer.body, answer.framing) == (200, b"hello", "length")
        assert (answer.get("connection") or "").lower() == "keep-alive"
    answer = client.send(site.request(version="1.0")).response()
    assert answer.status == 200
    assert client.closed()
    assert len(site.upstream.connections) == 1


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)])
def test_http_1_0_client_gets_chunks_undone(site: Site, headers: tuple[str, ...]) -> None:
    site.on("/chunked", lambda call: call.send(CHUNKED_HELLO))
    client = site.client().send(site.request("GET", "/chunked", *headers, version="1.0"))
    answer = client.response()
    assert (answer.status, answer.framing, answer.body) == (200, "close", b"hello")
    assert (answer.get("connection") or "close") == "close"


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 304 Not Modified\r\n"])
def test_no_transfer_encoding_for_an_http_1_0_client(site: Site, head: bytes) -> None:
    """RFC 9112, 6.1: not even in an answer without a body."""
    site.on("/", lambda call: call.send(head + b"transfer-encoding: chunked\r\n\r\n"))
    answer = site.ask("HEAD", "/", "Connection: keep-alive", version="1.0")
    assert (answer.all("transfer-encoding"), answer.body) == ([], b"")


def test_http_1_0_client_with_a_body(site: Site) -> None:
    answer = site.ask("POST", "/", body=b"x" * 1000, version="1.0")
    assert (answer.status, answer.get("x-body-size")) == (200, "1000")


def test_http_1_0_upstream(site: Site) -> None:
    """With a length and closing; the HTTP/1.1 client keeps its connection."""

    def old(call: Call) -> None:
        call.send(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold")
        call.close()

    site.on("/old", old)
    client = site.client()
    for _ in range(3):
        answer = client.send(site.request(target="/old")).response()
        assert (answer.status, answer.body, answer.version) == (200, b"old", "1.1")
        assert "close" not in (answer.get("connection") or "")


def test_http_1_0_upstream_is_not_pooled_without_keep_alive(site: Site) -> None:
    site.on("/old", lambda call: call.send(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold"))
    for _ in range(2):
        assert site.ask(target="/old").body == b"old"
    assert [request.connection for request in site.requests] == [1, 2]


def test_http_1_0_upstream_with_keep_alive_is_pooled(site: Site) -> None:
    raw = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nold"
    site.on("/old", lambda call: call.send(raw))
    for _ in range(3):
        answer = site.ask(target="/old")
        assert (answer.body, answer.get("keep-alive")) == (b"old", None)
    assert len(site.upstream.connections) == 1


def test_close_delimited_http_1_0_upstream(site: Site) -> None:
    def old(call: Call) -> None:
        call.send(b"HTTP/1.0 200 OK\r\n\r\nuntil", b" the end")
        call.close()

    site.on("/old", old)
    client = site.client()
    answer = client.send(site.request(target="/old")).response()
    assert (answer.status, answer.framing, answer.body) == (200, "chunked", b"until the end")
    assert client.send(site.request()).response().body == b"hello"


def test_close_delimited_upstream_and_http_1_0_client(site: Site) -> None:
    site.on("/old", lambda call: (call.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), call.close()))
    client = site.client().send(site.request(target="/old", version="1.0"))
    answer = client.response()
    assert (answer.framing, answer.body) == ("close", b"until the end")


# -- pipelining --------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    site.on("/echo", lambda call: call.answer(200, call.request.target.encode() + b" " + call.body()))
    client = site.client()
    requests = []
    for number in range(30):
        if number % 3 == 0:
            requests.append(site.request("GET", f"/echo?{number}"))
        elif number % 3 == 1:
            requests.append(site.request("POST", f"/echo?{number}", body=b"b%d" % number))
        else:
            head = site.request("POST", f"/echo?{number}", "Transfer-Encoding: chunked")
            requests.append(head + chunked([b"b", b"%d" % number]))
    client.send(b"".join(requests))
    for number in range(30):
        body = f"b{number}" if number % 3 else ""
        assert client.response().body == f"/echo?{number} {body}".encode()
    assert len(site.requests) == 30


@pytest.mark.parametrize("step", [1, 3, 17, 64, 1000])
def test_pipelined_requests_in_pieces(site: Site, step: int) -> None:
    site.on("/echo", lambda call: call.answer(200, call.request.target.encode() + b" " + call.body()))
    data = b"".join(
        site.request("GET", f"/echo?{number}") + site.request("POST", f"/echo?{number}", body=b"x" * number)
        for number in range(8)
    )
    client = site.client().drip(data, step)
    for number in range(8):
        assert client.response().body == f"/echo?{number} ".encode()
        assert client.response().body == f"/echo?{number} ".encode() + b"x" * number


def test_a_slow_first_answer_does_not_let_the_second_overtake(site: Site) -> None:
    gate = site.upstream.gate()
    site.on("/slow", lambda call: (gate.wait(), call.answer(200, b"slow")))
    client = site.client().send(site.request(target="/slow") + site.request(target="/quick"))
    site.upstream.wait_requests(1)
    assert site.ask(target="/bystander").body == b"hello"
    gate.set()
    assert client.response().body == b"slow"
    assert client.response().body == b"hello"


def test_pipelined_versions_side_by_side(site: Site) -> None:
    """An HTTP/1.0 request among 1.1 ones: it ends the connection after its own answer."""
    data = site.request(target="/1") + site.request("GET", "/2", "Connection: keep-alive", version="1.0")
    client = site.client().send(data + site.request(target="/3") + site.request(target="/4", version="1.0"))
    for _ in range(4):
        assert client.response().status == 200
    assert client.closed()
    assert [request.target for request in site.requests] == ["/1", "/2", "/3", "/4"]


def test_requests_behind_close_are_not_served(site: Site) -> None:
    data = site.request("GET", "/1", "Connection: close") + site.request("POST", "/2", body=b"x")
    client = site.client().send(data)
    assert client.response().status == 200
    assert client.rest() == b""
    assert site.ask(target="/3").status == 200
    assert [request.target for request in site.requests] == ["/1", "/3"]


def test_an_error_in_the_middle_of_a_pipeline(site: Site) -> None:
    """What came before is answered, the bad one is refused, what comes behind it reaches nobody."""
    bad = site.request("GET", "/bad", "Bad Header: x")
    client = site.client().send(site.request(target="/1") + bad + site.request(target="/smuggled"))
    assert client.response().body == b"hello"
    answer = client.response()
    assert (answer.status, answer.get("connection")) == (400, "close")
    assert client.closed()
    assert [request.target for request in site.requests] == ["/1"]


def test_empty_lines_before_a_request(site: Site) -> None:
    """RFC 9112, 2.2: a server should ignore at least one."""
    client = site.client().send(b"\r\n" + site.request())
    assert client.response().status == 200
    assert client.send(b"\r\n" + site.request()).response().status == 200


def test_a_head_and_its_fields_reach_the_upstream_as_they_are(site: Site) -> None:
    lines = ["X-Case: Kept  Inside", "x-empty:", "X-Utf: na\xc3\xafve", "Cookie: a=1; b=2", "X-Twice: 1", "X-Twice: 2"]
    target = "/a//b/../c;p=1?q=%41&empty&x=a+b"
    assert site.ask("GET", target, *lines).status == 200
    arrived = site.requests[0]
    assert arrived.target == target
    assert arrived.get("x-case") == "Kept  Inside"
    assert (arrived.get("x-empty"), arrived.get("x-utf")) == ("", "na\xc3\xafve")
    assert (arrived.get("cookie"), arrived.all("x-twice")) == ("a=1; b=2", ["1", "2"])
    assert arrived.get("host") == site.host
    assert wire.parse_request_head(arrived.head)[0] == "GET"


def test_an_answers_fields_reach_the_client_as_they_are(site: Site) -> None:
    lines = ["Set-Cookie: a=1; Path=/", "Set-Cookie: b=2", "X-Empty:", "Server: thing/1.0", "Date: today"]
    site.on("/", lambda call: call.answer(200, b"x", *lines))
    answer = site.ask()
    assert answer.all("set-cookie") == ["a=1; Path=/", "b=2"]
    assert (answer.get("x-empty"), answer.get("server"), answer.get("date")) == ("", "thing/1.0", "today")


def test_absolute_form_is_routed_and_forwarded_in_origin_form(site: Site) -> None:
    answer = site.ask("GET", f"http://{site.host}/path?x=1")
    assert answer.status == 200
    assert (site.requests[0].target, site.requests[0].get("host")) == ("/path?x=1", site.host)


def test_options_asterisk(site: Site) -> None:
    """`*` is no path: it may have no route, but it never turns into another target."""
    answer = site.ask("OPTIONS", "*")
    assert (answer.status, answer.error) in ((200, None), (404, "no-route"))
    assert [request.target for request in site.requests] == (["*"] if answer.status == 200 else [])


def everything(site: Site, target: str) -> bytes:
    """All that a client receives, as it is."""
    host, _, port = site.proxy.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(site.request("GET", target, "Connection: close"))
        return b"".join(iter(lambda: raw.recv(65536), b""))


def test_an_interim_answer_has_no_length(site: Site) -> None:
    """A Content-Length of a 103 went on to the client, which might have waited for its body."""

    def early(call: Call) -> None:
        call.send(b"HTTP/1.1 103 Early Hints\r\nContent-Length: 38\r\nlink: x\r\n\r\n")
        call.answer(200, b"done")

    site.on("/early", early)
    interim, _, rest = everything(site, "/early").partition(b"\r\n\r\n")
    assert interim == b"HTTP/1.1 103 Early Hints\r\nlink: x"
    assert rest.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("line", [b"X_Under: 5", b"Expect: nothing"])
def test_laws_of_requests_do_not_bind_answers(site: Site, line: bytes) -> None:
    site.on("/odd", lambda call: call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + line + b"\r\n\r\nok"))
    got = everything(site, "/odd")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert line + b"\r\n" in got
