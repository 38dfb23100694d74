"""Limits of services through an engine: breakers, rates, adaptive concurrency; what is over them is refused at once."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import grpc
import pytest

from graylb import builds
from graylb.model.snapshot import Service
from graylb.model.snapshot_limits import Adaptive, Bounds, Memory, Rate, ServiceLimits
from graylb.observe.slabs import Slabs
from tests.integration import proxies
from tests.integration.engines import Answer, Caller, Rig, request, rule, run, service, split, turns, until
from tests.integration.grpcs import Channel, servers

NONE = Bounds()


def limited(*instances: Any, rates: tuple[Rate, ...] = (), version: Bounds = NONE, **more: Any) -> Service:
    """A service; requests, pending, connections, adaptive: its own bounds, and with `each_` those of instances."""
    names = ("requests", "pending", "connections", "adaptive")
    own = Bounds(**{name: more.pop(name) for name in names if name in more})
    each = Bounds(**{name: more.pop("each_" + name) for name in names if "each_" + name in more})
    return service(*instances, limits=ServiceLimits(own, version, each, rates), **more)


async def held(rig: Rig, count: int, *lines: str, **more: Any) -> list[Caller]:
    """Callers whose requests are at an origin."""
    before = sum(len(origin.asks) for origin in rig.origins)
    callers = [await rig.send(request("GET", "/hold", *lines, **more)) for _ in range(count)]
    await until(lambda: sum(len(origin.asks) for origin in rig.origins) >= before + count, f"{count} more requests")
    return callers


async def release(rig: Rig, callers: list[Caller]) -> list[int]:
    for origin in rig.origins:
        for ask in origin.asks:
            ask.go.set()
    return [(await caller.answer()).status for caller in callers]


def told(answer: Answer) -> tuple[int, str | None, str | None]:
    return answer.status, answer.get("x-graylb-error"), answer.get("retry-after")


OPEN = (503, "circuit-open", "1")
SHEDDING = (503, "shedding", "1")


def test_requests_of_a_service() -> None:
    """Across its versions; those over the limit are answered at once, on connections that stay."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(limited((one, "v1"), (two, "v2"), requests=3, rules=(rule("two", "v2", x_to="v2"),)))
        callers = await held(rig, 2) + await held(rig, 1, "x-to: v2")
        extra = await rig.caller()
        for _ in range(3):
            assert told(await extra.ask()) == OPEN
        assert told(await extra.ask("POST", body=b"x" * 100)) == OPEN
        assert rig.stats["limits"]["up"]["requests"] == 3
        assert rig.stats["limits"]["up"]["limited"] == {"requests": 4}
        assert await release(rig, callers) == [200] * 3
        assert (await extra.ask()).status == 200
        assert rig.stats["limits"]["up"]["requests"] == 0

    run(test)


def test_a_full_version_is_not_another_ones_traffic() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rules = (rule("two", "v2", x_to="v2"),)
        rig.swap(limited((one, "v1"), (two, "v2"), version=Bounds(requests=1), rules=rules, fallback="any"))
        callers = await held(rig, 1, "x-to: v2")
        assert told(await rig.ask("GET", "/", "x-to: v2")) == OPEN
        assert (await rig.ask()).status == 200  # the other version has room of its own
        assert (len(one.asks), len(two.asks)) == (1, 1)
        versions = {each["version"]: each["limits"] for each in rig.stats["versions"]}
        assert [versions[name]["limited"] for name in ("v1", "v2")] == [{}, {"requests": 1}]
        assert await release(rig, callers) == [200]
        assert rig.stats["fallbacks"] == []

    run(test)


def test_a_full_instance_leaves_requests_to_others_of_its_version() -> None:
    async def test(rig: Rig) -> None:
        one, two, three = [await rig.origin() for _ in range(3)]
        rig.swap(limited(one, two, (three, "v2"), each_requests=2, split=split(v1=1)))
        callers = await held(rig, 4)
        assert (len(one.asks), len(two.asks), len(three.asks)) == (2, 2, 0)
        assert told(await rig.ask()) == OPEN
        one.asks[0].go.set()
        first = await until(lambda: next((caller for caller in callers if caller.buffer), None), "an answer")
        assert (await first.answer()).status == 200
        assert (await rig.ask()).status == 200
        callers.remove(first)
        assert await release(rig, callers) == [200] * 3

    run(test)


