"""Requests that wait for a connection: their order, their time, their bodies; those that go, and instances that go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from graylb.model.snapshot import Retries
from tests.integration.client import chunked
from tests.integration.engines import (
    Ask,
    Caller,
    Origin,
    Rig,
    gather,
    request,
    rule,
    run,
    service,
    split,
    statuses,
    turns,
    until,
)

FULL = {"max": 1, "queue_timeout": 5.0}


async def queue(rig: Rig, origin: Origin, count: int, *, method: str = "GET", **more: object) -> list[Caller]:
    """Callers of /hold/N that wait for a connection to `origin`, in this order, behind those that wait already."""
    already = rig.figures(origin)["waiting"]
    callers = []
    for number in range(count):
        callers.append(await rig.send(request(method, f"/hold/{number}", **more)))  # type: ignore[arg-type]
        await rig.waiting(origin, already + number + 1)
    return callers


async def busy(rig: Rig, origin: Origin, count: int = 1) -> list[Caller]:
    """Callers whose requests are held at the origin."""
    before = len(origin.asks)
    callers = [await rig.send(request(target="/hold/first")) for _ in range(count)]
    await origin.asked(before + count)
    return callers


async def release_all(origin: Origin, count: int) -> None:
    """Answers one request after the other until so many have been asked."""
    for number in range(count):
        (await origin.asked(number + 1))[number].go.set()


def targets(origin: Origin) -> list[str]:
    return [ask.target for ask in origin.asks]


@pytest.mark.parametrize("keep", [True, False])
def test_they_are_served_in_their_order(keep: bool) -> None:
    """Whether a connection comes free or is closed and makes room for another."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={**FULL, "idle": 1 if keep else 0}))
        first = await busy(rig, origin)
        waiting = await queue(rig, origin, 12)
        for number in range(13):
            asks = await origin.asked(number + 1)
            assert len(asks) == number + 1
            asks[number].go.set()
        answers = await gather(caller.answer() for caller in first + waiting)
        assert [answer.status for answer in answers] == [200] * 13
        assert targets(origin) == ["/hold/first", *(f"/hold/{number}" for number in range(12))]
        assert origin.most == 1
        assert len(origin.links) == (1 if keep else 13)

    run(test)


def test_a_new_request_does_not_overtake_those_that_wait() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        first = await busy(rig, origin)
        waiting = await queue(rig, origin, 3)
        late = [await rig.caller() for _ in range(3)]
        for ask, caller in zip(range(3), late, strict=True):
            origin.asks[ask].go.set()
            caller.write(request(target="/hold/late"))  # while the connection comes free
            await origin.asked(ask + 2)
        await release_all(origin, 7)
        await gather(caller.answer() for caller in first + waiting + late)
        assert targets(origin) == ["/hold/first", "/hold/0", "/hold/1", "/hold/2", *["/hold/late"] * 3]

    run(test)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("when", ["with the head", "in part", "later"])
def test_bodies_arrive_whole(framing: str, when: str) -> None:
    """Whatever part of them has been read while they waited."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        first = await busy(rig, origin)
        body = bytes(range(256)) * 1200
        line = f"Content-Length: {len(body)}" if framing == "length" else "Transfer-Encoding: chunked"
        wire = body if framing == "length" else chunked(body[at : at + 7001] for at in range(0, len(body), 7001))
        cut = {"with the head": len(wire), "in part": 100_000, "later": 0}[when]
        callers = []
        for number in range(4):
            callers.append(await rig.send(request("POST", f"/{number}", line) + wire[:cut]))
            await rig.waiting(origin, number + 1)
        for caller in callers[:2]:
            caller.write(wire[cut:])
        await turns()
        origin.asks[0].go.set()
        for caller in callers[2:]:
            caller.write(wire[cut:])
        assert await statuses(first + callers) == [200] * 5
        assert targets(origin)[1:] == ["/0", "/1", "/2", "/3"]
        assert all(ask.body == body for ask in origin.asks[1:])
        assert origin.most == 1

    run(test)


def test_a_pipeline_goes_on_behind_a_request_that_waited() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        (first,) = await busy(rig, origin)
        other = await rig.send(
            request("POST", "/1", body=b"one") + request(target="/2") + request("PUT", "/3", body=b"three")
        )
        await rig.waiting(origin, 1)
        origin.asks[0].go.set()
        assert [(await other.answer()).status for _ in range(3)] == [200] * 3
        assert (await first.answer()).status == 200
        assert [(ask.target, bytes(ask.body)) for ask in origin.asks[1:]] == [
            ("/1", b"one"),
            ("/2", b""),
            ("/3", b"three"),
        ]

    run(test)


# ---- the queue's bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 2])
def test_one_too_many_is_refused_at_once(room: int) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={**FULL, "queue": room}))
        first = await busy(rig, origin)
        waiting = await queue(rig, origin, room)
        for method in ("GET", "POST"):
            got = await rig.ask(method, "/over", body=b"data")
            assert (got.status, got.get("x-graylb-error")) == (503, "overloaded")
        assert rig.stats["errors"] == {"overloaded": 2}
        await release_all(origin, 1 + room)
        assert await statuses(first + waiting) == [200] * (1 + room)
        assert (await rig.ask()).status == 200, "there is room again"

    run(test)


@pytest.mark.parametrize("request_", ["get", "whole body", "part of a body"])
def test_whoever_waits_too_long_gets_503(request_: str) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"max": 1, "queue_timeout": 0.2}))
        (first,) = await busy(rig, origin)
        sent = {
            "get": request(),
            "whole body": request("POST", body=b"x" * 1000),
            "part of a body": request("POST", "/", "Content-Length: 1000") + b"x" * 10,
        }[request_]
        callers = [await rig.send(sent) for _ in range(5)]
        for answer in await gather(caller.answer() for caller in callers):
            assert (answer.status, answer.get("x-graylb-error")) == (503, "overloaded")
            assert answer.get("connection") == ("close" if request_ == "part of a body" else None)
        assert rig.figures(origin)["waiting"] == 0
        origin.asks[0].go.set()
        assert (await first.answer()).status == 200
        assert len(origin.asks) == 1, "none of them reached the instance"
        if request_ != "part of a body":
            assert [answer.status for answer in await gather(caller.ask() for caller in callers)] == [200] * 5

    run(test)


def test_the_time_of_the_queue_is_over_once_it_is_served() -> None:
    """The answer may take longer than that."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"max": 1, "queue_timeout": 0.3}))
        (first,) = await busy(rig, origin)
        (second,) = await queue(rig, origin, 1)
        origin.asks[0].go.set()
        await origin.asked(2)
        await asyncio.sleep(0.6)
        origin.asks[1].go.set()
        assert [(await caller.answer()).status for caller in (first, second)] == [200, 200]

    run(test)


