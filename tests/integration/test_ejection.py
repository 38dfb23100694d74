"""Ejection and slow start on real sockets: who gets requests, and what that never does to shares of versions."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from graylb import builds
from graylb.model.snapshot import Health, Service
from graylb.model.snapshot_health import Latency, Outliers, SlowStart
from tests.integration import proxies
from tests.integration.engines import TIMEOUTS, Ask, Handler, Origin, Rig, run, service, split, until
from tests.integration.grpcs import Channel, servers
from tests.integration.tally import statuses

LONG = 3600.0


def health(panic: int = 50, **outliers: object) -> Health:
    made = replace(Outliers(base_ejection_time=LONG, max_ejection_time=LONG), **outliers)  # type: ignore[arg-type]
    return Health(panic=panic, outliers=made)


def says(status: int) -> Handler:
    async def handle(ask: Ask) -> None:
        await ask.read_body()
        ask.answer(status=status)

    return handle


async def closes(ask: Ask) -> None:
    ask.link.end_now()


async def holds(ask: Ask) -> None:
    await ask.go.wait()


def ejected(rig: Rig) -> dict[str, str]:
    """Address to reason."""
    return {each["address"]: each["reason"] for each in rig.stats["ejected"]}


async def failing(rig: Rig, most: int = 400) -> Counter[int]:
    """Requests until somebody is ejected: what they were answered with."""
    caller = await rig.caller()
    found: Counter[int] = Counter()
    while not ejected(rig):
        found[(await caller.ask()).status] += 1
        assert found.total() < most, rig.stats
    return found


def test_five_errors_eject_an_instance_its_version_keeps_its_share_and_a_new_table_its_ejection() -> None:
    async def test(rig: Rig) -> None:
        bad, good, other = [await rig.origin() for _ in range(3)]
        bad.handlers["/"] = says(500)
        watched = {"split": split(v1=60, v2=40), "health": health(consecutive_5xx=5)}
        rig.swap(service(bad, good, (other, "v2"), **watched))
        assert (await failing(rig))[500] == 5
        assert ejected(rig) == {bad.address: "5xx"}
        asked = len(bad.asks)
        found = await statuses(rig, 200)
        assert set(found) == {(200, "v1"), (200, "v2")}
        assert abs(found[200, "v2"] - 80) <= 2
        rig.swap(service(bad, good, (other, "v2"), sticky=(), policy="least_request", **watched))
        assert set(await statuses(rig, 50)) == {(200, "v1"), (200, "v2")}
        assert len(bad.asks) == asked
        # gone and here again it is a new one
        rig.swap(service(good, (other, "v2"), **watched))
        bad.handlers.clear()
        rig.swap(service(bad, good, (other, "v2"), **watched))
        assert ejected(rig) == {}
        await statuses(rig, 50)
        assert len(bad.asks) > asked

    run(test)


def test_an_app_that_answers_500_is_not_ejected_unless_that_is_asked_for() -> None:
    async def test(rig: Rig) -> None:
        bad, good = [await rig.origin() for _ in range(2)]
        bad.handlers["/"] = says(500)
        rig.swap(service(bad, good, health=health()))
        assert (await statuses(rig, 60))[500, "v1"] > 15
        assert ejected(rig) == {}

    run(test)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_gateway_errors_eject_by_default_and_time_brings_it_back(status: int) -> None:
    async def test(rig: Rig) -> None:
        bad, good = [await rig.origin() for _ in range(2)]
        bad.handlers["/"] = says(status)
        rig.swap(service(bad, good, health=health(base_ejection_time=0.3)))
        assert (await failing(rig))[status] == 5
        bad.handlers.clear()
        await until(lambda: not ejected(rig), "its time to be over")
        asked = len(bad.asks)
        assert await statuses(rig, 40) == {(200, "v1"): 40}
        assert len(bad.asks) > asked
        assert rig.stats["outliers"] == [
            {"service": "up", "version": "v1", "spared": 0, "ejections": {"gateway-failures": 1}}
        ]

    run(test)


def test_one_that_cannot_be_reached_is_tried_five_times() -> None:
    async def test(rig: Rig) -> None:
        good, nobody = await rig.origin(), rig.refusing()
        rig.swap(service(good, nobody, health=health()))
        assert await statuses(rig, 100) == {(200, "v1"): 100}
        assert ejected(rig) == {nobody: "gateway-failures"}
        assert rig.figures(nobody)["failures"] == 5

    run(test)


def test_one_that_closes_or_does_not_answer_in_time_is_ejected() -> None:
    async def test(rig: Rig) -> None:
        closing, hanging, good = [await rig.origin() for _ in range(3)]
        closing.handlers["/"] = closes
        hanging.handlers["/"] = holds
        rig.swap(
            service(closing, good, health=health()),
            service(hanging, good, name="slow", health=health(), timeouts=replace(TIMEOUTS, response=0.1)),
        )
        caller = await rig.caller()
        while len(ejected(rig)) < 2:
            await caller.ask()
            await caller.ask(host="slow")
            assert rig.stats["requests"] < 400
        whys = {each["address"]: each["why"] for each in rig.stats["ejected"]}
        assert whys == {
            closing.address: "5 gateway failures in a row, upstream-reset the last",
            hanging.address: "5 gateway failures in a row, response-timeout the last",
        }

    run(test)


def test_a_pooled_connection_that_the_instance_closes_is_no_failure() -> None:
    async def test(rig: Rig) -> None:
        one, two = [await rig.origin() for _ in range(2)]
        rig.swap(service(one, two, health=health(consecutive_gateway_failures=1)))
        for _ in range(10):
            assert await statuses(rig, 4) == {(200, "v1"): 4}
            for link in [*one.open, *two.open]:
                link.end_now()
        assert ejected(rig) == {}

    run(test)


@pytest.mark.parametrize(
    ("fallback", "wanted"), [("strict", (503, None)), ("stable", (200, "v1")), ("any", (200, "v1"))]
)
def test_a_version_that_is_ejected_as_a_whole_falls_down_the_ladder_and_that_is_counted(
    fallback: str, wanted: tuple[int, str | None]
) -> None:
    async def test(rig: Rig) -> None:
        good, bad = [await rig.origin() for _ in range(2)]
        bad.handlers["/"] = says(503)
        all_ = health(max_ejection_percent=100)
        rig.swap(service(good, (bad, "v2"), split=split(v2=100), fallback=fallback, health=all_))
        assert await failing(rig) == {503: 5}
        assert await statuses(rig, 20) == {wanted: 20}
        assert len(bad.asks) == 5
        got = {"service": "up", "wanted": "v2", "got": wanted[1], "count": 20}
        assert rig.stats["fallbacks"] == [got]

    run(test)


def test_the_only_instance_of_a_version_stays_unless_all_may_go() -> None:
    async def test(rig: Rig) -> None:
        good, bad = [await rig.origin() for _ in range(2)]
        bad.handlers["/"] = says(503)
        rig.swap(service(good, (bad, "v2"), split=split(v2=100), health=health()))
        assert await statuses(rig, 30) == {(503, "v2"): 30}
        assert rig.stats["outliers"][0]["spared"] == 26

    run(test)


def test_no_black_hole_below_the_panic_threshold_all_get_requests() -> None:
    async def test(rig: Rig) -> None:
        four = [await rig.origin() for _ in range(4)]
        bad = health(max_ejection_percent=100, consecutive_gateway_failures=1)
        rig.swap(service(*four, health=bad))
        for each in four[:3]:
            each.handlers["/"] = says(503)
        await statuses(rig, 60)  # the third makes it one of four that is not out
        assert len(ejected(rig)) == 3
        for each in four:
            each.handlers.clear()
        before = [len(each.asks) for each in four]
        assert await statuses(rig, 80) == {(200, "v1"): 80}
        assert all(len(each.asks) > known for each, known in zip(four, before, strict=True))
        assert rig.stats["panics"]["up"] > 20

    run(test)


def test_the_slow_one_is_ejected_when_its_interval_ends() -> None:
    async def test(rig: Rig) -> None:
        async def late(ask: Ask) -> None:
            await asyncio.sleep(0.15)
            ask.answer()

        slow, *others = [await rig.origin() for _ in range(3)]
        slow.handlers["/"] = late
        judged = health(latency=Latency(instances=3, requests=2, factor=3.0), interval=1.5)
        rig.swap(service(slow, *others, health=judged))
        callers = [await rig.caller() for _ in range(4)]
        while not ejected(rig):
            for caller in callers:
                caller.write(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            for caller in callers:
                assert (await caller.answer()).status == 200
        assert ejected(rig) == {slow.address: "latency"}

    run(test)


def test_after_a_kill_no_get_fails_and_the_dead_are_left_alone() -> None:
    async def test(rig: Rig) -> None:
        victim, other = [await rig.origin() for _ in range(2)]
        rig.swap(service(victim, other, health=health()))
        callers = [await rig.caller() for _ in range(8)]

        async def round_() -> None:
            for caller in callers:
                caller.write(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            for caller in callers:
                assert (await caller.answer()).status == 200

        for _ in range(5):
            await round_()
        await victim.kill()
        for _ in range(20):
            await round_()
        assert ejected(rig) == {victim.address: "gateway-failures"}
        known = rig.stats["retries"]
        for _ in range(20):
            await round_()
        assert rig.stats["retries"] == known

    run(test)


def slowly(*origins: Origin | tuple[Origin, str], **more: object) -> Service:
    return service(*origins, slow_start=SlowStart(window=LONG), **more)


def test_a_new_instance_gets_a_part_of_its_weight_and_its_version_all_of_its_share() -> None:
    async def test(rig: Rig) -> None:
        one, two, other = [await rig.origin() for _ in range(3)]
        shares = split(v1=50, v2=50)
        rig.swap(slowly(one, split=shares))
        await statuses(rig, 4)
        assert not rig.figures(one)["warming"]  # it was there when the worker began
        rig.swap(slowly(one, two, (other, "v2"), split=shares))
        assert rig.figures(two)["warming"]
        before = len(one.asks)
        found = await statuses(rig, 440)
        assert abs(found[200, "v2"] - 220) <= 2  # alone in its version it gets all that is the version's
        assert 5 <= len(two.asks) <= 40  # 20, a tenth of its weight
        assert len(one.asks) - before + len(two.asks) == found[200, "v1"]
        rig.swap(service(one, two, (other, "v2"), split=shares))  # switched off
        await until(lambda: not rig.figures(two)["warming"], "slow start to end")

    run(test)


def test_one_that_is_back_starts_slowly() -> None:
    async def test(rig: Rig) -> None:
        bad, good = [await rig.origin() for _ in range(2)]
        bad.handlers["/"] = says(503)
        rig.swap(slowly(bad, good, health=health(base_ejection_time=0.2)))
        await failing(rig)
        await until(lambda: not ejected(rig), "its time to be over")
        assert rig.figures(bad)["warming"]
        rig.engine.set_down([("up", good.address)])
        rig.engine.set_down([])
        assert rig.figures(good)["warming"]

    run(test)


@pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")
def test_a_grpc_status_counts_as_the_http_status_that_it_stands_for(tmp_path: Path) -> None:
    with servers("good", "bad") as (good, bad):
        doc = proxies.document({"echo": proxies.service(good.address, bad.address)})
        with proxies.running(tmp_path, doc, "--workers", "1") as proxy, Channel(proxy.address) as channel:
            got: Counter[str] = Counter()
            for _ in range(60):
                try:
                    got[channel.unary("Pick")[0].decode()] += 1
                except grpc.RpcError as error:
                    got[error.code().name] += 1
            assert got == {"good": 55, "UNAVAILABLE": 5}
            for _ in range(12):  # what stands for no 5xx says nothing against it
                assert channel.failure("Fail", b"NOT_FOUND").code() is grpc.StatusCode.NOT_FOUND
            # what everybody can see of it
            (one,) = proxies.until(lambda: proxy.status()["ejected"], "the worker to tell of it")
            assert (one["address"], one["reason"], one["times"]) == (bad.address, "gateway-failures", 1)
            instances = {each["address"]: each["ejected"] for each in proxy.call("/services/echo")["instances"]}
            assert instances == {
                good.address: [],
                bad.address: [{key: one[key] for key in ("worker", "reason", "why", "times", "until")}],
            }
            proxy.wait_for_log(f"worker 0 ejects instance {bad.address} of echo (v1) for 30 s: ")
