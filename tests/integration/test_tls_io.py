"""TLS in the engine: Python's `ssl` at the other ends, several of them, and bytes in awkward pieces."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h11
import pytest

from graylb import _tls
from graylb.model.snapshot import CLIENT_CERTIFICATE, Condition, Match, Rule, Subset
from tests.certificates import Authority
from tests.integration import engines, wire
from tests.integration.engines import Rig, request, service, until, within
from tests.integration.secure import BIG, certificates, entry, run


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority("clients")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_of_any_size(authority: Authority, version: ssl.TLSVersion) -> None:
    """Up and down, on one connection; the instance is told that it was https."""
    context = authority.client()
    context.minimum_version = context.maximum_version = version

    async def test(rig: Rig) -> None:
        up = await rig.origin()
        seen: list[bytes] = []

        async def echo(ask: engines.Ask) -> None:
            seen.append(await ask.read_body())
            ask.answer(bytes(ask.body))

        up.handlers["/echo"] = echo
        rig.swap(service(up))
        caller = await rig.caller(tls=context, name="a.test")
        for size in (0, 1, 16383, 16384, 16385, 300_000, len(BIG)):
            answer = await caller.ask("POST", "/echo", body=BIG[:size])
            assert (answer.status, answer.body == BIG[:size]) == (200, True)
        assert {ask.get("x-forwarded-proto") for ask in up.asks} == {"https"}
        assert rig.stats["tls"]["handshakes"] == 1
        assert len(up.links) == 1

    run(test, certificates(entry(authority.issue("a.test"))))


def test_byte_by_byte(authority: Authority) -> None:
    """Handshake and request arrive a byte at a time: records are half there most of the time."""

    async def test(rig: Rig) -> None:
        up = await rig.origin()
        rig.swap(service(up))
        raw = await rig.caller()
        inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.client().wrap_bio(inbound, outbound, server_hostname="a.test")

        async def pump(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    done, result = True, step()
                except ssl.SSLWantReadError:
                    done, result = False, None
                for byte in outbound.read():
                    raw.write_now(bytes([byte]))
                    await asyncio.sleep(0)
                if done:
                    return result
                await raw.more()
                inbound.write(raw.take(len(raw.buffer)))

        await pump(tls.do_handshake)
        await pump(lambda: tls.write(request("POST", "/", body=b"x" * 300)))
        assert b"hello" in await pump(lambda: tls.read(65536))
        assert bytes(up.asks[0].body) == b"x" * 300

    run(test, certificates(entry(authority.issue("a.test"))))


def test_the_certificate_is_that_of_the_name(authority: Authority) -> None:
    """The very name, else its wildcard, else the first one; asked in any case, and without a name."""
    made = certificates(
        entry(authority.issue("first.test", "127.0.0.1")),
        entry(authority.issue("a.test"), "a.test"),
        entry(authority.issue("*.b.test"), "*.b.test"),
        entry(authority.issue("x.b.test"), "x.b.test"),
    )

    async def shown(rig: Rig, name: str | None) -> str:
        context = authority.client()
        context.check_hostname = False
        caller = await rig.caller(tls=context, name=name or "")
        found = caller.transport.get_extra_info("peercert")["subjectAltName"]
        return str(found[0][1])

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        pairs = {
            "a.test": "a.test",
            "A.TEST": "a.test",
            "one.b.test": "*.b.test",
            "x.b.test": "x.b.test",
            "b.test": "first.test",
            "one.two.b.test": "first.test",
            "else.test": "first.test",
            None: "first.test",
        }
        assert {name: await shown(rig, name) for name in pairs} == pairs

    run(test, made)


@pytest.mark.parametrize(
    ("offered", "spoken", "chosen"),
    [
        (["http/1.1"], ("h2", "http/1.1"), "http/1.1"),
        (["http/1.1", "h2"], ("h2", "http/1.1"), "h2"),
        (["h2", "http/1.1"], ("http/1.1",), "http/1.1"),
        ([], ("h2", "http/1.1"), None),
        (["h2"], ("http/1.1",), "refused"),
        (["spdy/3"], ("h2", "http/1.1"), "refused"),
    ],
)
def test_alpn(authority: Authority, offered: list[str], spoken: tuple[str, ...], chosen: str | None) -> None:
    context = authority.client()
    if offered:
        context.set_alpn_protocols(offered)

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        if chosen == "refused":
            with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
                await rig.caller(tls=context, name="a.test")
            assert sum(rig.stats["tls"]["failed"].values()) == 1
            return
        caller = await rig.caller(tls=context, name="a.test")
        assert caller.transport.get_extra_info("ssl_object").selected_alpn_protocol() == chosen

    run(test, certificates(entry(authority.issue("a.test")), protocols=spoken))


def test_versions_are_those_of_the_name(authority: Authority) -> None:
    """The first one's lower minimum is of no use on a name that wants TLS 1.3."""
    old = authority.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    made = certificates(
        entry(authority.issue("a.test")), entry(authority.issue("new.test"), "new.test", min_version="1.3")
    )

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        assert (await (await rig.caller(tls=old, name="a.test")).ask()).status == 200
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            await rig.caller(tls=old, name="new.test")
        assert (await (await rig.caller(tls=authority.client(), name="new.test")).ask()).status == 200

    run(test, made)


