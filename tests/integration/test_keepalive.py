"""Connections live on: on both sides, reused last in first out, never after anything doubtful."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from tests.conftest import Site
from tests.integration import proxies
from tests.integration.client import request
from tests.integration.upstream import Call, running

BULK = 20


def test_serial_requests_share_both_connections(site: Site) -> None:
    client = site.client()
    for number in range(BULK):
        answer = client.send(site.request(target=f"/{number}")).response()
        assert (answer.status, answer.body) == (200, b"hello")
        assert "close" not in (answer.get("connection") or "")
    assert [request.target for request in site.requests] == [f"/{number}" for number in range(BULK)]
    assert len(site.upstream.connections) == 1


def test_serial_clients_share_one_upstream_connection(site: Site) -> None:
    for _ in range(BULK):
        assert site.ask().status == 200
    assert len(site.upstream.connections) == 1


def test_reuse_is_last_in_first_out(site: Site) -> None:
    gate = site.upstream.gate()

    def hold(call: Call) -> None:
        gate.wait()
        call.answer(200, b"held", f"x-connection: {call.request.connection}")

    site.on("/hold", hold)
    clients = [site.client() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(site.request(target="/hold"))
        site.upstream.wait_requests(number + 1)
    gate.set()
    for client in clients:  # answers are read one after another; which connection rests last is the last to answer
        assert client.response().status == 200
    assert len(site.upstream.connections) == 3
    used = []
    for _ in range(BULK):
        assert site.ask().status == 200
        used.append(site.requests[-1].connection)
    assert len(set(used)) == 1, f"serial requests went over several pooled connections: {used}"


def test_a_busy_connection_is_never_shared(site: Site) -> None:
    gate = site.upstream.gate()
    site.on("/hold", lambda call: (gate.wait(), call.answer(200, b"held")))
    slow = site.client().send(site.request(target="/hold"))
    site.upstream.wait_requests(1)
    assert site.ask(target="/other").body == b"hello"
    gate.set()
    assert slow.response().body == b"held"
    assert [request.connection for request in site.requests] == [1, 2]


def test_one_pool_per_instance(tmp_path: Path) -> None:
    """Two versions behind one service: a connection to one instance never carries a request for the other."""
    with running("v1", "v2") as (one, two):
        rule = {"name": "beta", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}
        users = proxies.service((one.address, "v1"), (two.address, "v2"), rules=[rule])
        with proxies.running(tmp_path, proxies.document({"users": users})) as proxy, proxy.client() as client:
            for turn in range(BULK):
                beta = turn % 2
                answer = client.ask(headers=["User-Group: beta"] if beta else [])
                assert answer.get("x-upstream") == ("v2" if beta else "v1")
                assert answer.get("x-graylb-version") == ("v2" if beta else "v1")
        assert (len(one.connections), len(two.connections)) == (1, 1)


def test_connection_close_from_the_client(site: Site) -> None:
    client = site.client().send(site.request("GET", "/", "Connection: close"))
    answer = client.response()
    assert (answer.status, answer.get("connection")) == (200, "close")
    assert client.closed()
    assert site.ask().status == 200
    assert len(site.upstream.connections) == 1, "the client's wish to close is no wish to close the upstream's"


def test_connection_close_from_the_upstream(site: Site) -> None:
    def last(call: Call) -> None:
        call.answer(200, b"last", "Connection: close")
        call.close()

    site.on("/last", last)
    client = site.client()
    answer = client.send(site.request(target="/last")).response()
    assert (answer.status, answer.body) == (200, b"last")
    assert "close" not in (answer.get("connection") or ""), "hop-by-hop: the upstream's wish ends at graylb"
    assert client.send(site.request()).response().body == b"hello"
    assert [request.connection for request in site.requests] == [1, 2]


def test_announced_close_is_not_pooled_even_while_the_upstream_stays_open(site: Site) -> None:
    site.on("/last", lambda call: call.answer(200, b"last", "Connection: Close"))
    for _ in range(3):
        assert site.ask(target="/last").body == b"last"
    assert [request.connection for request in site.requests] == [1, 2, 3]
    for connection in site.upstream.connections:
        connection.wait_closed()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_idle_connection_closed_and_noticed(site: Site, method: str) -> None:
    """The upstream closed a pooled connection a while ago: the next request takes a fresh one."""
    site.on("/", lambda call: (call.body(), call.answer(200, b"bye"), call.close()))
    for number in range(5):
        body = b"data" if method == "POST" else None
        assert site.ask(method, "/", body=body).status == 200
        site.upstream.wait(lambda count=number + 1: not site.upstream.open_connections, "closed")  # type: ignore[misc]
        assert len(site.requests) == number + 1


def test_get_on_a_connection_that_dies_under_it_is_repeated(site: Site) -> None:
    """The keep-alive race: the upstream closes a reused connection just as the request arrives, without a byte."""
    seen: dict[int, int] = {}

    def die_on_reuse(call: Call) -> None:
        seen[call.request.connection] = seen.get(call.request.connection, 0) + 1
        if seen[call.request.connection] > 1:
            call.close()
        else:
            call.answer(200, b"first use")

    site.on("/", die_on_reuse)
    client = site.client()
    for _ in range(10):
        answer = client.send(site.request()).response()
        assert (answer.status, answer.body) == (200, b"first use")
    assert max(seen.values()) == 2, "no connection was ever reused: the test tests nothing"


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_post_on_a_connection_that_dies_under_it_is_not_doubled(site: Site, ending: str) -> None:
    def die_on_reuse(call: Call) -> None:
        call.body()
        if len([one for one in site.requests if one.connection == call.request.connection]) > 1:
            call.close() if ending == "close" else call.reset()
        else:
            call.answer(200, b"first use")

    site.on("/", die_on_reuse)
    statuses = [site.ask("POST", f"/?id={number}", body=b"payment").status for number in range(6)]
    assert 502 in statuses
    assert set(statuses) <= {200, 502}
    targets = [request.target for request in site.requests]
    assert len(targets) == len(set(targets)) == 6, f"a POST was sent twice: {targets}"


def test_post_racing_an_idle_close_is_never_doubled(site: Site) -> None:
    """Closed without being read: whatever graylb answers, one upstream at most has acted."""
    site.on("/", lambda call: (call.body(), call.answer(200, b"ok"), call.close()))
    statuses = [site.ask("POST", f"/?id={number}", body=b"payment").status for number in range(40)]
    assert set(statuses) <= {200, 502}
    targets = [request.target for request in site.requests]
    assert len(targets) == len(set(targets))
    assert targets == [f"/?id={number}" for number, status in enumerate(statuses) if status == 200]


def test_a_post_finds_out_that_its_pooled_connection_was_closed(tmp_path: Path) -> None:
    """Close and request wait for a stopped worker, the request first: it must not go out on the dead connection."""
    with running("v1") as (upstream,):
        doc = proxies.document({"users": proxies.service(upstream.address)})
        with proxies.running(tmp_path, doc) as proxy, proxy.client() as client:
            assert client.ask().status == 200
            worker = psutil.Process(proxy.workers()[0])
            worker.suspend()
            proxies.until(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker to stop")
            client.send(request("POST", "/", "x", body=b"payment"))
            upstream.connections[0].close()
            worker.resume()
            assert client.response("POST").status == 200
        assert [each.method for each in upstream.requests] == ["GET", "POST"]


@pytest.mark.parametrize("extra", [b"X", b"\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"])
def test_bytes_behind_the_answer_poison_the_connection(site: Site, extra: bytes) -> None:
    def generous(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood" + extra)

    site.on("/generous", generous)
    client = site.client()
    for number in range(3):
        answer = client.send(site.request(target="/generous")).response()
        assert (answer.status, answer.body) == (200, b"good")
        assert client.send(site.request()).response().body == b"hello"
        site.upstream.connections[2 * number // 2].wait_closed()
    used = [request.connection for request in site.requests if request.target == "/generous"]
    assert len(set(used)) == 3, f"a poisoned connection was used again: {used}"


def test_bytes_on_an_idle_connection_poison_it(site: Site) -> None:
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"
    assert site.ask().body == b"hello"
    site.upstream.connections[0].send(evil)
    site.upstream.connections[0].wait_closed()
    assert site.ask().body == b"hello"
    assert [request.connection for request in site.requests] == [1, 2]


def test_bytes_on_an_idle_connection_racing_a_request(site: Site) -> None:
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"
    client = site.client()
    for _ in range(50):
        assert client.send(site.request()).response().body == b"hello"
        idle = site.upstream.connections[-1]
        idle.send(evil)
        answer = client.send(site.request()).response()
        assert answer.body == b"hello", "a client was given an answer that nobody asked for"


def test_interim_answers_to_nobody_poison_it(site: Site) -> None:
    assert site.ask().body == b"hello"
    site.upstream.connections[0].send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    site.upstream.connections[0].wait_closed()
    assert site.ask().body == b"hello"


def test_many_clients_at_once(site: Site) -> None:
    """Answers never cross: 16 threads, each its own bodies, one worker."""
    site.on("/echo", lambda call: call.answer(200, call.body()))
    wrong: list[str] = []

    def work(name: int) -> None:
        with site.proxy.client() as client:
            for turn in range(30):
                body = f"{name}/{turn}".encode() * (turn + 1)
                answer = client.send(site.request("POST", "/echo", body=body)).response()
                if (answer.status, answer.body) != (200, body):
                    wrong.append(f"{name}/{turn}: {answer}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(site.requests) == 16 * 30
    assert len(site.upstream.connections) <= 16


def test_a_connection_that_dies_behind_an_interim_answer_was_not_stale(site: Site) -> None:
    """The GET was repeated, and the client got the instance's 103 twice."""
    assert site.ask().body == b"hello"
    site.on("/hint", lambda call: (call.send(b"HTTP/1.1 103 Early Hints\r\n\r\n"), call.close()))
    answer = site.ask(target="/hint")
    assert (answer.status, answer.error, answer.interim) == (502, "upstream-reset", [103])
    assert [request.connection for request in site.requests] == [1, 1]
