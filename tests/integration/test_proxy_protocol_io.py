"""The PROXY protocol on real connections: believed from those who may say it, told to instances that want it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from proxyprotocol.result import ProxyResultIPv4
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from graylb.model.snapshot import StickyKey
from tests.integration.engines import (
    SIGNATURE,
    Caller,
    Origin,
    OriginLink,
    Rig,
    networks,
    request,
    run,
    run_bare,
    service,
    split,
    statuses,
    turns,
    until,
)

LINE_4 = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n"
LINE_6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n"
LINE_UNKNOWN = b"PROXY UNKNOWN\r\n"


def v2(source: str, destination: str, one: int = 56324, two: int = 443, more: bytes = b"") -> bytes:
    """A binary header; `more`: extensions."""
    ends = [ipaddress.ip_address(source), ipaddress.ip_address(destination)]
    rest = b"".join(end.packed for end in ends) + struct.pack(">HH", one, two) + more
    return SIGNATURE + struct.pack(">BBH", 0x21, 0x11 if ends[0].version == 4 else 0x21, len(rest)) + rest


def packed() -> bytes:
    """One by another implementation, with a checksum."""
    ends = [(ipaddress.IPv4Address(host), port) for host, port in (("203.0.113.7", 56324), ("192.0.2.1", 443))]
    return bytes(ProxyProtocolV2().pack(ProxyResultIPv4(*ends, protocol=socket.SOCK_STREAM)))


BINARY_4 = v2("203.0.113.7", "192.0.2.1")
BINARY_6 = v2("2001:db8::7", "2001:db8::1")
BINARY_LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
HEADERS = {
    "v1 TCP4": (LINE_4, "203.0.113.7"),
    "v1 TCP6": (LINE_6, "2001:db8::7"),
    "v1 UNKNOWN": (LINE_UNKNOWN, "127.0.0.1"),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "127.0.0.1"),
    "v2 TCP4": (BINARY_4, "203.0.113.7"),
    "v2 TCP6": (BINARY_6, "2001:db8::7"),
    "v2 with a checksum": (packed(), "203.0.113.7"),
    "v2 LOCAL": (BINARY_LOCAL, "127.0.0.1"),
    "v2 with extensions": (v2("203.0.113.7", "192.0.2.1", more=b"\x04\x00\x03abc"), "203.0.113.7"),
}


def run_proxied(test: Any, **settings: Any) -> None:
    """With a listener whose connections begin with a PROXY header."""

    async def main(rig: Rig) -> None:
        rig.swap(service("127.0.0.1:1"))
        rig.listen(proxy_protocol=True, **settings)
        await test(rig)

    run_bare(main)


# ---- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADERS)
def test_the_address_is_that_of_the_header(kind: str) -> None:
    """In X-Forwarded-For and in rules by network; for every request of the connection."""
    header, address = HEADERS[kind]

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rules = (networks("named", "v2", "203.0.113.0/24", "2001:db8::/32"),)
        rig.swap(service((one, "v1"), (two, "v2"), rules=rules))
        caller = await rig.caller()
        caller.write(header)
        for _ in range(3):
            got = await caller.ask()
            assert (got.status, got.get("x-graylb-version")) == (200, "v1" if address == "127.0.0.1" else "v2")
        caller.write(request() * 2)
        assert await statuses([caller, caller]) == [200, 200]
        asks = one.asks or two.asks
        assert [ask.get("x-forwarded-for") for ask in asks] == [address] * 5

    run_proxied(test)


@pytest.mark.parametrize("kind", HEADERS)
def test_it_may_arrive_in_any_two_pieces(kind: str) -> None:
    """Cut behind each byte, up to the first of the request."""
    header, address = HEADERS[kind]
    whole = header + request()

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        callers = [await rig.caller() for _ in range(len(header) + 2)]
        for cut, caller in enumerate(callers):
            if cut:
                caller.write(whole[:cut])
        await until(lambda: rig.engine.clients == len(callers), "all to be accepted")
        await turns()
        assert not origin.asks
        for cut, caller in enumerate(callers):
            caller.write(whole[cut:])
        assert await statuses(callers) == [200] * len(callers)
        assert [ask.get("x-forwarded-for") for ask in origin.asks] == [address] * len(callers)

    run_proxied(test)


@pytest.mark.parametrize("kind", HEADERS)
def test_it_may_arrive_byte_by_byte_with_a_pipeline_behind_it(kind: str) -> None:
    header, address = HEADERS[kind]

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        caller = await rig.caller()
        for byte in header[:-1]:
            caller.write_now(bytes([byte]))
            await turns(2)
        caller.write_now(header[-1:] + request("POST", "/1", body=b"data") + request(target="/2"))
        assert await statuses([caller, caller]) == [200, 200]
        assert [(ask.target, ask.get("x-forwarded-for")) for ask in origin.asks] == [("/1", address), ("/2", address)]

    run_proxied(test)


GARBAGE = {
    "a request": request(),
    "another signature": b"\r\n\r\n\0\r\nQUIX\n" + bytes(20),
    "a version 3": SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
    "too short for its family": SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
    "beyond all bounds": SIGNATURE + b"\x21\x11\xff\xff" + bytes(5000),
    "not an address": b"PROXY TCP4 203.0.113 192.0.2.1 1 2\r\n",
    "no port": b"PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n",
    "a line without an end": b"PROXY TCP4 " + b"2" * 200,
    "another family": b"PROXY UDP4 203.0.113.7 192.0.2.1 1 2\r\n",
    "a bare line feed": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_connection_that_begins_otherwise_is_closed(kind: str) -> None:
    """Without an answer: what speaks there may not be HTTP at all."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        caller = await rig.send(GARBAGE[kind])
        assert await caller.ended() == b""
        assert not origin.asks
        assert rig.stats["errors"] == {"bad-proxy-header": 1}

    run_proxied(test)


