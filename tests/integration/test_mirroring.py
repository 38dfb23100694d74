"""Copies of requests for another version: whole, marked, bounded, and never to be seen in the answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from graylb import builds
from graylb.model.snapshot import Connections, Service, Subset
from graylb.model.snapshot_faults import Abort, Delay, Fault, Mirror
from tests.integration.engines import Ask, Origin, Rig, gather, request, rule, run, service, split, until
from tests.integration.h2_ends import H2Client, H2Upstream, fields

needs_h2 = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")
V2 = Subset(version="v2")


def mirrored(one: Origin | str, two: Origin | str, *, more: dict[str, Any] | None = None, **settings: Any) -> Service:
    return service((one, "v1"), (two, "v2"), mirror=Mirror(V2, **settings), **(more or {}))


def outcomes(rig: Rig) -> dict[str, int]:
    (found,) = rig.stats["mirrors"]
    return {each["outcome"]: each["count"] for each in found["outcomes"]}


async def came_to(rig: Rig, **counts: int) -> None:
    wanted = {name.replace("_", "-"): count for name, count in counts.items()}
    await until(lambda: outcomes(rig) == wanted, lambda: f"{outcomes(rig)}, expected {wanted}")


CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODIES = [
    (b"", b""),
    (b"Content-Length: 5\r\n", b"hello"),
    (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
    (CHUNKED, b"0\r\n\r\n"),
    (b"Content-Length: 65000\r\n", b"x" * 65_000),
    (CHUNKED, b"".join(b"3e8\r\n" + b"%c" % (65 + n) * 1000 + b"\r\n" for n in range(60)) + b"0\r\n\r\n"),
]  # fmt: skip


async def whole(ask: Ask) -> None:
    """Answers at once, what its path would have it wait for."""
    ask.answer()


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_copy_is_the_request_and_a_mark(number: int) -> None:
    head, body = BODIES[number]

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(mirrored(one, two))
        caller = await rig.caller()
        caller.write(b"POST /a?b=c HTTP/1.1\r\nHost: up\r\nX-Some: thing\r\n" + head + b"\r\n")
        for at in range(0, len(body), 20_000):
            caller.write(body[at : at + 20_000])
        assert (await caller.answer()).get("x-graylb-version") == "v1"
        (asked,), (copied,) = await one.asked(1), await two.asked(1)
        await came_to(rig, answered=1)
        assert (copied.method, copied.target) == (asked.method, asked.target) == ("POST", "/a?b=c")
        assert bytes(copied.body) == bytes(asked.body)
        assert copied.get("x-graylb-mirror") == "1"
        assert [pair for pair in copied.headers if pair[0] != "x-graylb-mirror"] == list(asked.headers)

    run(test)


def test_the_answer_neither_waits_nor_changes_whatever_becomes_of_the_copy() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()

        async def reset(ask: Ask) -> None:
            ask.link.reset()

        async def garbage(ask: Ask) -> None:
            ask.link.write(b"HTTP/1.1 banana\r\n\r\n")

        async def cut(ask: Ask) -> None:
            ask.link.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
            ask.link.close()

        async def hints(ask: Ask) -> None:
            ask.link.write(
                b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            ask.link.write(b"5\r\nhello\r\n0\r\n\r\n")

        async def large(ask: Ask) -> None:
            ask.answer(b"x" * 3_000_000)

        kinds = {"/reset": reset, "/garbage": garbage, "/cut": cut, "/hints": hints, "/large": large}
        two.handlers |= kinds
        one.handlers |= dict.fromkeys(kinds, whole)
        rig.swap(mirrored(one, two))
        caller = await rig.caller()
        for path in kinds:
            answer = await caller.ask("GET", path)
            assert (answer.status, answer.body, answer.get("x-graylb-version")) == (200, b"hello", "v1")
        await came_to(rig, failed=3, answered=2)
        stats = rig.stats
        assert (stats["statuses"]["2xx"], stats["statuses"]["5xx"], stats["requests"]) == (5, 0, 5)
        assert (stats["errors"], stats["aborted"], stats["retries"]) == ({}, 0, 0)
        (seen,) = [each for each in stats["versions"] if each["version"] == "v2"]
        assert sum(seen["statuses"].values()) == 0

    run(test)


def test_a_version_that_is_not_there_or_does_not_answer() -> None:
    async def test(rig: Rig) -> None:
        one, silent = await rig.origin(), await rig.origin()
        rig.swap(mirrored(one, rig.refusing()))
        assert (await rig.ask()).status == 200
        await came_to(rig, failed=1)
        rig.swap(service((one, "v1"), mirror=Mirror(V2)))
        assert (await rig.ask()).status == 200
        await came_to(rig, failed=1, no_instance=1)

        async def nothing(ask: Ask) -> None:
            await ask.go.wait()

        silent.handlers["/"] = nothing
        rig.swap(mirrored(one, silent, timeout=0.1))
        assert (await rig.ask()).status == 200
        await came_to(rig, failed=2, no_instance=1)

    run(test)


def test_bounds_of_number_and_length() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(mirrored(one, two, max=2, body=10))
        one.handlers["/hold"] = whole
        for _ in range(5):
            assert (await rig.ask("GET", "/hold")).status == 200
        await until(lambda: outcomes(rig) == {"busy": 3}, lambda: outcomes(rig))
        for ask in await two.asked(2):
            ask.go.set()
        await came_to(rig, busy=3, answered=2)
        assert (await rig.ask("POST", body=b"x" * 11)).status == 200
        chunked = await rig.send(
            b"POST / HTTP/1.1\r\nHost: up\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n5\r\n12345\r\n0\r\n\r\n"
        )
        assert (await chunked.answer()).status == 200
        assert (await rig.ask("POST", body=b"x" * 10)).status == 200
        await came_to(rig, busy=3, answered=3, too_large=2)
        assert len(two.asks) == 3

    run(test)


def test_a_request_that_never_ends_is_not_copied() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(mirrored(one, two))
        caller = await rig.send(request("POST", body=b"hello")[:-1])
        await one.asked(1)
        caller.reset()
        await came_to(rig, incomplete=1)
        assert two.asks == []

    run(test)


def test_which_requests_are_copied() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rules = (rule("pinned", "v2", x="2"), replace(rule("broken", "v1", x="3"), fault=Fault(None, Abort())))
        rig.swap(mirrored(one, two, methods=("GET",), more={"rules": rules}))
        for lines, method in (((), "POST"), (("x: 2",), "GET"), (("x: 3",), "GET"), (("X-Graylb-Mirror: 1",), "GET")):
            await rig.ask(method, "/", *lines)
        assert outcomes(rig) == {}
        await rig.ask("GET")
        await came_to(rig, answered=1)
        assert [ask.get("x-graylb-mirror") for ask in two.asks] == [None, "1"]

    run(test)


def test_the_share_holds_and_knows_nothing_of_the_split() -> None:
    async def test(rig: Rig) -> None:
        one, two, three = await rig.origin(), await rig.origin(), await rig.origin()
        mirror = Mirror(Subset(version="v3"), 20)
        rig.swap(service((one, "v1"), (two, "v2"), (three, "v3"), split=split(v1=50, v2=50), mirror=mirror))
        caller = await rig.caller()
        seen = [(await caller.ask("GET", f"/{n}")).get("x-graylb-version") for n in range(200)]
        await until(lambda: outcomes(rig).get("answered", 0) == len(three.asks) > 0, lambda: outcomes(rig))
        copied = [seen[int(ask.target[1:])] for ask in three.asks]
        assert abs(len(copied) - 40) <= 3
        assert abs(copied.count("v1") - 20) <= 4

    run(test)


def test_copies_have_connections_of_their_own() -> None:
    """One connection to each instance at most, and v2's is busy with a request of its own: copies go past it."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        more = {"connections": Connections(max=1, queue=0), "rules": (rule("pinned", "v2", x="2"),)}
        rig.swap(mirrored(one, two, more=more))
        held = await rig.send(request("GET", "/hold", "x: 2"))
        await two.asked(1)
        for _ in range(3):
            assert (await rig.ask()).status == 200
        await came_to(rig, answered=3)
        (told,) = [each for each in rig.stats["instances"] if each["version"] == "v2"]
        assert (told["open"], told["in_flight"], told["requests"], told["copies_idle"]) == (1, 1, 1, 1)
        two.asks[0].go.set()
        assert (await held.answer()).status == 200
        assert len(two.links) == 2

    run(test)


