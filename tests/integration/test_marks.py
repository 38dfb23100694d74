"""The mark through real proxies and services: kept through a service that has no such version, believed of nobody who
may not set it, written under the names that people chose."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from graylb.release.marks import sign
from tests.integration import chains, proxies
from tests.integration.client import Client, request
from tests.integration.proxies import Proxy
from tests.integration.upstream import Upstream
from tests.sdk import servers
from tests.test_mark_heads import FORGED, LATER, SECRET

GRAY, STABLE = "a2 b1 c2", "a1 b1 c1"


def document(outbound: Path, services: dict[str, Any], **more: Any) -> dict[str, Any]:
    listeners = [{"address": "127.0.0.1:0"}, {"address": f"unix:{outbound}", "role": "outbound"}]
    return proxies.document(services, **{"listeners": listeners, "mark": True, **more})


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("http")
    with (
        chains.http_chain(str(folder / "out")) as found,
        proxies.running(folder, document(folder / "out", chains.services(found))) as proxy,
    ):
        yield proxy


async def ask_http(address: str, count: int) -> Counter[tuple[bool, str]]:
    """(of a tester, what the chain said), of so many requests by eight callers."""
    told: Counter[tuple[bool, str]] = Counter()

    async def some(client: httpx.AsyncClient, first: int) -> None:
        for number in range(first, count, 8):
            tester = number % 3 == 0
            headers = {"host": "a.test"} | ({"user-group": "beta"} if tester else {"x-service-version": "v2"})
            answer = await client.get(f"http://{address}/", headers=headers)
            told[tester, answer.text] += 1

    async with httpx.AsyncClient(timeout=servers.PATIENCE) as client:
        await asyncio.gather(*(some(client, first) for first in range(8)))
    return told


def wanted(count: int) -> dict[tuple[bool, str], int]:
    testers = len(range(0, count, 3))
    return {(True, GRAY): testers, (False, STABLE): count - testers}


def test_gray_callers_are_gray_behind_a_service_that_has_no_gray(http: Proxy) -> None:
    """Everybody else forges a mark, and stays on stable all the way."""
    assert asyncio.run(ask_http(http.address, 60)) == wanted(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_http_requests_through_the_chain(http: Proxy) -> None:
    assert asyncio.run(ask_http(http.address, 10_000)) == wanted(10_000)


async def ask_grpc(address: str, count: int) -> Counter[tuple[bool, str]]:
    told: Counter[tuple[bool, str]] = Counter()
    async with grpc.aio.insecure_channel(address, options=[("grpc.default_authority", "a.test")]) as channel:
        method = channel.unary_unary("/test.Chain/Tell")

        async def some(first: int) -> None:
            for number in range(first, count, 8):
                tester = number % 3 == 0
                metadata = (("user-group", "beta"),) if tester else (("x-service-version", "v2"),)
                answer = await method(b"", metadata=metadata, timeout=servers.PATIENCE)
                told[tester, answer.decode()] += 1

        await asyncio.gather(*(some(first) for first in range(8)))
    return told


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("grpc")
    with (
        chains.grpc_chain(str(folder / "out")) as found,
        proxies.running(folder, document(folder / "out", chains.services(found))) as proxy,
    ):
        yield proxy


def test_the_same_by_grpc(calls: Proxy) -> None:
    assert asyncio.run(ask_grpc(calls.address, 60)) == wanted(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_grpc_calls_through_the_chain(calls: Proxy) -> None:
    assert asyncio.run(ask_grpc(calls.address, 10_000)) == wanted(10_000)


def names(upstream: Upstream) -> dict[str, list[str]]:
    """Of the last request: everything that may be a mark."""
    found: dict[str, list[str]] = {}
    for name, value in upstream.requests[-1].headers:
        if name.lower() in ("x-service-version", "x-service-version-signature", "baggage", "x-lane"):
            found.setdefault(name.lower(), []).append(value)
    return found


@pytest.fixture
def ends() -> Iterator[tuple[Upstream, Upstream]]:
    made = Upstream("one").start(), Upstream("two").start()
    yield made
    for each in made:
        each.stop()


def versions(ends: tuple[Upstream, Upstream], **more: Any) -> dict[str, Any]:
    return {"up": proxies.service((ends[0].address, "v1"), (ends[1].address, "v2"), **more)}


def test_forged_marks_at_the_edge_are_not_honoured_and_signed_ones_are(
    tmp_path: Path, ends: tuple[Upstream, Upstream]
) -> None:
    (tmp_path / "secret").write_text(SECRET.text + "\n")
    mark = {"trusted": ["10.0.0.0/8"], "signed": {"secret": str(tmp_path / "secret")}}
    pinned = {"name": "pinned", "match": {"headers": {"x-service-version": "v2"}}, "to": "v2"}
    services = versions(ends, rules=[pinned])
    with proxies.running(tmp_path, document(tmp_path / "out", services, mark=mark)) as proxy:

        def ask(headers: list[tuple[str, str]]) -> str | None:
            with proxy.client() as client:
                lines = [f"{name}: {value}" for name, value in headers]
                return client.send(request("GET", "/", "up", lines)).response("GET").get("x-graylb-version")

        for headers in FORGED:
            assert ask(headers) == "v1", headers
            assert "x-service-version" not in names(ends[0]), headers
            assert "x-service-version" not in str(names(ends[0]).get("baggage")), headers
        assert not ends[1].requests
        assert ask([("x_service_version", "v2")]) != "v2"
        signature = ("x-service-version-signature", sign("v2", SECRET.text, LATER))
        assert ask([("x-service-version", "v2"), signature]) == "v2"
        assert names(ends[1]) == {"x-service-version": ["v2"], "baggage": ["x-service-version=v2"]}
        marks = proxies.until(lambda: proxy.status()["workers"], "workers")
        assert marks
        # another secret, in the same file: what was signed with the first one is not believed any more
        (tmp_path / "secret").write_text("an entirely different secret\n")
        proxies.until(lambda: ask([("x-service-version", "v2"), signature]) == "v1", "the new secret")
        fresh = ("x-service-version-signature", sign("v2", "an entirely different secret", LATER))
        assert ask([("x-service-version", "v2"), fresh]) == "v2"
        assert "different secret" not in proxy.log()


def test_a_mark_begins_with_the_version_that_was_chosen_and_has_the_names_of_its_service(
    tmp_path: Path, ends: tuple[Upstream, Upstream]
) -> None:
    testers = {"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}
    named = {"carry": {"v2": "gray"}, "headers": ["x-lane"], "baggage": "lane"}
    services = versions(ends, rules=[testers], mark=named)
    with proxies.running(tmp_path, document(tmp_path / "out", services)) as proxy:
        with proxy.client() as client:
            client.send(request("GET", "/", "up", ["user-group: beta", "baggage: a=1", "baggage: b=2"])).response("GET")
            assert names(ends[1]) == {"x-lane": ["gray"], "baggage": ["lane=gray,a=1,b=2"]}
            client.send(request("GET", "/", "up", ["baggage: a=1"])).response("GET")
            assert names(ends[0]) == {"baggage": ["a=1"]}
        doc = document(tmp_path / "out", versions(ends, rules=[testers], mark={"carry": False}))
        proxy.edit(doc)
        with proxy.client() as client:
            client.send(request("GET", "/", "up", ["user-group: beta"])).response("GET")
            assert names(ends[1]) == {}
        proxy.edit(document(tmp_path / "out", versions(ends, rules=[testers])))
        with proxy.client() as client:
            client.send(request("GET", "/", "up", ["user-group: beta"])).response("GET")
            assert names(ends[1]) == {"x-service-version": ["v2"], "baggage": ["x-service-version=v2"]}


def test_without_the_setting_a_header_of_that_name_is_like_any_other(
    tmp_path: Path, ends: tuple[Upstream, Upstream]
) -> None:
    pinned = {"name": "pinned", "match": {"headers": {"x-service-version": "v2"}}, "to": "v2"}
    with (
        proxies.running(tmp_path, proxies.document(versions(ends, rules=[pinned]))) as proxy,
        proxy.client() as client,
    ):
        client.send(request("GET", "/", "up", ["X-Service-Version: v2", "baggage: x-service-version=v3"])).response(
            "GET"
        )
        assert names(ends[1]) == {"x-service-version": ["v2"], "baggage": ["x-service-version=v3"]}


def test_lanes_rules_and_marks_of_no_version(tmp_path: Path, ends: tuple[Upstream, Upstream]) -> None:
    """Where everybody is believed: rules, then the version, then the lane, then the stable version, or the split."""
    instances = [
        {"address": ends[0].address, "version": "v1"},
        {"address": ends[1].address, "version": "v2", "metadata": {"env": "gray"}},
    ]
    own = {"name": "own", "match": {"mark": "vip"}, "to": "v2"}
    service = {**versions(ends)["up"], "instances": instances, "rules": [own], "split": {"v2": 100}}
    listeners = [{"address": "127.0.0.1:0", "role": "inbound"}]
    with proxies.running(tmp_path, document(tmp_path, {"up": service}, listeners=listeners)) as proxy:

        def ask(*headers: str) -> tuple[str | None, str | None]:
            with proxy.client() as client:
                answer = client.send(request("GET", "/", "up", headers)).response("GET")
                return answer.get("x-graylb-version"), answer.get("x-graylb-rule")

        assert ask() == ("v2", None)
        assert ask("x-service-version: v1") == ("v1", "mark:v1")
        assert ask("x-service-version: v2") == ("v2", "mark:v2")
        assert ask("baggage: x-service-version=gray") == ("v2", "mark:gray")
        assert ask("x-service-version: vip") == ("v2", "own")
        assert ask("x-service-version: v7") == ("v1", "mark:*")
        assert ask("x-service-version: v7", "x-service-version: v2") == ("v2", None)  # two that differ are none
        told = proxies.cli("explain", "-c", proxy.file, "-H", "x-service-version: v7").stdout
        assert "the mark v7 is of no version here: version v1" in told
        told = proxies.cli("explain", "-c", proxy.file, "-H", "x-service-version: gray").stdout
        assert "the mark gray is there: metadata env=gray" in told
        split = {**service, "mark": {"otherwise": "split"}}
        proxy.edit(document(tmp_path, {"up": split}, listeners=listeners))
        assert ask("x-service-version: v7") == ("v2", None)
        proxy.edit(document(tmp_path, {"up": {**service, "mark": {"prefer": False}}}, listeners=listeners))
        assert ask("x-service-version: v1") == ("v2", None)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Of services that pass on nothing but `traceparent`. Two workers: a call may come to the other one."""
    folder = tmp_path_factory.mktemp("sidecar")
    outbound = {"address": f"unix:{folder / 'out'}", "role": "outbound"}
    with chains.http_chain(str(folder / "out"), with_sdk=False) as found:
        made = proxies.document(chains.services(found), mark=True, workers=2)
        made["listeners"] = [{"address": "127.0.0.1:0", "role": "inbound"}, outbound]
        with proxies.running(folder, made) as proxy:
            yield proxy