def test_who_just_knocks_is_no_error() -> None:
    """As health checks of load balancers do."""

    async def test(rig: Rig) -> None:
        for _ in range(3):
            (await rig.caller()).close()
        await until(lambda: rig.stats["accepted"] == 3 and rig.engine.clients == 0, lambda: rig.stats)
        assert rig.stats["errors"] == {}

    run_proxied(test)


@pytest.mark.parametrize("cut", [1, 10, len(LINE_4) - 1])
def test_an_end_inside_the_header_is_seen_at_once(cut: int) -> None:
    async def test(rig: Rig) -> None:
        rig.swap(service("127.0.0.1:1"), header_timeout=60.0)
        caller = await rig.send(LINE_4[:cut])
        caller.end_now()
        await until(lambda: rig.stats["accepted"] == 1 and rig.engine.clients == 0, lambda: rig.stats)
        assert rig.stats["errors"] == {"bad-proxy-header": 1}

    run_proxied(test)


@pytest.mark.parametrize("sent", [b"", b"P", LINE_4[:-1], BINARY_4[:-1], LINE_4, LINE_4 + b"GET / HT"])
def test_the_time_for_a_head_is_the_time_for_the_header(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.swap(service("127.0.0.1:1"), header_timeout=0.2)
        caller = await rig.send(sent)
        got = await caller.ended()
        assert (b" 408 " in got) == sent.endswith(b"HT")

    run_proxied(test)


def test_only_trusted_networks_are_believed() -> None:
    """Others are taken as they come, so a header of theirs is a bad request."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        rig.listen(proxy_protocol=True, trusted=["127.0.0.2/32", "10.0.0.0/8", "fd00::/8"])
        trusted = await rig.caller(source=("127.0.0.2", 0))
        trusted.write(LINE_4)
        assert (await trusted.ask()).status == 200
        plain = await rig.caller(source=("127.0.0.3", 0))
        assert (await plain.ask()).status == 200
        assert [ask.get("x-forwarded-for") for ask in origin.asks] == ["203.0.113.7", "127.0.0.3"]
        liar = await rig.caller(source=("127.0.0.3", 0))
        liar.write(LINE_4 + request())
        assert (await liar.answer()).status == 400
        silent = await rig.caller(source=("127.0.0.2", 0))
        silent.write(request())
        assert await silent.ended() == b""
        assert len(origin.asks) == 2

    run_bare(test)


def test_a_listener_without_it_takes_none() -> None:
    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin()))
        other = rig.listen(proxy_protocol=True)
        caller = await rig.send(LINE_4 + request())
        assert (await caller.answer()).status == 400
        caller = await rig.caller(other)
        caller.write(LINE_4)
        assert (await caller.ask()).status == 200

    run(test)


def test_a_header_over_a_unix_socket(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        rig.listen(path=str(tmp_path / "s"), proxy_protocol=True)
        caller = await rig.send(LINE_6)
        assert (await caller.ask()).status == 200
        assert origin.asks[0].get("x-forwarded-for") == "2001:db8::7"

    run_bare(test)


def test_sticky_callers_are_those_of_the_header() -> None:
    """One address, one version, over many connections from one socket address; shares hold among addresses."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        sticky = (StickyKey("client_ip"),)
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v1=50, v2=50), sticky=sticky))
        versions: dict[int, str | None] = {}
        for _ in range(2):
            for number in range(40):
                header = (
                    v2(f"203.0.113.{number}", "192.0.2.1") if number % 2 else LINE_4.replace(b".7", b".%d" % number)
                )
                caller = await rig.send(header)
                version = (await caller.ask()).get("x-graylb-version")
                caller.close()
                assert versions.setdefault(number, version) == version
        assert {"v1", "v2"} == set(versions.values())

    run_proxied(test)