def test_copies_under_way_when_tables_change_and_instances_go() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        one.handlers["/hold"] = whole
        rig.swap(mirrored(one, two))
        for _ in range(3):
            await rig.ask("GET", "/hold")
        await two.asked(3)
        rig.swap(service((one, "v1")))
        assert rig.stats["mirrors"] == []
        for ask in two.asks:
            ask.go.set()
        await until(lambda: rig.engine.exchanges == 0, lambda: rig.stats)
        await until(lambda: not two.open, lambda: rig.stats)

    run(test)


def test_an_engine_that_is_closed_drops_its_copies() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        one.handlers["/hold"] = whole
        rig.swap(mirrored(one, two))
        await rig.ask("GET", "/hold")
        await two.asked(1)
        rig.engine.close()
        assert (rig.engine.exchanges, rig.stats["mirrors"][0]["active"]) == (0, 0)

    run(test)


def test_delayed_and_waiting_requests_are_copied_once() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(mirrored(one, two, more={"fault": Fault(Delay(0.1)), "connections": Connections(max=1)}))
        answers = await gather(rig.ask("POST", "/", body=b"y" * 60_000) for _ in range(5))
        assert [answer.status for answer in answers] == [200] * 5
        await came_to(rig, answered=5)
        assert [bytes(ask.body) for ask in two.asks] == [b"y" * 60_000] * 5

    run(test)