async def status(rig: Rig, context: ssl.SSLContext, name: str, *, host: str | None = None) -> int | None:
    """Of one request for `host` on a connection of its own for `name`; None: it was not even connected."""
    try:
        caller = await rig.caller(tls=context, name=name)
        answer = await caller.ask(host=host or name)
        caller.close()
    except (ssl.SSLError, ConnectionError, h11.RemoteProtocolError):  # the last one tells of an end
        return None
    return answer.status


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates_of_one_name_are_not_got_round(
    tmp_path: Path, authority: Authority, clients: Authority, version: ssl.TLSVersion
) -> None:
    """open.test asks for none, closed.test for one of `clients`: no other server name, nor none, nor another Host leads
    a client without one to closed.test."""
    made = certificates(
        entry(authority.issue("open.test")),
        entry(authority.issue("closed.test"), "closed.test", client_ca=clients.pem),
    )
    nobody, ann, eve = (
        authority.client(),
        *(
            authority.client(*by.issue("ann.test").write(tmp_path, name))
            for name, by in (("ann", clients), ("eve", authority))
        ),
    )
    for each in (nobody, ann, eve):
        each.minimum_version = each.maximum_version = version

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        assert await status(rig, nobody, "open.test") == 200
        assert await status(rig, nobody, "closed.test") is None
        assert await status(rig, eve, "closed.test") is None
        assert await status(rig, ann, "closed.test") == 200
        # by another name's connection
        assert await status(rig, nobody, "open.test", host="closed.test") == 421
        assert await status(rig, nobody, "open.test", host="CLOSED.test:443") == 421
        assert await status(rig, ann, "closed.test", host="open.test") == 421
        unnamed = authority.client()
        unnamed.check_hostname = False
        assert await status(rig, unnamed, "", host="closed.test") == 421
        assert rig.stats["errors"]["misdirected"] == 4

    run(test, made)


def test_a_session_of_one_name_is_nothing_to_another(authority: Authority, clients: Authority) -> None:
    """Resumption skips the client's certificate, so it must not cross names."""
    made = certificates(
        entry(authority.issue("open.test")),
        entry(authority.issue("closed.test"), "closed.test", client_ca=clients.pem),
    )

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        context = authority.client()
        context.check_hostname = False
        session = await asyncio.to_thread(shake, rig.address, context, "open.test", None)
        again = await asyncio.to_thread(shake, rig.address, context, "open.test", session[1])
        assert again[0]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(shake, rig.address, context, "closed.test", session[1])

    run(test, made)