def test_a_mapped_source_is_ipv4() -> None:
    """`::ffff:203.0.113.7` in a header of IPv6: rules by IPv4 network hold for it, whatever its destination."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(service((one, "v1"), (two, "v2"), rules=(networks("named", "v2", "203.0.113.0/24"),)))
        for header in (
            v2("::ffff:203.0.113.7", "2001:db8::1"),
            b"PROXY TCP6 ::ffff:cb00:7107 2001:db8::1 1 2\r\n",
            b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:192.0.2.1 1 2\r\n",
        ):
            caller = await rig.send(header)
            assert (await caller.ask()).get("x-graylb-version") == "v2"
        assert {ask.get("x-forwarded-for") for ask in two.asks} == {"203.0.113.7"}

    run_proxied(test)


# ---- out -------------------------------------------------------------------------------------------------------------


def name(caller: Caller) -> tuple[str, int]:
    """The address that a caller comes from."""
    host, port = caller.transport.get_extra_info("sockname")[:2]
    return host, port


def source(link: OriginLink) -> tuple[str, int]:
    """The source that a connection's header told."""
    assert link.told is not None
    found = link.told.source
    assert isinstance(found, tuple)
    return str(found[0]), found[1]


def destination(link: OriginLink) -> str:
    assert link.told is not None
    found = link.told.dest
    assert isinstance(found, tuple)
    return f"[{found[0]}]:{found[1]}" if ":" in str(found[0]) else f"{found[0]}:{found[1]}"


def proxied(*origins: Any, version: str = "v1", **more: Any) -> Any:
    return service(*origins, connections={"proxy_protocol": version, **more})


def links_of(caller: Caller, *origins: Origin) -> list[OriginLink]:
    """Connections whose header names this caller."""
    return [link for origin in origins for link in origin.links if source(link) == name(caller)]


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_connection_begins_with_the_client(version: str, host: str) -> None:
    """One client's requests share a connection, two clients never do, though one comes free between their requests."""

    async def test(rig: Rig) -> None:
        rig.listen(host)
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin, version=version))
        callers = [await rig.caller() for _ in range(5)]
        for _ in range(4):
            for caller in callers:
                assert (await caller.ask("POST", body=b"data")).status == 200
                assert origin.asks[-1].link in links_of(caller, origin)
        assert len(origin.links) == 5
        assert {destination(link) for link in origin.links} == {rig.address}
        first = b"PROXY TCP" if version == "v1" else SIGNATURE
        assert all(link.raw.startswith(first) for link in origin.links)
        reader = ProxyProtocolV1() if version == "v1" else ProxyProtocolV2()
        assert all(reader.is_valid(bytes(link.raw[:16])) for link in origin.links)

    run_bare(test)


@pytest.mark.parametrize(("version", "expected"), [("v1", b"PROXY UNKNOWN\r\n"), ("v2", BINARY_LOCAL)])
def test_a_client_without_an_address(tmp_path: Path, version: str, expected: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.listen(path=str(tmp_path / "s"))
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin, version=version))
        assert (await rig.ask()).status == 200
        assert origin.links[0].raw.startswith(expected + b"GET ")

    run_bare(test)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("header", [LINE_4, LINE_6, BINARY_4, BINARY_6])
