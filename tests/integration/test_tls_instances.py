"""Instances over TLS: pooled, verified, with our certificate; Python's `ssl` at their end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from graylb.model.snapshot import Connections, Origination, Pem
from tests.certificates import Authority
from tests.integration import engines
from tests.integration.engines import Link, Rig, request, service, until
from tests.integration.secure import BIG, certificates, entry, know, originating, run


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority("clients")


def test_a_websocket(authority: Authority, tmp_path: Path) -> None:
    """Both ways, both ends over TLS, and the end of one is the end of the other."""

    async def test(rig: Rig) -> None:
        up = await rig.origin(tls=authority.server(tmp_path, "up.test"))
        opened: list[Link] = []

        async def switch(ask: engines.Ask) -> None:
            ask.link.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst"
            )
            opened.append(ask.link)
            assert await ask.link.exactly(6) == b"second"
            ask.link.write(BIG)
            await ask.link.until(b"bye")
            ask.link.close()

        up.handlers["/ws"] = switch
        know(rig, authority)
        rig.swap(service(up, connections=originating(authority)))
        caller = await rig.caller(tls=authority.client(), name="a.test")
        caller.write(
            request(
                "GET",
                "/ws",
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            )
        )
        assert b" 101 " in await caller.until(b"\r\n\r\n")
        assert await caller.exactly(5) == b"first"
        caller.write(b"second")
        assert await caller.exactly(len(BIG)) == BIG
        caller.write(b"bye")
        await caller.ended()
        assert rig.stats["tunnels"] == 0

    run(test, certificates(entry(authority.issue("a.test"))))


def test_instances_over_tls(authority: Authority, tmp_path: Path) -> None:
    """Pooled like others, also behind session tickets that come unasked; the request can be of any size."""

    async def test(rig: Rig) -> None:
        up = await rig.origin(tls=authority.server(tmp_path, "up.test"))
        know(rig, authority)
        rig.swap(service(up, connections=originating(authority)))
        for size in (0, 100, 100_000, len(BIG)):
            assert (await rig.ask("POST", body=BIG[:size])).status == 200
            assert bytes(up.asks[-1].body) == BIG[:size]
        assert len(up.links) == 1
        assert rig.figures(up)["idle"] == 1
        sni = up.links[0].transport.get_extra_info("ssl_object")
        assert sni is not None

    engines.run(test)


def test_sessions_with_instances_are_resumed(authority: Authority, tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        up = await rig.origin(tls=authority.server(tmp_path, "up.test"))
        know(rig, authority)
        rig.swap(service(up, connections=originating(authority)))
        for count in (1, 2, 3):
            assert (await rig.ask()).status == 200
            up.links[-1].close()
            await until(lambda: rig.figures(up)["open"] == 0, "the pool to notice")
            assert len(up.links) == count
        assert rig.stats["tls"]["resumed"] == 2

    engines.run(test)


@pytest.mark.parametrize(
    ("names", "expected", "reason"),
    [
        (("one.up.test",), 200, None),
        (("*.up.test",), 200, None),
        (("*.one.up.test",), 502, "hostname mismatch"),
        (("other.test",), 502, "hostname mismatch"),
        (("127.0.0.1",), 502, "hostname mismatch"),
    ],
)
def test_the_name_is_verified(
    authority: Authority, tmp_path: Path, names: tuple[str, ...], expected: int, reason: str | None
) -> None:
    async def test(rig: Rig) -> None:
        up = await rig.origin(tls=authority.server(tmp_path, *names))
        know(rig, authority)
        rig.swap(service(up, connections=originating(authority, "one.up.test")))
        answer = await rig.ask()
        assert (answer.status, rig.figures(up)["tls_failed"]) == (expected, reason)
        if reason:
            assert answer.get("x-graylb-error") == "upstream-tls"
            assert not up.asks

    engines.run(test)


def test_an_address_is_verified_where_there_is_no_name(authority: Authority, tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        good = await rig.origin(tls=authority.server(tmp_path, "127.0.0.1"))
        bad = await rig.origin(tls=authority.server(tmp_path, "127.0.0.2"))
        know(rig, authority)
        both = [
            service(each, name=name, connections=originating(authority, None))
            for name, each in (("a", good), ("b", bad))
        ]
        rig.swap(*both)
        assert (await rig.ask(host="a")).status == 200
        assert (await rig.ask(host="b")).status == 502
        assert rig.figures(bad, "b")["tls_failed"] == "IP address mismatch"

    engines.run(test)


def test_strangers_are_not_trusted_unless_told_to(authority: Authority, tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        up = await rig.origin(tls=Authority("stranger").server(tmp_path, "up.test"))
        know(rig, authority)
        rig.swap(service(up, connections=originating(authority)))
        assert (await rig.ask()).status == 502
        assert "unable to get local issuer" in rig.figures(up)["tls_failed"] or "self" in rig.figures(up)["tls_failed"]
        rig.swap(service(up, connections=Connections(tls=Origination(verify=False, server_name="up.test"))))
        assert (await rig.ask()).status == 200
        assert rig.figures(up)["tls_failed"] is None

    engines.run(test)


def test_another_instance_is_asked_when_the_handshake_fails(authority: Authority, tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        good = await rig.origin(tls=authority.server(tmp_path, "up.test"))
        bad = await rig.origin(tls=authority.server(tmp_path, "other.test"))
        know(rig, authority)
        rig.swap(service(good, bad, connections=originating(authority)))
        for _ in range(6):
            assert (await rig.ask("POST", body=b"x")).status == 200
        assert (len(good.asks), len(bad.asks)) == (6, 0)

    engines.run(test)


def test_our_certificate_is_shown(authority: Authority, clients: Authority, tmp_path: Path) -> None:
    ours = clients.issue("graylb.test")

    async def test(rig: Rig) -> None:
        up = await rig.origin(tls=authority.server(tmp_path, "up.test", clients=clients))
        know(rig, authority, ours)
        rig.swap(service(up, connections=originating(authority)))
        refused = await rig.ask()
        assert refused.status == 502
        pems = {"cert": Pem.of("c", ours.cert.decode()), "key": Pem.of("k", ours.key.decode())}
        rig.swap(service(up, connections=originating(authority, **pems)))
        assert (await rig.ask()).status == 200
        shown = up.links[-1].transport.get_extra_info("peercert")
        assert shown["subjectAltName"] == (("DNS", "graylb.test"),)

    engines.run(test)


def test_an_instance_that_never_answers_the_hello(authority: Authority) -> None:
    """Its handshake is part of connecting, and so under its deadline."""

    async def test(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Link, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        know(rig, authority)
        timeouts = engines.replace(engines.TIMEOUTS, connect=0.3)
        rig.swap(service(address, connections=originating(authority), timeouts=timeouts))
        answer = await rig.ask()
        assert (answer.status, answer.get("x-graylb-error")) == (504, "connect-timeout")
        server.close()

    engines.run(test)


def test_an_instance_that_is_not_there(authority: Authority) -> None:
    async def test(rig: Rig) -> None:
        know(rig, authority)
        address = rig.refusing()
        rig.swap(service(address, connections=originating(authority)))
        answer = await rig.ask()
        assert (answer.status, answer.get("x-graylb-error")) == (502, "connect-failed")
        assert rig.figures(address)["tls_failed"] is None

    engines.run(test)


def test_a_proxy_header_goes_before_tls_to_an_instance(authority: Authority, tmp_path: Path) -> None:
    """In the clear, then the hello: as the instance's own TLS library takes it after its header."""
    context = authority.server(tmp_path, "up.test")

    def serve(listener: socket.socket) -> list[bytes]:
        plain, _ = listener.accept()
        plain.settimeout(engines.PATIENCE)
        header = b""
        while not header.endswith(b"\r\n"):
            header += plain.recv(1)
        with context.wrap_socket(plain, server_side=True) as secure:
            head = secure.recv(65536)
            secure.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
        return [header, head]

    async def test(rig: Rig) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(engines.PATIENCE)
        rig.listeners.append(listener)
        serving = asyncio.get_running_loop().run_in_executor(None, serve, listener)
        know(rig, authority)
        made = engines.replace(originating(authority), proxy_protocol="v1")
        rig.swap(service(f"127.0.0.1:{listener.getsockname()[1]}", connections=made))
        answer = await rig.ask()
        assert (answer.status, answer.body) == (200, b"hi")
        header, head = await serving
        assert header.startswith(b"PROXY TCP4 127.0.0.1 ")
        assert head.startswith(b"GET / HTTP/1.1")

    engines.run(test)