def shake(
    address: str, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """One request on a connection of its own -> whether it was resumed, its session. In a thread, as ssl blocks."""
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=engines.PATIENCE)
    with plain, context.wrap_socket(plain, server_hostname=name, session=session) as secure:
        secure.sendall(request(host=name))
        assert secure.recv(65536).startswith(b"HTTP/1.1 200")
        return secure.session_reused is True, secure.session


def test_each_resumed_session_brings_the_next_ticket(authority: Authority) -> None:
    """One of TLS 1.3 is good for one connection: with no new one every second handshake would be a full one."""
    context = authority.client()
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        session, found, tickets = None, [], set()
        for _ in range(4):
            resumed, session = await asyncio.to_thread(shake, rig.address, context, "a.test", session)
            assert session is not None
            found.append(resumed)
            tickets.add(session.id)  # which a client makes of the ticket
        assert found == [False, True, True, True]
        assert len(tickets) == 4

    run(test, certificates(entry(authority.issue("a.test"))))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed(authority: Authority, version: ssl.TLSVersion) -> None:
    """With the keys of tickets that went before, too; not with others."""
    context = authority.client()
    context.minimum_version = context.maximum_version = version

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        first, second, third = (_tls.random_ticket_key() for _ in range(3))
        _tls.set_ticket_keys([first])
        resumed, session = await asyncio.to_thread(shake, rig.address, context, "a.test", None)
        assert not resumed
        _tls.set_ticket_keys([second, first])
        resumed, newer = await asyncio.to_thread(shake, rig.address, context, "a.test", session)
        assert resumed
        _tls.set_ticket_keys([third, second])
        assert (await asyncio.to_thread(shake, rig.address, context, "a.test", newer))[0]
        _tls.set_ticket_keys([third])
        assert not (await asyncio.to_thread(shake, rig.address, context, "a.test", session))[0]
        assert (rig.stats["tls"]["handshakes"], rig.stats["tls"]["resumed"]) == (4, 2)

    run(test, certificates(entry(authority.issue("a.test"))))


def test_new_certificates_are_for_new_connections(authority: Authority) -> None:
    """Those that are open go on, one in the middle of its handshake too."""
    other = Authority("other")

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        before = await rig.caller(tls=authority.client(), name="a.test")
        assert (await before.ask()).status == 200
        raw = await rig.caller()
        inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
        half = authority.client().wrap_bio(inbound, outbound, server_hostname="a.test")
        with pytest.raises(ssl.SSLWantReadError):
            half.do_handshake()
        hello = outbound.read()
        raw.write_now(hello[:100])
        await engines.turns()
        rig.engine.certify([certificates(entry(other.issue("a.test")))], {})
        raw.write_now(hello[100:])
        await raw.more()
        inbound.write(raw.take(len(raw.buffer)))
        half.do_handshake()
        with pytest.raises(ssl.SSLCertVerificationError):
            await rig.caller(tls=authority.client(), name="a.test")
        assert (await (await rig.caller(tls=other.client(), name="a.test")).ask()).status == 200
        assert (await before.ask()).status == 200

    run(test, certificates(entry(authority.issue("a.test"))))