# ---- those that go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["reset", "close"])
@pytest.mark.parametrize("body", [False, True])
def test_a_client_that_goes_leaves_the_queue(way: str, body: bool) -> None:
    """From its head, its middle and its end; the others keep their order, and nobody is forgotten."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        first = await busy(rig, origin)
        waiting = []
        for number in range(6):
            part = request("POST", f"/hold/{number}", "Content-Length: 9") + b"x"
            waiting.append(await rig.send(part if body else request(target=f"/hold/{number}")))
            await rig.waiting(origin, number + 1)
        for gone, left in ((2, 5), (0, 4), (5, 3)):
            if way == "reset":
                waiting[gone].reset()
            else:
                waiting[gone].close()
            if way == "reset" or not body:
                await rig.waiting(origin, left)
        for number, caller in enumerate(waiting):
            if body and number not in (0, 2, 5):
                caller.write(b"x" * 8)
        releasing = asyncio.get_running_loop().create_task(release_all(origin, 100))
        for caller in (first[0], waiting[1], waiting[3], waiting[4]):
            assert (await caller.answer()).status == 200
        releasing.cancel()
        served = [ask.target for ask in origin.asks if not body or len(ask.body) == 9 or ask.target == "/hold/first"]
        assert served == ["/hold/first", "/hold/1", "/hold/3", "/hold/4"]
        assert (await rig.ask()).status == 200

    run(test)


def test_one_that_is_called_and_gone_gives_its_place_on() -> None:
    """Its reset is in the very batch in which a connection comes free for it, before that or behind it."""

    async def silent(ask: Ask) -> None:
        await ask.go.wait()

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/first"] = silent
        rig.swap(service(origin, connections=FULL))
        for turn in range(10):
            first = await rig.send(request(target="/first"))
            ask = (await origin.asked(2 * turn + 1))[-1]
            waiting = [await rig.caller() for _ in range(2)]
            for number, caller in enumerate(waiting):
                caller.write(request(target=f"/{number}"))
                await rig.waiting(origin, number + 1)
            if turn % 2:
                waiting[0].reset_now()
            ask.link.write_now(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            ask.go.set()
            if not turn % 2:
                waiting[0].reset_now()
            assert (await first.answer()).status == (await waiting[1].answer()).status == 200
            assert targets(origin)[-2:] == ["/first", "/1"]
        assert len(origin.links) == 1

    run(test)


@pytest.mark.parametrize("another", [False, True])
def test_an_instance_that_dies_under_those_who_wait(another: bool) -> None:
    """They get the other instance, or an error, but nobody is left hanging."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        instances = [one, two] if another else [one]
        rig.swap(service(*instances, connections=FULL, retries=Retries(on=())))
        first = [await rig.send(request(target="/hold")) for _ in instances]
        await until(lambda: all(len(each.asks) == 1 for each in instances), "both busy")
        waiting = [await rig.send(request(target=f"/{number}")) for number in range(8)]
        await until(lambda: sum(rig.figures(each)["waiting"] for each in instances) == 8, lambda: rig.stats)
        await one.kill()
        if another:
            two.asks[0].go.set()
        answers = await gather(caller.answer() for caller in waiting)
        assert [answer.status for answer in answers] == [200 if another else 502] * 8
        statuses = sorted(answer.status for answer in await gather(caller.answer() for caller in first))
        assert statuses == ([200, 502] if another else [502])
        assert (one.most, two.most) == (1, int(another))

    run(test)


