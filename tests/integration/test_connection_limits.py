"""Bounds of clients: idle ones make room, busy ones never, more are refused; descriptors that run out; slow heads."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import proxies
from tests.integration.client import Client
from tests.integration.engines import Caller, Origin, Rig, gather, request, run, service, statuses, turns, until
from tests.integration.upstream import Upstream


async def idle(rig: Rig, count: int) -> list[Caller]:
    """Callers between two requests."""
    callers = [await rig.caller() for _ in range(count)]
    for caller in callers:
        assert (await caller.ask()).status == 200
    await turns()
    return callers


async def busy(rig: Rig, origin: Origin, count: int) -> list[Caller]:
    """Callers whose requests are held."""
    before = len(origin.asks)
    callers = [await rig.send(request(target="/hold")) for _ in range(count)]
    await origin.asked(before + count)
    return callers


def release(origin: Origin) -> None:
    for ask in origin.asks:
        ask.go.set()


def test_an_idle_client_makes_room() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), client_connections=5)
        old = await idle(rig, 5)
        fresh = []
        for count in range(1, 6):
            fresh += await idle(rig, 1)
            await until(lambda: sum(caller.lost for caller in old + fresh) == count, "one to be closed")  # noqa: B023
            assert (rig.engine.clients, rig.stats["shed"]) == (5, count)
            assert not fresh[-1].lost
        assert all(not caller.raw.count(b"503") for caller in old + fresh)
        assert rig.stats["errors"] == {}

    run(test)


@pytest.mark.parametrize("at", range(5))
def test_the_only_idle_one_is_found(at: int) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), client_connections=5)
        callers = await busy(rig, origin, at) + await idle(rig, 1) + await busy(rig, origin, 4 - at)
        (one,) = await idle(rig, 1)
        assert callers[at].lost
        assert not one.lost
        release(origin)
        assert await statuses(callers[:at] + callers[at + 1 :]) == [200] * 4

    run(test)


BUSY = {
    "waits for an answer": request(target="/hold"),
    "sends a body": request("POST", "/", "Content-Length: 9") + b"x",
    "sends a head": b"GET / HTTP/1.1\r\nHo",
    "has just come": b"",
}


@pytest.mark.parametrize("kind", BUSY)
@pytest.mark.parametrize("before", [False, True])
def test_busy_ones_are_never_closed(kind: str, before: bool) -> None:
    """Another client gets its 503 at once. `before`: their connections have had a request already."""
    rest = {"sends a body": b"x" * 8, "sends a head": b"st: up\r\n\r\n", "has just come": request()}

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), client_connections=4)
        callers = await idle(rig, 4) if before else [await rig.caller() for _ in range(4)]
        for caller in callers:
            caller.write(BUSY[kind])
        await until(lambda: rig.engine.clients == 4, lambda: rig.stats)
        await turns()
        if before and kind == "has just come":
            return
        for asks in (b"", request(), request("POST", body=b"x" * 100_000)):
            refused = await rig.send(asks)
            got = await refused.answer()
            assert (got.status, got.get("x-graylb-error"), got.get("connection")) == (503, "overloaded", "close")
            await refused.ended()
        assert (rig.engine.clients, rig.stats["shed"], rig.stats["errors"]) == (4, 0, {"overloaded": 3})
        for caller in callers:
            caller.write(rest.get(kind, b""))
        await until(lambda: len(origin.asks) >= 4, "their requests")
        release(origin)
        assert await statuses(callers) == [200] * 4

    run(test)


@pytest.mark.parametrize("apart", [0.0, 0.3])
@pytest.mark.parametrize("count", [63, 64, 65, 128, 200])
def test_the_search_for_an_idle_one_goes_round(count: int, apart: float) -> None:
    """It looks at some connections for each that comes; where they sit, the one idle client is found in a few tries.

    apart: seconds between the deadlines of the first half and the second. Bug: what one slot of deadlines left over of
    a look was all that the next slot got, so a client among many there was found after hundreds of tries.
    """

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), client_connections=count + 1, header_timeout=20.0)
        first = await busy(rig, origin, count // 2)
        (one,) = await idle(rig, 1)
        rig.swap(service(origin), client_connections=count + 1, header_timeout=20.0 + apart)
        first += await busy(rig, origin, count - count // 2)
        tries = 0
        while (await (await rig.send(request())).answer()).status == 503:
            tries += 1
            assert tries < 20
        assert one.lost
        release(origin)
        assert await statuses(first) == [200] * count

    run(test)


def test_a_higher_limit_holds_at_once_and_a_lower_one_closes_nobody() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        up = service(origin)
        rig.swap(up, client_connections=2)
        callers = await busy(rig, origin, 2)
        assert (await rig.ask()).status == 503
        rig.swap(up, client_connections=4)
        callers += await busy(rig, origin, 2)
        rig.swap(up, client_connections=1)
        assert (await rig.ask()).status == 503
        assert rig.engine.clients == 4
        release(origin)
        assert await statuses(callers) == [200] * 4
        for caller in callers:
            caller.close()
        await until(lambda: rig.engine.clients == 0, lambda: rig.stats)
        assert (await rig.ask()).status == 200

    run(test)


def test_a_crowd_at_the_door_does_not_hold_up_who_is_in() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), client_connections=3)
        held = await busy(rig, origin, 2)
        inside = await rig.caller()
        inside.write(b"GET / HTTP/1.1\r\n")
        await until(lambda: rig.engine.clients == 3, lambda: rig.stats)

        async def knock() -> int:
            return (await (await rig.send(request())).answer()).status

        async def work() -> list[int]:
            found = []
            for _ in range(100):
                inside.write(b"Host: up\r\n\r\nGET / HTTP/1.1\r\n")
                found.append((await inside.answer()).status)
            return found

        refused, served = await asyncio.gather(gather(knock() for _ in range(300)), work())
        assert served == [200] * 100
        assert refused == [503] * 300
        release(origin)
        assert await statuses(held) == [200] * 2

    run(test)


# ---- slow heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drip", [False, True])
def test_five_hundred_slow_heads_are_shed(drip: bool) -> None:
    """By the time for a head, which no byte extends; everybody else is served meanwhile."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), header_timeout=1.5)
        slow = [await rig.send(b"GET / HTTP/1.1\r\nHost: up\r\nX-Slow: ") for _ in range(500)]
        await until(lambda: rig.stats["accepted"] == 500, lambda: rig.stats)
        good = await rig.caller()
        asked = 0
        while not all(caller.eof for caller in slow):
            assert (await good.ask()).status == 200
            asked += 1
            for caller in slow if drip else ():
                if not caller.eof:
                    caller.write(b"x")
            await asyncio.sleep(0.02)
        assert asked > 0
        assert await statuses(slow) == [408] * 500
        assert rig.stats["errors"] == {"header-timeout": 500}
        assert len(origin.asks) == asked
        await until(lambda: rig.engine.clients == 1, lambda: rig.stats)

    run(test)