def test_connections_of_an_instance_have_requests_wait() -> None:
    """And so many of them as may be pending."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, each_connections=1, each_pending=2))
        callers = await held(rig, 1)
        callers += [await rig.send(request()) for _ in range(2)]
        await rig.waiting(origin, 2)
        assert rig.stats["limits"]["up"]["pending"] == 2
        assert told(await rig.ask()) == OPEN
        assert await release(rig, callers) == [200] * 3
        assert origin.most == 1
        assert rig.stats["limits"]["up"]["pending"] == 0

    run(test)


@pytest.mark.parametrize("of", ["service", "version"])
def test_pending_requests_of_all_instances(of: str) -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        bounds: dict[str, Any] = {"pending": 3} if of == "service" else {"version": Bounds(pending=3)}
        rig.swap(limited(one, two, each_connections=1, **bounds))
        callers = await held(rig, 2)
        callers += [await rig.send(request()) for _ in range(3)]
        await turns()
        assert [told(await rig.ask()) for _ in range(2)] == [OPEN] * 2
        assert await release(rig, callers) == [200] * 5

    run(test)


@pytest.mark.parametrize("of", ["service", "version"])
def test_connections_of_all_instances(of: str) -> None:
    """An unused one of another instance makes room; where all are in use there is no more."""

    async def test(rig: Rig) -> None:
        origins = [await rig.origin() for _ in range(4)]
        bounds: dict[str, Any] = {"connections": 2} if of == "service" else {"version": Bounds(connections=2)}
        rig.swap(limited(*origins, **bounds))
        for _ in range(20):
            assert (await rig.ask()).status == 200
        await turns()
        assert sum(len(origin.open) for origin in origins) <= 2
        assert sum(len(origin.links) for origin in origins) > 2
        callers = await held(rig, 2)
        assert told(await rig.ask()) == OPEN
        assert await release(rig, callers) == [200] * 2
        assert (await rig.ask()).status == 200
        assert rig.stats["limits"]["up"]["connections"] <= 2

    run(test)


def test_every_end_of_a_request_counts_it_out() -> None:
    """Answers, refusals, clients and instances that go, tunnels: nothing is left of any of them."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()

        async def switch(ask: Any) -> None:
            ask.link.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            await ask.go.wait()

        async def vanish(ask: Any) -> None:
            ask.link.reset()

        origin.handlers |= {"/socket": switch, "/vanish": vanish}
        bounds = Bounds(requests=100, pending=10, connections=50)
        rig.swap(
            limited(origin, (rig.refusing(), "v2"), requests=100, version=bounds, rules=(rule("two", "v2", x_to="v2"),))
        )
        gone = await held(rig, 3)
        for caller in gone:
            caller.reset()
        lines = (
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: " + "A" * 22 + "==",
        )
        tunnel = await rig.send(request("GET", "/socket", *lines))
        await tunnel.until(b"\r\n\r\n")
        assert rig.stats["limits"]["up"]["requests"] >= 1
        assert (await rig.ask("GET", "/vanish")).status == 502
        assert (await rig.ask("GET", "/", "x-to: v2")).status == 502
        assert (await rig.ask()).status == 200
        rig.swap(limited(origin))
        assert (await rig.ask()).status == 200
        rig.swap(limited(origin, requests=50))
        tunnel.reset()
        await rig.leave()
        await rig.quiet()
        found = rig.stats["limits"]["up"]
        assert (found["requests"], found["pending"]) == (0, 0)
        for version in rig.stats["versions"]:
            assert (version["limits"]["requests"], version["limits"]["pending"]) == (0, 0)
        assert found["connections"] == rig.stats["upstream_connections"]

    run(test)