@needs_h2
@pytest.mark.parametrize("ways", ["h2 to h1", "h2 to h2", "h1 to h2"])
def test_streams_are_copied(ways: str) -> None:
    client, _, upstream = ways.partition(" to ")

    async def test(rig: Rig) -> None:
        ends = [H2Upstream(), H2Upstream()] if upstream == "h2" else []
        one, two = [each.address for each in ends] if ends else [await rig.origin(), await rig.origin()]
        connections = Connections(protocol="h2" if ends else "http1")
        rig.swap(mirrored(one, two, more={"connections": connections}))

        def talk() -> list[tuple[int, bytes]]:
            with H2Client(rig.address) as made:
                asked = [made.ask(fields(("x-n", "1"), method="POST"), b"z" * 50_000), made.ask(fields())]
                return [(answer.status, answer.body) for answer in asked]

        try:
            if client == "h2":
                found = await asyncio.to_thread(talk)
            else:
                answers = [await rig.ask("POST", "/", "x-n: 1", body=b"z" * 50_000), await rig.ask()]
                found = [(answer.status, answer.body) for answer in answers]
            assert [status for status, _ in found] == [200, 200]
            await came_to(rig, answered=2)
            if ends:
                mine, copies = ([(each.body, each.all("x-graylb-mirror")) for each in end.requests] for end in ends)
            else:
                assert isinstance(one, Origin)
                assert isinstance(two, Origin)
                mine, copies = (
                    [(bytes(ask.body), [v for k, v in ask.headers if k == "x-graylb-mirror"]) for ask in origin.asks]
                    for origin in (one, two)
                )
            assert [body for body, _ in mine] == [body for body, _ in copies] == [b"z" * 50_000, b""]
            assert [mark for _, mark in copies] == [["1"], ["1"]]
            assert [mark for _, mark in mine] == [[], []]
        finally:
            for each in ends:
                each.close()

    run(test)


@needs_h2
def test_calls_are_copied_and_silent_or_resetting_instances_change_nothing() -> None:
    async def test(rig: Rig) -> None:
        one, two = H2Upstream(), H2Upstream()
        rig.swap(mirrored(one.address, two.address, timeout=0.3))

        def talk() -> list[str | None]:
            call = (("content-type", "application/grpc"), ("te", "trailers"))
            with H2Client(rig.address) as client:
                heads = [fields(*call, method="POST", path=path) for path in ("/trailers", "/", "/hints")]
                return [client.ask(head, b"\0\0\0\0\0").get("x-graylb-version") for head in heads]

        try:
            assert await asyncio.to_thread(talk) == ["v1"] * 3
            await came_to(rig, answered=3)
            assert [each.body for each in two.requests] == [b"\0\0\0\0\0"] * 3
            rig.swap(mirrored(one.address, rig.refusing()))
            assert await asyncio.to_thread(talk) == ["v1"] * 3
            await came_to(rig, answered=3, failed=3)
        finally:
            one.close()
            two.close()

    run(test)