@pytest.mark.parametrize("another", [False, True])
def test_a_unix_socket_that_is_gone_under_those_who_wait(tmp_path: Path, another: bool) -> None:
    """Connects fail at once, with nothing closed that would wake the next one."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(path=str(tmp_path / "one")), await rig.origin(path=str(tmp_path / "two"))
        instances = [one, two] if another else [one]
        rig.swap(service(*instances, connections={**FULL, "idle": 0}))
        first = [await rig.send(request(target="/hold")) for _ in instances]
        await until(lambda: all(len(each.asks) == 1 for each in instances), "both busy")
        waiting = [await rig.send(request("POST", f"/{number}", body=b"x" * number)) for number in range(8)]
        await until(lambda: sum(rig.figures(each)["waiting"] for each in instances) == 8, lambda: rig.stats)
        one.server.close()
        (tmp_path / "one").unlink(missing_ok=True)
        one.asks[0].go.set()
        if another:
            await until(lambda: rig.figures(one)["waiting"] == 0, lambda: rig.stats)
            two.asks[0].go.set()
        answers = await gather(caller.answer() for caller in waiting)
        assert [answer.status for answer in answers] == [200 if another else 502] * 8
        if another:
            bodies = sorted((ask.target, len(ask.body)) for ask in two.asks[1:])
            assert bodies == [(f"/{number}", number) for number in range(8)]
        assert await statuses(first) == [200] * len(first)

    run(test)


# ---- tables that change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [4, 0])
def test_a_higher_maximum_serves_them_at_once(most: int) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        first = await busy(rig, origin)
        waiting = await queue(rig, origin, 5)
        rig.swap(service(origin, connections={"max": most, "queue_timeout": 5.0}))
        served = most or 6
        assert [ask.target for ask in await origin.asked(served)] == [
            "/hold/first",
            *(f"/hold/{number}" for number in range(served - 1)),
        ]
        await turns()
        assert origin.most == served
        assert rig.figures(origin)["waiting"] == 6 - served
        await release_all(origin, 6)
        assert await statuses(first + waiting) == [200] * 6

    run(test)


def test_a_lower_maximum_leaves_them_their_order() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"max": 3, "queue_timeout": 5.0}))
        first = await busy(rig, origin, 3)
        waiting = await queue(rig, origin, 4)
        rig.swap(service(origin, connections=FULL))
        origin.asks[0].go.set()
        origin.asks[1].go.set()
        await until(lambda: len(origin.open) == 1, lambda: len(origin.open))
        assert len(origin.asks) == 3
        origin.most = 0
        await release_all(origin, 7)
        assert await statuses(first + waiting) == [200] * 7
        assert targets(origin)[3:] == [f"/hold/{number}" for number in range(4)]
        assert len(origin.open) == 1

    run(test)


def test_those_who_wait_for_a_retired_instance_are_served_by_it() -> None:
    """One request, one table."""

    async def test(rig: Rig) -> None:
        origin, other = await rig.origin(), await rig.origin()
        rig.swap(service(origin, connections=FULL))
        first = await busy(rig, origin)
        waiting = await queue(rig, origin, 4)
        rig.swap(service(other, connections=FULL))
        assert (await rig.ask()).status == 200
        assert len(other.asks) == 1
        await release_all(origin, 5)
        answers = await gather(caller.answer() for caller in first + waiting)
        assert [(answer.status, answer.get("x-graylb-revision")) for answer in answers] == [(200, "1")] * 5
        assert origin.most == 1
        await until(lambda: not origin.open, "its connections to be closed")

    run(test)


def test_versions_do_not_wait_for_one_another() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        canary = rule("canary", "v2", x_canary="1")
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v1=1), rules=(canary,), connections=FULL))
        first = await busy(rig, one)
        waiting = await queue(rig, one, 3)
        for _ in range(5):
            got = await rig.ask("GET", "/", "X-Canary: 1")
            assert (got.status, got.get("x-graylb-version")) == (200, "v2")
        assert len(one.asks) == 1
        await release_all(one, 4)
        await gather(caller.answer() for caller in first + waiting)

    run(test)


def test_an_engine_that_closes_over_them() -> None:
    """`run` looks at the descriptors behind it."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        await busy(rig, origin)
        waiting = await queue(rig, origin, 5)
        rig.engine.close()
        assert (rig.engine.clients, rig.engine.exchanges) == (0, 0)
        assert rig.stats["upstream_connections"] == rig.figures(origin)["waiting"] == 0
        await until(lambda: all(caller.lost for caller in waiting), "them to be told")

    run(test)


def test_a_drain_serves_them_first() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections=FULL))
        first = await busy(rig, origin)
        waiting = await queue(rig, origin, 3)
        quiet = asyncio.Event()
        rig.engine.drain(quiet.set)
        await release_all(origin, 4)
        for answer in await gather(caller.answer() for caller in first + waiting):
            assert (answer.status, answer.get("connection")) == (200, "close")
        for caller in first + waiting:
            caller.close()
        await asyncio.wait_for(quiet.wait(), 5)

    run(test)