def test_workers_share_a_limit() -> None:
    """Each of three has a third, rounded up."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, requests=4))
        callers = await held(rig, 2)
        assert told(await rig.ask()) == OPEN
        assert await release(rig, callers) == [200] * 2

    run(test, workers=3)


# ---- rates -----------------------------------------------------------------------------------------------------------


def test_a_rate() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, rates=(Rate("all", 1 / 3600, 3),)))
        caller = await rig.caller()
        assert [(await caller.ask()).status for _ in range(3)] == [200] * 3
        found = await caller.ask("POST", body=b"x" * 100)
        assert found.status == 429
        assert found.get("x-graylb-error") == "rate-limited"
        assert 3500 < int(found.get("retry-after") or 0) <= 3600
        assert found.get("x-graylb-service") == "up"
        assert (await caller.ask("GET", "/", "accept: application/json")).body.startswith(b'{"error":"rate-limited"')
        assert len(origin.asks) == 3
        assert rig.stats["limits"]["up"]["rates"] == {"all": 2}
        rig.swap(limited(origin))
        assert (await caller.ask()).status == 200

    run(test)


KEYS: dict[str, tuple[tuple[str, str], str, str]] = {
    "header": (("header", "x-user"), "x-user: %s", "x-user: %s "),
    "cookie": (("cookie", "uid"), "cookie: uid=%s", "cookie: a=b; uid=%s"),
    "query": (("query", "u"), "", ""),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_rate_of_each_key(kind: str) -> None:
    key, one, other = KEYS[kind]

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, rates=(Rate("each", 1 / 3600, 2, (key,)),)))

        async def ask(who: str, line: str) -> int:
            target = f"/?u={who}" if kind == "query" else "/"
            return (await rig.ask("GET", target, *([line % who] if line else []))).status

        assert [await ask("a", one), await ask("a", other), await ask("a", one)] == [200, 200, 429]
        assert [await ask("b", one), await ask("b", one), await ask("b", other)] == [200, 200, 429]
        assert [(await rig.ask()).status for _ in range(5)] == [200] * 5  # who has none is not limited

    run(test)


def test_a_rate_of_each_client_and_of_one_rule() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        address = (("client_ip", ""),)
        rates = (Rate("each", 1 / 3600, 2, address, rule="testers"),)
        rules = (rule("others", "v1", x_group="others"), rule("testers", "v1", x_group="beta"))
        rig.swap(limited(origin, rates=rates, rules=rules))

        async def ask(source: str, *lines: str) -> int:
            caller = await rig.caller(source=(source, 0))
            return (await caller.ask("GET", "/", *lines)).status

        beta, others = "x-group: beta", "x-group: others"
        assert [await ask("127.0.0.1", beta) for _ in range(3)] == [200, 200, 429]
        assert [await ask("127.0.0.2", beta) for _ in range(3)] == [200, 200, 429]
        assert [await ask("127.0.0.1", others), await ask("127.0.0.1")] == [200, 200]
        # fields and rules have other numbers in the next table; buckets stay
        rig.swap(limited(origin, rates=rates, rules=(rule("first", "v1", a="b"), *rules)))
        assert [await ask("127.0.0.1", beta), await ask("127.0.0.3", beta)] == [429, 200]

    run(test)


def test_refusals_take_no_tokens() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, requests=1, rates=(Rate("all", 1 / 3600, 2),)))
        callers = await held(rig, 1)
        assert [told(await rig.ask()) for _ in range(3)] == [OPEN] * 3
        assert await release(rig, callers) == [200]
        assert [(await rig.ask()).status for _ in range(2)] == [200, 429]

    run(test)


# ---- adaptive --------------------------------------------------------------------------------------------------------


def test_an_adaptive_limit_refuses_what_is_over_it() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, adaptive=Adaptive(min=4, max=4)))
        callers = await held(rig, 4)
        assert [told(await rig.ask()) for _ in range(3)] == [OPEN] * 3
        assert await release(rig, callers) == [200] * 4
        found = rig.stats["limits"]["up"]
        assert (found["adaptive"]["limit"], found["limited"]) == (4, {"adaptive": 3})
        for _ in range(20):
            assert (await rig.ask()).status == 200
        assert rig.stats["limits"]["up"]["adaptive"]["shortest_us"] > 0

    run(test)


def test_an_adaptive_limit_is_a_gauge_of_its_service_until_it_has_none() -> None:
    slabs = Slabs(1)

    def limit() -> int | None:
        name, of = "graylb_adaptive_concurrency_limit", (("service", "up"), ("version", ""))
        return next((each.value for each in slabs.read() if (each.name, each.labels) == (name, of)), None)

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(limited(origin, adaptive=Adaptive(min=4, max=4)))
        await until(lambda: limit() == 4, "the gauge")
        rig.swap(service(origin))
        await until(lambda: limit() == 0, "the gauge without a limit")

    try:
        run(test, slab=slabs.fds[0])
    finally:
        slabs.close()


# ---- gRPC ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")
def test_calls_are_told_that_resources_are_exhausted(tmp_path: Path) -> None:
    """And a call that hangs is one of the requests at once, until its caller goes."""
    with servers("v1") as (one,):
        limits = {
            "requests": 1,
            "rates": [{"name": "each", "rate": "1/h", "burst": 2, "key": [{"metadata": "x-user"}]}],
        }
        doc = proxies.document({"echo": {**proxies.service(one.address), "limits": limits}})
        with proxies.running(tmp_path, doc) as proxy, Channel(proxy.address) as channel:
            hanging = channel.channel.unary_unary("/test.Echo/Hang").future(b"", timeout=60)
            proxies.until(lambda: len(one.calls) == 1, "the call")
            failed = channel.failure("Echo")
            assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (
                dict(failed.trailing_metadata() or dict(failed.initial_metadata()))["x-graylb-error"] == "circuit-open"
            )
            hanging.cancel()
            proxies.until(lambda: channel.echo(b"") == "v1" if _idle(proxy) else None, "room for another call")
            ann = ("x-user", "ann")
            assert [channel.echo(b"", ann) for _ in range(2)] == ["v1", "v1"]
            with pytest.raises(grpc.RpcError) as refused:
                channel.echo(b"", ann)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert channel.echo(b"", ("x-user", "bob")) == "v1"


def _idle(proxy: Any) -> bool:
    (worker,) = proxy.call("/stats")
    return bool(worker["stats"]["limits"]["echo"]["requests"] == 0)


# ---- watermarks ------------------------------------------------------------------------------------------------------


def test_above_the_lower_mark_of_memory_idle_clients_go_and_no_more_come() -> None:
    """Requests on connections that are there are served. Below it all is as before."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        idle = await rig.caller()
        assert (await idle.ask()).status == 200
        busy = await held(rig, 1)
        rig.swap(service(origin), memory=Memory(soft=1))
        await until(lambda: idle.lost, "the idle client to be closed")
        assert rig.stats["pressure"]["level"] == "high"
        assert rig.stats["pressure"]["resident"] > 1 << 20
        late = await rig.caller()
        found = await late.answer()
        assert (*told(found), found.get("connection")) == (*SHEDDING, "close")
        assert await release(rig, busy) == [200]
        assert (await busy[0].ask()).status == 200
        rig.swap(service(origin), memory=Memory(soft=1 << 50))
        assert rig.stats["pressure"]["level"] == "calm"
        assert (await rig.ask()).status == 200
        assert rig.stats["errors"] == {"shedding": 1}

    run(test)