def test_slow_heads_at_the_limit_give_way_in_time() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin), header_timeout=0.3, client_connections=50)
        slow = [await rig.send(b"G") for _ in range(50)]
        await until(lambda: rig.engine.clients == 50, lambda: rig.stats)
        assert (await rig.ask()).status == 503
        await gather(caller.ended() for caller in slow)
        assert (await rig.ask()).status == 200

    run(test)


# ---- descriptors -----------------------------------------------------------------------------------------------------


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream().start()
    yield made
    made.stop()
    made.check()


def test_descriptors_run_out_and_come_back(tmp_path: Path, upstream: Upstream) -> None:
    """Clients wait in the backlog meanwhile, and are served when others have gone; who is in is served to the end."""
    gate = upstream.gate()
    upstream.on("/hold", lambda call: (gate.wait(), call.answer(200, b"held")))
    with proxies.running(tmp_path, proxies.document({"users": proxies.service(upstream.address)})) as proxy:
        (pid,) = proxy.workers()
        worker = psutil.Process(pid)
        held = [proxy.client() for _ in range(5)]
        for client in held:
            client.ask(target="/first")
            client.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        upstream.wait(lambda: len(upstream.of("/hold")) == 5, "their requests")
        room = 12
        hard = worker.rlimit(resource.RLIMIT_NOFILE)[1]
        worker.rlimit(resource.RLIMIT_NOFILE, (worker.num_fds() + room, hard))
        crowd = [proxy.client() for _ in range(60)]
        proxies.until(lambda: "overloaded" in stats(proxy)["errors"], "a pause")
        assert worker.num_fds() <= 5 * 2 + room + 60
        gate.set()
        assert [client.response().body for client in held] == [b"held"] * 5
        # a client that is in is served though no descriptor is left for a new connection to its instance
        assert [client.ask().status for client in held] == [200] * 5
        before = worker.cpu_times()
        client = Client(proxy.address, patience=1.0).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.response()
        after = worker.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5, "it spins"
        for each in [*crowd, *held]:
            each.close()
        client.sock.settimeout(10)
        assert client.response().status == 200, "it waited in the backlog"
        client.close()
        with proxy.client() as last:
            assert [last.ask().status for _ in range(3)] == [200] * 3


def stats(proxy: proxies.Proxy) -> dict[str, Any]:
    """Of its only worker."""
    (found,) = proxy.call("/stats")
    return dict(found["stats"])


def test_without_a_descriptor_for_its_instance_a_request_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    """503 of graylb's own: the instance is not to blame."""
    with proxies.running(tmp_path, proxies.document({"users": proxies.service(upstream.address)})) as proxy:
        (pid,) = proxy.workers()
        worker = psutil.Process(pid)
        with proxy.client() as client:
            client.send(b"GET / HTTP/1.1\r\n")
            proxies.until(lambda: stats(proxy)["clients"] == 1, "the client")
            hard = worker.rlimit(resource.RLIMIT_NOFILE)[1]
            worker.rlimit(resource.RLIMIT_NOFILE, (0, hard))  # a count would leave the gaps below it free
            client.send(b"Host: x\r\n\r\n")
            answer = client.response()
            assert (answer.status, answer.error) == (503, "overloaded")
            worker.rlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert client.ask().status == 200
