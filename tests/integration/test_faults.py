"""Faults that are injected: delays that hold nothing but the request, answers in place of an instance's, shares."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from graylb import builds
from graylb.model.snapshot import Limits
from graylb.model.snapshot_faults import Abort, Delay, Fault
from tests.integration.engines import Rig, gather, request, rule, run, service, statuses, until
from tests.integration.h2_ends import Answer, H2Client, fields

LONG = 30.0
"""Seconds that no test waits for."""
needs_h2 = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")


def injected(rig: Rig, rule: str = "") -> dict[str, Any]:
    (found,) = [each for each in rig.stats["faults"] if each["rule"] == rule]
    return dict(found)


def abort(status: int = 503, percent: float = 100.0, grpc: str = "unavailable") -> Fault:
    return Fault(None, Abort(status, grpc, percent))


def delay(seconds: float, percent: float = 100.0, most: int = 1000) -> Fault:
    return Fault(Delay(seconds, percent, most))


def test_an_abort_answers_in_place_of_the_instance_and_keeps_the_connection() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=abort(418)))
        caller = await rig.caller()
        for lines, body in (((), None), (("Accept: application/json",), b"x" * 100)):
            answer = await caller.ask("POST", "/", *lines, body=body or b"")
            assert (answer.status, answer.get("x-graylb-error")) == (418, "injected-fault")
            assert answer.get("x-graylb-service") == "up"
            assert (b'"status":418' in answer.body) == bool(lines)
        assert origin.asks == []
        assert injected(rig)["abort"] == 2
        assert (rig.stats["errors"]["injected-fault"], rig.stats["statuses"]["4xx"]) == (2, 2)

    run(test)


def test_a_delayed_request_holds_no_connection_and_arrives_whole() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=delay(0.25)))
        caller = await rig.caller()
        began = time.monotonic()
        caller.write(request("POST", "/echo", "Expect: 100-continue", body=b"a" * 200_000))
        await until(lambda: injected(rig)["waiting"] == 1, lambda: rig.stats)
        assert origin.links == []
        assert (await caller.answer()).status == 200
        assert time.monotonic() - began >= 0.25
        assert bytes(origin.asks[0].body) == b"a" * 200_000
        assert injected(rig)["waiting"] == 0

    run(test)


def test_a_delay_leads_to_the_abort() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=Fault(Delay(0.2), Abort(500))))
        began = time.monotonic()
        assert (await rig.ask()).status == 500
        assert time.monotonic() - began >= 0.2
        told = injected(rig)
        assert (told["delay"], told["abort"], told["waiting"], origin.asks) == (1, 1, 0, [])

    run(test)


def test_a_client_that_goes_ends_its_delay() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=delay(LONG)))
        gone = [await rig.send(request()), await rig.send(request("POST", body=b"x")[:-1])]
        half = await rig.send(request())
        await until(lambda: injected(rig)["waiting"] == 3, lambda: rig.stats)
        for each in gone:
            each.reset()
        half.transport.write_eof()
        await until(lambda: injected(rig)["waiting"] == 0, lambda: rig.stats)
        assert origin.asks == []

    run(test)


def test_more_than_may_wait_go_on_at_once() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=delay(LONG, most=2)))
        waiting = [await rig.send(request()) for _ in range(2)]
        await until(lambda: injected(rig)["waiting"] == 2, lambda: rig.stats)
        assert (await rig.ask()).status == 200
        assert (injected(rig)["overflow"], injected(rig)["delay"]) == (1, 2)
        for each in waiting:
            each.close()

    run(test)


def test_a_delayed_request_keeps_its_table() -> None:
    async def test(rig: Rig) -> None:
        old, new = await rig.origin(), await rig.origin()
        rig.swap(service(old, fault=delay(0.3)))
        caller = await rig.send(request())
        await until(lambda: injected(rig)["waiting"] == 1, lambda: rig.stats)
        rig.swap(service(new))
        assert (await rig.ask()).status == 200
        answer = await caller.answer()
        assert (answer.status, answer.get("x-graylb-revision")) == (200, "1")
        assert (len(old.asks), len(new.asks)) == (1, 1)

    run(test)


def test_a_delayed_request_to_a_service_that_is_no_more() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=delay(0.2)))
        caller = await rig.send(request())
        await until(lambda: injected(rig)["waiting"] == 1, lambda: rig.stats)
        rig.swap(service(origin, name="other"))
        assert (await caller.answer()).status == 200

    run(test)


def test_a_rule_has_faults_of_its_own_and_others_the_services() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rules = (rule("first", "v1", x="1"), replace(rule("second", "v1", x="2"), fault=abort(501)))
        rig.swap(service(origin, rules=rules, fault=abort(502)))
        callers = [await rig.caller() for _ in range(3)]
        for number, caller in enumerate(callers):
            caller.write(request("GET", "/", f"x: {number}"))
        assert await statuses(callers) == [502, 502, 501]
        assert (injected(rig)["abort"], injected(rig, "second")["abort"]) == (2, 1)
        rig.swap(service(origin, rules=rules[:1]))
        assert (await rig.ask()).status == 200
        assert rig.stats["faults"] == []

    run(test)


def test_the_share_holds_on_the_wire_and_through_changes() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        caller = await rig.caller()
        seen = []
        for number in range(4):
            rig.swap(service(origin, fault=abort(503, 10)), headers=100 + number)
            seen += [(await caller.ask()).status for _ in range(25)]
        assert abs(seen.count(503) - 10) <= 2
        assert set(seen) == {200, 503}

    run(test)


def test_draining_and_closing_end_delays() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=delay(0.2)))
        caller = await rig.send(request())
        await until(lambda: injected(rig)["waiting"] == 1, lambda: rig.stats)
        rig.engine.drain(lambda: None)
        answer = await caller.answer()
        assert (answer.status, answer.get("connection")) == (200, "close")
        await caller.ended()

    run(test)


def test_an_engine_that_is_closed_leaves_no_delay_behind() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, fault=delay(LONG)))
        await rig.send(request())
        await until(lambda: injected(rig)["waiting"] == 1, lambda: rig.stats)
        rig.engine.close()
        assert (injected(rig)["waiting"], rig.engine.exchanges) == (0, 0)

    run(test)


@needs_h2
def test_streams_are_delayed_and_calls_end_with_a_status() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rules = (replace(rule("call", "v1", x="call"), fault=abort(500, grpc="resource_exhausted")),)
        rig.swap(service(origin, rules=rules, fault=delay(0.2)))

        def talk() -> tuple[list[Answer], float]:
            with H2Client(rig.address) as client:
                began = time.monotonic()
                posted = client.begin(fields(method="POST"))
                client.send(posted, b"y" * 50_000, end=True)
                call = client.begin(
                    fields(("content-type", "application/grpc"), ("te", "trailers"), ("x", "call"), method="POST")
                )
                plain = client.begin(fields(("x", "call")), end=True)
                return [client.answer(each) for each in (call, plain, posted)], time.monotonic() - began

        (call, plain, posted), took = await asyncio.to_thread(talk)
        assert (call.status, call.get("grpc-status"), call.get("x-graylb-error")) == (200, "8", "injected-fault")
        assert (call.ended, call.body, plain.status) == (True, b"", 500)
        assert (posted.status, posted.body, bytes(origin.asks[0].body)) == (200, b"hello", b"y" * 50_000)
        assert took >= 0.2

    run(test)


@needs_h2
def test_a_stream_that_is_reset_ends_its_delay() -> None:
    async def test(rig: Rig) -> None:
        rig.swap(service(await rig.origin(), fault=delay(LONG)))
        client = await asyncio.to_thread(H2Client, rig.address)
        try:
            stream = client.begin(fields(), end=True)
            await until(lambda: injected(rig)["waiting"] == 1, lambda: rig.stats)
            client.h2.reset_stream(stream, 8)
            client.flush()
            await until(lambda: injected(rig)["waiting"] == 0, lambda: rig.stats)
        finally:
            client.sock.close()

    run(test)


def test_many_delays_at_once() -> None:
    """Each its own time; a table's limit on client connections is not theirs."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rules = tuple(replace(rule(f"r{n}", "v1", x=str(n)), fault=delay(0.05 * (n + 1))) for n in range(4))
        rig.swap(service(origin, rules=rules))
        asked = [rig.ask("GET", "/", f"x: {n % 4}") for n in range(80)]
        assert [answer.status for answer in await gather(asked)] == [200] * 80
        assert [each["delay"] for each in rig.stats["faults"]] == [20] * 4

    run(test, limits=Limits(client_connections=100))