async def ask_by_trace(address: str, count: int) -> Counter[tuple[bool, str]]:
    """(with a mark, what the chain said), of so many requests by eight callers, each in a trace of its own."""
    told: Counter[tuple[bool, str]] = Counter()

    async def some(first: int) -> None:
        async with httpx.AsyncClient(timeout=servers.PATIENCE) as client:
            for number in range(first, count, 8):
                marked = number % 3 == 0
                headers = {"host": "a.test", "traceparent": f"00-{secrets.token_hex(16)}-00f067aa0ba902b7-01"}
                answer = await client.get(
                    f"http://{address}/", headers=headers | ({"x-service-version": "v2"} if marked else {})
                )
                told[marked, answer.text] += 1

    await asyncio.gather(*(some(first) for first in range(8)))
    return told


def trace_figures(proxy: Proxy) -> Counter[str]:
    found: Counter[str] = Counter()
    for worker in proxy.call("/stats"):
        found.update({key: worker["stats"]["marks"][key] for key in ("remembered", "recalled", "ambiguous")})
    return found


def test_services_that_pass_on_nothing_but_traceparent_keep_the_mark(sidecar: Proxy) -> None:
    before = trace_figures(sidecar)
    assert asyncio.run(ask_by_trace(sidecar.address, 60)) == wanted(60)
    assert trace_figures(sidecar) - before == Counter(remembered=20, recalled=40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_requests_that_pass_on_nothing_but_traceparent(sidecar: Proxy) -> None:
    assert asyncio.run(ask_by_trace(sidecar.address, 10_000)) == wanted(10_000)


def test_the_mark_of_a_trace_is_for_outbound_calls_of_that_trace_and_for_a_time(
    tmp_path: Path, ends: tuple[Upstream, Upstream]
) -> None:
    listeners = [{"address": f"unix:{tmp_path / role}", "role": role} for role in ("edge", "inbound", "outbound")]

    def parent(trace: str) -> str:
        return f"traceparent: 00-{trace * 16}-00f067aa0ba902b7-01"

    def ask(role: str, *headers: str) -> tuple[str | None, dict[str, list[str]]]:
        with Client(f"unix:{tmp_path / role}") as client:
            version = client.send(request("GET", "/", "up", headers)).response("GET").get("x-graylb-version")
        return version, names(ends[1] if version == "v2" else ends[0])

    marked = {"x-service-version": ["v2"], "baggage": ["x-service-version=v2"]}
    made = document(tmp_path, versions(ends), listeners=[{"address": "127.0.0.1:0"}, *listeners], workers=1)
    with proxies.running(tmp_path, made) as proxy:
        assert ask("inbound", parent("ab"), "x-service-version: v2") == ("v2", marked)
        assert ask("outbound", parent("ab")) == ("v2", marked)
        assert ask("outbound", parent("ab"), "baggage: a=1") == (
            "v2",
            {**marked, "baggage": ["x-service-version=v2,a=1"]},
        )
        # neither other traces nor other roles; a mark that the call has itself counts more, and so does a broken one
        assert ask("outbound", parent("ac")) == ("v1", {})
        assert ask("outbound") == ("v1", {})
        assert ask("outbound", parent("ab"), parent("ab")) == ("v1", {})
        assert ask("inbound", parent("ab")) == ("v1", {})
        assert ask("edge", parent("ab")) == ("v1", {})
        assert ask("outbound", parent("ab"), "x-service-version: v1")[0] == "v1"
        assert ask("outbound", parent("ab"), "x-service-version: a b") == ("v1", {})
        # outbound and edge tell it nothing
        assert ask("outbound", parent("ad"), "x-service-version: v2")[0] == "v2"
        assert ask("edge", parent("ad"), "x-service-version: v2") == ("v1", {})
        assert ask("outbound", parent("ad")) == ("v1", {})
        # one trace, two marks: none
        assert ask("inbound", parent("ab"), "x-service-version: v1")[0] == "v1"
        assert ask("outbound", parent("ab")) == ("v1", {})
        assert trace_figures(proxy) == Counter(remembered=1, recalled=2, ambiguous=1)
        # a trace that begins here has a name of ours, which the service passes on
        proxy.edit({**made, "tracing": {"otlp": {"endpoint": "http://127.0.0.1:9"}}})
        assert ask("inbound", "x-service-version: v2")[0] == "v2"
        begun = dict(ends[1].requests[-1].headers)["traceparent"]
        assert ask("outbound", f"traceparent: {begun}") == ("v2", marked)
        # for a time
        proxy.edit({**made, "mark": {"memory": "1ms"}})
        assert ask("inbound", parent("ba"), "x-service-version: v2")[0] == "v2"
        proxies.until(lambda: ask("outbound", parent("ba"))[0] == "v1", "the mark to be forgotten")
        proxy.edit({**made, "mark": {"memory": "off"}})
        assert ask("inbound", parent("bb"), "x-service-version: v2")[0] == "v2"
        assert ask("outbound", parent("bb")) == ("v1", {})
        assert ask("outbound", f"traceparent: {begun}") == ("v1", {})