def test_above_the_upper_mark_of_memory_requests_are_refused() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        callers = await held(rig, 2)
        rig.swap(service(origin), memory=Memory(soft=1, hard=2))
        assert await release(rig, callers) == [200] * 2
        assert told(await callers[0].ask()) == SHEDDING
        assert told(await callers[0].ask("POST", body=b"x" * 10)) == SHEDDING
        rig.swap(service(origin), memory=Memory())
        assert (await callers[0].ask()).status == 200

    run(test)


def test_above_the_mark_of_descriptors_idle_clients_make_room() -> None:
    """And where none is idle, the newcomer is turned away, long before descriptors have run out."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    percent = 1
    most = limit // 100 * percent
    if not 10 <= most <= 500:
        pytest.skip(f"one percent of {limit} descriptors is none or too many")

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), descriptors=percent)
        idle = [await rig.caller() for _ in range(most // 3)]
        for caller in idle:
            assert (await caller.ask()).status == 200
        busy = await held(rig, most // 3 - 1)
        while True:
            caller = await rig.send(request(target="/hold"))
            await until(lambda: caller.buffer or len(origin.asks) > len(idle) + len(busy), "one or the other")  # noqa: B023
            if caller.buffer:
                break
            busy.append(caller)
        assert told(await caller.answer()) == SHEDDING
        assert all(each.lost for each in idle)
        assert most - 2 <= rig.engine.clients + rig.stats["upstream_connections"] <= most + 2
        assert await release(rig, busy) == [200] * len(busy)
        assert (await rig.ask()).status == 200

    run(test)


# ---- lag -------------------------------------------------------------------------------------------------------------


def test_requests_that_have_waited_for_their_worker_are_refused() -> None:
    """All of a batch come at once; those that its first ones keep waiting for longer than `lag` get a quick 503."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), lag=1e-6)
        callers = [await rig.caller() for _ in range(50)]
        for caller in callers:
            caller.write_now(request())
        answers = [await caller.answer() for caller in callers]
        refused = [answer for answer in answers if answer.status == 503]
        assert {told(answer) for answer in refused} == {SHEDDING}
        assert len(refused) == rig.stats["errors"]["shedding"] > 0
        rig.swap(service(origin), lag=60.0)
        for caller in callers:
            caller.write_now(request())
        assert {(await caller.answer()).status for caller in callers} == {200}

    run(test)