def test_what_came_in_goes_out(version: str, header: bytes) -> None:
    """From a proxy before us to the instance: the first client, with its port."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin, version=version))
        caller = await rig.send(header)
        assert (await caller.ask()).status == 200
        host = "203.0.113.7" if header in (LINE_4, BINARY_4) else "2001:db8::7"
        assert source(origin.links[0]) == (host, 56324)
        # the next one comes from the same socket address's network with another name
        other = await rig.send(LINE_4.replace(b"56324", b"56325"))
        assert (await other.ask()).status == 200
        assert source(origin.asks[-1].link) == ("203.0.113.7", 56325)
        assert len(origin.links) == 2

    run_proxied(test)


def test_an_ipv4_client_of_a_proxy_that_came_over_ipv6() -> None:
    """Source and destination are of one family in a header: nothing is cut off."""

    async def test(rig: Rig) -> None:
        rig.swap(service("127.0.0.1:1"))
        rig.listen("::1", proxy_protocol=True)
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin, version="v2"))
        caller = await rig.send(LINE_4)
        assert (await caller.ask()).status == 200
        assert source(origin.links[0]) == (str(ipaddress.ip_address("::ffff:203.0.113.7")), 56324)
        assert destination(origin.links[0]) == rig.address

    run_bare(test)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_another_attempt_tells_it_once(version: str) -> None:
    """After an instance that refuses, and after a pooled connection that has gone stale; bodies come whole."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(rig.refusing(), origin, version=version))
        caller = await rig.caller()
        for number in range(20):
            body = bytes([number]) * number * 100
            assert (await caller.ask("POST", f"/{number}", body=body)).status == 200
            assert origin.asks[-1].body == body
            if number % 2:
                (link,) = origin.open
                link.end_now()
        assert rig.stats["retries"] > 0
        assert [source(link) for link in origin.links] == [name(caller)] * 10

    run(test)


def test_a_stale_connection_is_replaced_with_a_header_of_its_own() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin))
        caller = await rig.caller()
        for _ in range(10):
            assert (await caller.ask()).status == 200
            await turns()
            (link,) = origin.open
            caller.write_now(request())
            link.end_now()
            assert (await caller.answer()).status == 200
        assert {source(link) for link in origin.links} == {name(caller)}
        assert rig.stats["errors"] == {}

    run(test)


def test_the_maximum_holds_though_unused_connections_are_of_no_use() -> None:
    """They are other clients': one of them makes room."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin, max=2, queue_timeout=5.0))
        callers = [await rig.caller() for _ in range(12)]
        for turn in range(3):
            for caller in callers:
                caller.write(request("POST", f"/{turn}", body=b"x" * 1000))
            assert await statuses(callers) == [200] * 12
        assert len(origin.asks) == 36
        for link in origin.links:
            assert {bytes(ask.body) for ask in link.asks} <= {b"x" * 1000}
        assert origin.most == 2

    run(test)


def test_no_header_without_the_setting_and_none_warm_with_it() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin(proxied=True)
        rig.swap(proxied(origin, warm=3))
        await asyncio.sleep(0)
        assert not origin.links
        assert (await rig.ask()).status == 200
        plain = await rig.origin()
        rig.swap(service(plain))
        assert (await rig.ask()).status == 200
        assert plain.links[0].raw.startswith(b"GET ")

    run(test)


def test_an_instance_that_closes_on_the_header() -> None:
    """It does not want it: 502, no matter how often, and no loop."""

    async def test(rig: Rig) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            taken = 0

            def refuse() -> None:
                nonlocal taken
                made, _ = listener.accept()
                taken += 1
                made.close()

            loop = asyncio.get_running_loop()
            loop.add_reader(listener, refuse)
            rig.swap(proxied(address))
            for method in ("GET", "POST"):
                got = await rig.ask(method, body=b"x")
                assert (got.status, got.get("x-graylb-error")) == (502, "upstream-reset")
            assert taken == 2
            loop.remove_reader(listener)

    run(test)
