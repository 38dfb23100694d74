"""IPv6 on both sides: listeners, instances, what is told about clients, rules by network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graylb.model.snapshot import Forwarding
from tests.integration import proxies
from tests.integration.engines import Rig, networks, run_bare, service
from tests.integration.upstream import Upstream

BOTH = Forwarding(x_forwarded="append", forwarded="append")


def test_listener_and_instance_on_ipv6() -> None:
    async def test(rig: Rig) -> None:
        rig.listen("::1")
        origin = await rig.origin("::1")
        assert origin.address.startswith("[::1]:")
        rig.swap(service(origin, connections={"warm": 1}))
        caller = await rig.caller()
        for _ in range(3):
            assert (await caller.ask("POST", body=b"data")).status == 200
        assert len(origin.links) == 1
        assert origin.links[0].peer[0] == "::1"

    run_bare(test)


def test_what_instances_are_told() -> None:
    """X-Forwarded-For has the bare address; in Forwarded it stands in brackets and quotes (RFC 7239 section 6)."""

    async def test(rig: Rig) -> None:
        rig.listen("::1")
        origin = await rig.origin()
        rig.swap(service(origin))
        assert (await rig.ask(host="[::1]:8080")).status == 200
        lines = ("X-Forwarded-For: 2001:db8::7", 'Forwarded: for="[2001:db8::7]"')
        assert (await rig.ask("GET", "/", *lines)).status == 200
        first, second = origin.asks
        assert first.get("x-forwarded-for") == "::1"
        assert first.get("forwarded") == 'for="[::1]";host="[::1]:8080";proto=http'
        assert first.get("x-forwarded-host") == first.get("host") == "[::1]:8080"
        assert second.get("x-forwarded-for") == "2001:db8::7, ::1"
        assert second.get("forwarded") == 'for="[2001:db8::7]", for="[::1]";host="up";proto=http'

    run_bare(test, forwarding=BOTH)


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        (("::1/128",), True),
        (("::/0",), True),
        (("::/127",), True),
        (("::2/127",), False),
        (("fe80::/10", "::1"), True),
        (("127.0.0.0/8",), False),
        (("0.0.0.0/0",), False),
    ],
)
def test_rules_by_network(values: tuple[str, ...], holds: bool) -> None:
    async def test(rig: Rig) -> None:
        rig.listen("::1")
        one, two = await rig.origin(), await rig.origin()
        rig.swap(service((one, "v1"), (two, "v2"), rules=(networks("net", "v2", *values),)))
        assert (await rig.ask()).get("x-graylb-version") == ("v2" if holds else "v1")

    run_bare(test)


def test_an_ipv4_client_of_a_dual_stack_listener_stays_ipv4() -> None:
    """Its address arrives mapped into IPv6; told, matched and compared it is as it was."""

    async def test(rig: Rig) -> None:
        address = rig.listen("::", dual=True)
        port = address.rpartition(":")[2]
        one, two = await rig.origin(), await rig.origin()
        rules = (networks("four", "v2", "127.0.0.0/8"), networks("six", "v2", "::ffff:0:0/96"))
        rig.swap(service((one, "v1"), (two, "v2"), rules=rules[:1]))
        four, six = await rig.caller(f"127.0.0.1:{port}"), await rig.caller(f"[::1]:{port}")
        assert (await four.ask()).get("x-graylb-version") == "v2"
        assert (await six.ask()).get("x-graylb-version") == "v1"
        assert two.asks[0].get("x-forwarded-for") == "127.0.0.1"
        assert two.asks[0].get("forwarded") == 'for=127.0.0.1;host="up";proto=http'
        assert one.asks[0].get("x-forwarded-for") == "::1"

    run_bare(test, forwarding=BOTH)


def test_an_instance_that_refuses_and_one_that_does_not_answer_on_ipv6() -> None:
    async def test(rig: Rig) -> None:
        rig.listen("::1")
        dead, live = await rig.origin("::1"), await rig.origin("::1")
        await dead.kill()
        rig.swap(service(dead, live))
        for _ in range(20):
            assert (await rig.ask("POST", body=b"data")).status == 200
        rig.swap(service(dead))
        assert (await rig.ask()).status == 502

    run_bare(test)


@pytest.fixture
def six(tmp_path: Path) -> Iterator[tuple[proxies.Proxy, Upstream]]:
    """The whole program with a listener and an admin address on IPv6."""
    upstream = Upstream().start()
    doc = proxies.document({"users": proxies.service(upstream.address)})
    doc |= {"listeners": [{"address": "[::1]:0"}, {"address": "127.0.0.1:0"}], "admin": {"address": "[::1]:0"}}
    with proxies.running(tmp_path, doc) as proxy:
        yield proxy, upstream
        upstream.stop()
    upstream.check()


def test_the_whole_program(six: tuple[proxies.Proxy, Upstream]) -> None:
    proxy, upstream = six
    assert proxy.address.startswith("[::1]:")
    assert proxy.admin.startswith("[::1]:")
    assert proxy.status()["revision"] == 1
    with proxy.client() as client:
        assert client.ask().status == 200
    assert upstream.requests[0].get("x-forwarded-for") == "::1"