def test_handshakes_have_their_time(authority: Authority) -> None:
    """Who says nothing, or half a hello, is closed with the header timeout; others are served meanwhile."""

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()), header_timeout=0.3)
        silent, slow = await rig.caller(), await rig.send(b"\x16\x03\x01\x02\x00\x01")
        served = await rig.caller(tls=authority.client(), name="a.test")
        assert (await served.ask()).status == 200
        assert await silent.ended() == b"" == await slow.ended()

    run(test, certificates(entry(authority.issue("a.test"))))


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 100, b"\0" * 600]
)
def test_what_is_no_tls_is_closed(authority: Authority, junk: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        caller = await rig.send(junk)
        await caller.ended()
        assert sum(rig.stats["tls"]["failed"].values()) == 1
        assert rig.stats["requests"] == 0

    run(test, certificates(entry(authority.issue("a.test"))))


def test_a_proxy_header_comes_before_tls(authority: Authority) -> None:
    """Together with the hello in one piece, or before it."""

    async def test(rig: Rig) -> None:
        up = await rig.origin()
        rig.swap(service(up))
        made = certificates(entry(authority.issue("a.test")))
        address = rig.listen(tls=made, proxy_protocol=True)
        for together in (True, False):
            raw = await rig.caller(address)
            inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = authority.client().wrap_bio(inbound, outbound, server_hostname="a.test")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            told = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n"
            if together:
                raw.write_now(told + outbound.read())
            else:
                raw.write_now(told)
                await engines.turns()
                raw.write_now(outbound.read())
            await raw.more()
            inbound.write(raw.take(len(raw.buffer)))
            tls.do_handshake()
            tls.write(request())
            raw.write_now(outbound.read())
            count = len(up.asks)
            await up.asked(count + 1)
            assert up.asks[-1].get("x-forwarded-for") == "192.0.2.7"

    engines.run_bare(test)


def test_slow_readers_hold_back_the_instance(authority: Authority) -> None:
    """20 MiB to a client that reads nothing for a while: the instance cannot send it all."""

    async def test(rig: Rig) -> None:
        up = await rig.origin()
        body = BIG * 5

        async def large(ask: engines.Ask) -> None:
            ask.answer(body)

        up.handlers["/large"] = large
        rig.swap(service(up))
        caller = await rig.caller(tls=authority.client(), name="a.test")
        caller.transport.pause_reading()  # type: ignore[attr-defined]
        caller.write(request(target="/large"))
        await up.asked(1)
        link = up.links[0]
        last = -1
        while (now := link.transport.get_write_buffer_size()) != last:
            last = now
            await asyncio.sleep(0.05)
        assert last > len(BIG)  # kernels buffer some of it
        caller.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await within(caller.answer())
        assert answer.body == body

    run(test, certificates(entry(authority.issue("a.test"))))


def end_of(address: str, context: ssl.SSLContext, data: bytes) -> bytes:
    """What comes up to a close_notify; raises SSLEOFError or ConnectionError where there is none. In a thread."""
    host, _, port = address.rpartition(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=engines.PATIENCE) as plain:
        secure = context.wrap_socket(plain, server_hostname="a.test", suppress_ragged_eofs=False)
        with secure:
            secure.sendall(data)
            while piece := secure.recv(65536):
                got += piece
    return got


def test_an_answer_that_is_cut_short_does_not_look_whole(authority: Authority) -> None:
    """To HTTP/1.0 its end is that of the connection: a close_notify is said where it is the instance's, else not."""

    async def test(rig: Rig) -> None:
        up = await rig.origin()

        async def partly(ask: engines.Ask) -> None:
            ask.link.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n")
            if ask.target == "/cut":
                ask.link.reset()
            else:
                ask.link.write(b"0\r\n\r\n")

        up.handlers["/cut"] = up.handlers["/whole"] = partly
        rig.swap(service(up))
        ask = b"GET /%b HTTP/1.0\r\nhost: a.test\r\n\r\n"
        whole = await asyncio.to_thread(end_of, rig.address, authority.client(), ask % b"whole")
        assert whole.endswith(b"some")
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            await asyncio.to_thread(end_of, rig.address, authority.client(), ask % b"cut")

    run(test, certificates(entry(authority.issue("a.test"))))


def test_the_end_is_said(authority: Authority) -> None:
    """close_notify behind `connection: close`, when an idle client has waited for too long, and at a drain."""

    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()), idle_timeout=0.3)
        for lines in ((), ("connection: close",)):
            got = await asyncio.to_thread(end_of, rig.address, authority.client(), request("GET", "/", *lines))
            assert got.endswith(b"hello")
        rig.swap(service(rig.origins[0]), idle_timeout=60.0)
        ending = asyncio.get_running_loop().run_in_executor(
            None, end_of, rig.address, authority.client(), request("GET", "/")
        )
        await rig.origins[0].asked(3)
        await until(lambda: rig.engine.exchanges == 0, "the answer")
        rig.engine.drain(lambda: None)
        assert (await ending).endswith(b"hello")

    run(test, certificates(entry(authority.issue("a.test"))))


