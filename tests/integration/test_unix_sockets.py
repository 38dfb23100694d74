"""Unix sockets on both sides: listeners without addresses of clients, instances at a path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from graylb.model.snapshot import Forwarding, StickyKey
from tests.integration import proxies
from tests.integration.engines import Ask, Rig, networks, request, run, run_bare, service, split, turns, until
from tests.integration.upstream import Upstream

BOTH = Forwarding(x_forwarded="append", forwarded="append")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's has at most 107 bytes."""
    with TemporaryDirectory() as made:
        yield Path(made)


def test_an_instance_at_a_path(folder: Path) -> None:
    """As any other: pooled, reused, bodies both ways."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin(path=str(folder / "s"))
        rig.swap(service(origin, connections={"warm": 1}))
        caller = await rig.caller()
        await until(lambda: rig.figures(origin)["idle"] == 1, lambda: rig.figures(origin))
        body = bytes(range(256)) * 2000
        for _ in range(5):
            assert (await caller.ask("POST", body=body)).status == 200
            assert origin.asks[-1].body == body
        assert origin.asks[0].get("x-forwarded-for") == "127.0.0.1"
        assert origin.asks[0].get("host") == "up"
        assert len(origin.links) == 1

    run(test)


def test_the_longest_path(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        path = str(folder / ("s" * (107 - len(str(folder)) - 1)))
        assert len(path) == 107
        rig.swap(service(await rig.origin(path=path)))
        assert (await rig.ask()).status == 200

    run(test)


@pytest.mark.parametrize("kind", ["nothing", "a file", "nobody listens"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_dead_path(folder: Path, kind: str, method: str) -> None:
    """502, and the other instance is asked if there is one."""

    async def test(rig: Rig) -> None:
        dead = await rig.origin(path=str(folder / "dead"))
        dead.server.close()
        await turns()
        if kind != "nobody listens":
            (folder / "dead").unlink(missing_ok=True)
        if kind == "a file":
            (folder / "dead").write_text("")
        rig.swap(service(dead))
        for _ in range(3):
            got = await rig.ask(method, body=b"data")
            assert (got.status, got.get("x-graylb-error")) == (502, "connect-failed")
        live = await rig.origin(path=str(folder / "live"))
        rig.swap(service(dead, live))
        for number in range(30):
            assert (await rig.ask(method, body=b"%d" % number)).status == 200
            assert live.asks[-1].body == b"%d" % number
        assert rig.stats["retries"] > 0
        assert len(live.asks) == 30

    run(test)


def test_an_instance_that_comes_back_at_its_path(folder: Path) -> None:
    """As a service that restarts: its old connections are gone, the path is the same."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin(path=str(folder / "s"))
        rig.swap(service(origin))
        for _ in range(5):
            assert (await rig.ask()).status == 200
            await origin.kill()
            (folder / "s").unlink(missing_ok=True)
            assert (await rig.ask()).status == 502
            await origin.start()
        assert (await rig.ask("POST", body=b"data")).status == 200

    run(test)


def test_a_client_without_an_address(folder: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.listen(path=str(folder / "in"))
        origin = await rig.origin()
        rig.swap(service(origin))
        caller = await rig.caller()
        assert (await caller.ask()).status == 200
        assert (
            await caller.ask("GET", "/", "X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7")
        ).status == 200
        first, second = origin.asks
        assert first.get("x-forwarded-for") == "unix:"
        assert first.get("forwarded") == 'for=unknown;host="up";proto=http'
        assert second.get("x-forwarded-for") == "203.0.113.7, unix:"
        assert second.get("forwarded") == 'for=203.0.113.7, for=unknown;host="up";proto=http'

    run_bare(test, forwarding=BOTH)


def test_no_network_is_theirs_and_they_have_no_key_by_address(folder: Path) -> None:
    """An absent field satisfies nothing: not even ::/0 holds, and the next sticky key names the caller."""

    async def test(rig: Rig) -> None:
        rig.listen(path=str(folder / "in"))
        one, two = await rig.origin(), await rig.origin()
        both = ((one, "v1"), (two, "v2"))
        rig.swap(service(*both, rules=(networks("all", "v2", "::/0", "0.0.0.0/0", "::/128"),)))
        assert (await rig.ask()).get("x-graylb-version") == "v1"
        sticky = (StickyKey("client_ip"), StickyKey("header", "x-user-id"))
        rig.swap(service(*both, split=split(v1=50, v2=50), sticky=sticky))
        versions = [(await rig.ask("GET", "/", f"X-User-Id: {user}")).get("x-graylb-version") for user in range(40)]
        assert set(versions) == {"v1", "v2"}, "all callers of a Unix socket were taken for one"
        again = [(await rig.ask("GET", "/", f"X-User-Id: {user}")).get("x-graylb-version") for user in range(40)]
        assert again == versions

    run_bare(test)


def test_from_socket_to_socket_under_load(folder: Path) -> None:
    """Both sides by path, large bodies both ways, clients that go in the middle."""
    body = bytes(range(256)) * 4096

    async def back(ask: Ask) -> None:
        ask.answer(await ask.read_body())

    async def test(rig: Rig) -> None:
        rig.listen(path=str(folder / "in"))
        origin = await rig.origin(path=str(folder / "out"))
        origin.handlers["/back"] = back
        rig.swap(service(origin, connections={"max": 3, "queue_timeout": 5.0}))
        callers = [await rig.caller() for _ in range(8)]
        for number, caller in enumerate(callers):
            caller.write(request("POST", "/back", body=body[number:]))
        gone = [await rig.send(request("POST", "/back", "Content-Length: 900000") + body[:300_000]) for _ in range(4)]
        for caller in gone:
            caller.close()
        for number, caller in enumerate(callers):
            got = await caller.answer()
            assert (got.status, got.body) == (200, body[number:])
        assert origin.most <= 3

    run_bare(test)


def test_the_whole_program(folder: Path, tmp_path: Path) -> None:
    """A listener by path in a document."""
    upstream = Upstream().start()
    doc = proxies.document({"users": proxies.service(upstream.address)})
    doc["listeners"] = [{"address": f"unix:{folder}/in", "mode": "0600"}]
    with proxies.running(tmp_path, doc) as proxy:
        assert proxy.address == f"unix:{folder}/in"
        assert (folder / "in").stat().st_mode & 0o777 == 0o600
        with proxy.client() as client:
            assert client.ask().status == 200
        assert upstream.requests[0].get("x-forwarded-for") == "unix:"
        upstream.stop()
    upstream.check()