def test_drain(authority: Authority) -> None:
    """Who is served gets the answer first."""

    async def test(rig: Rig) -> None:
        up = await rig.origin()
        rig.swap(service(up))
        busy = await rig.caller(tls=authority.client(), name="a.test")
        busy.write(request(target="/hold"))
        await up.asked(1)
        quiet = asyncio.Event()
        rig.engine.drain(quiet.set)
        up.asks[0].go.set()
        answer = await busy.answer()
        assert wire.values(answer.headers, "connection") == ["close"]
        await within(quiet.wait())

    run(test, certificates(entry(authority.issue("a.test"))))


def test_rules_ask_who_the_client_is(tmp_path: Path, authority: Authority, clients: Authority) -> None:
    """By the certificate alone: no header says it, and none can."""
    made = certificates(entry(authority.issue("a.test"), client_ca=clients.pem, client_auth="optional"))
    ann = clients.issue("ann.example.org", "spiffe://example.org/ann", common="Ann")
    asks = Condition("header", "exact", ("spiffe://example.org/ann",), CLIENT_CERTIFICATE)

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(service(one, (two, "v2"), rules=(Rule("ann", Match((asks,)), Subset(version="v2")),)))
        for context, version in ((authority.client(*ann.write(tmp_path, "ann")), "v2"), (authority.client(), "v1")):
            caller = await rig.caller(tls=context, name="a.test")
            for _ in range(3):
                answer = await caller.ask("GET", "/", "client-certificate: spiffe://example.org/ann")
                assert answer.get("x-graylb-version") == version
        assert all(ask.get("client-certificate") == "spiffe://example.org/ann" for ask in (*one.asks, *two.asks))
        assert not any(b"\r\n:" in ask.head for ask in (*one.asks, *two.asks))
        forger = await rig.caller(tls=authority.client(), name="a.test")
        assert (await forger.ask("GET", "/", ":client-certificate: spiffe://example.org/ann")).status == 400

    run(test, made)


def test_who_the_client_is(tmp_path: Path, authority: Authority, clients: Authority) -> None:
    """Its certificate is told in Envoy's form; what the client itself says of one is not."""
    made = certificates(entry(authority.issue("a.test"), client_ca=clients.pem, client_auth="optional"))
    ann = clients.issue("ann.example.org", "spiffe://example.org/ann", common="Ann, or not")
    forged = "X-Forwarded-Client-Cert: Hash=0000;URI=spiffe://example.org/root"

    async def test(rig: Rig) -> None:
        up = await rig.origin()
        rig.swap(service(up))
        known = authority.client(*ann.write(tmp_path, "ann"))
        for context, fingerprint in (
            (known, hashlib.sha256(ssl.PEM_cert_to_DER_cert(ann.cert.decode()))),
            (authority.client(), None),
        ):
            caller = await rig.caller(tls=context, name="a.test")
            assert (await caller.ask("GET", "/", forged, "Connection: x-forwarded-client-cert")).status == 200
            told = up.asks[-1].get("x-forwarded-client-cert")
            if fingerprint is None:
                assert told is None
                continue
            assert told == (
                f'Hash={fingerprint.hexdigest()};Subject="CN=Ann\\, or not";URI=spiffe://example.org/ann;DNS=ann.example.org'
            )
        plain = await rig.caller(rig.listen())
        assert (await plain.ask("GET", "/", forged)).status == 200
        assert up.asks[-1].get("x-forwarded-client-cert") is None

    run(test, made)
