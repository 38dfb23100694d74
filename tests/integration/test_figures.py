"""What the engine counts is what was sent: statuses, bytes, times, retries, errors, by version and by instance."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graylb import _slab
from tests.integration.client import chunked
from tests.integration.engines import Ask, Rig, gather, networks, request, rule, run, service, split, until

EMPTY = {f"{kind}xx": 0 for kind in range(1, 6)}


@given(st.one_of(st.integers(0, 1 << 35), st.integers(0, 5000), st.integers(0, 35).map(lambda n: 1 << n)))
@example(15)
@example(16)
@example((1 << 32) - 1)
def test_a_time_is_known_within_its_bucket(us: int) -> None:
    """Exact below 16 us, else the bucket ends at most a sixteenth above it; buckets are in order and touch."""
    us = min(us, (1 << 35) - 1)
    bucket = _slab.bucket_of(us)
    end = _slab.bucket_end(bucket)
    assert end > us
    assert end == us + 1 if us < 16 else end <= us * 17 / 16
    assert bucket == 0 or _slab.bucket_end(bucket - 1) <= us
    assert _slab.bucket_of(end) == bucket + 1 or end == 1 << 35


@given(st.integers(1 << 35, (1 << 64) - 1))
def test_times_beyond_all_bounds_are_in_the_last_bucket(us: int) -> None:
    assert _slab.bucket_of(us) == _slab.bucket_of((1 << 35) - 1)


def version(rig: Rig, name: str, of: str = "up") -> dict[str, Any]:
    (found,) = [each for each in rig.stats["versions"] if (each["service"], each["version"]) == (of, name)]
    return dict(found)


async def scripted(ask: Ask) -> None:
    """Status, length and framing of the answer are in the target: /x?STATUS,LENGTH,FRAMING."""
    await ask.read_body()
    status, length, framing = ask.target.partition("?")[2].split(",")
    body = b"x" * int(length)
    if framing == "length":
        ask.answer(body, status=int(status))
        return
    head = f"HTTP/1.1 {status} Status\r\n".encode()
    if framing == "chunked":
        pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
        ask.link.write(head + b"transfer-encoding: chunked\r\n\r\n" + chunked(pieces))
    else:
        ask.link.write(head + b"\r\n" + body)
        ask.link.close()


def test_statuses_bytes_and_times_are_those_of_what_was_sent() -> None:
    """Bodies of both directions, without their heads and chunk framing, whatever the framing is."""

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        one.handlers["/x"] = two.handlers["/x"] = scripted
        canary = rule("canary", "v2", x_canary="1")
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v1=1), rules=(canary,)))
        choose = random.Random(7)
        wanted = {name: {"statuses": Counter[str](), "in": 0, "out": 0, "count": 0} for name in ("v1", "v2")}
        for number in range(120):
            name = choose.choice(["v1", "v2"])
            status = choose.choice([200, 200, 201, 301, 404, 500, 503, 599])
            length = choose.choice([0, 1, 100, 5000, 60_000, 300_000])
            framing = choose.choice(["length", "chunked", "close"])
            sent = choose.choice([0, 10, 20_000])
            lines = ["X-Canary: 1"] if name == "v2" else []
            if number % 2:
                got = await rig.ask("POST", f"/x?{status},{length},{framing}", *lines, body=b"b" * sent)
            else:
                caller = await rig.send(
                    request("POST", f"/x?{status},{length},{framing}", *lines, "Transfer-Encoding: chunked")
                    + (chunked([b"b" * sent]) if sent else b"0\r\n\r\n")
                )
                got = await caller.answer()
            assert (got.status, len(got.body)) == (status, length)
            of: Any = wanted[name]
            of["statuses"][f"{status // 100}xx"] += 1
            of["in"] += sent
            of["out"] += length
            of["count"] += 1
        for name, of in wanted.items():
            found = version(rig, name)
            assert found["statuses"] == {**EMPTY, **of["statuses"]}
            assert (found["bytes_in"], found["bytes_out"]) == (of["in"], of["out"])
            assert sum(count for _, count in found["times"]) == of["count"]
        assert rig.stats["requests"] == 120
        total = Counter[str]()
        for of in wanted.values():
            total.update(of["statuses"])
        assert rig.stats["statuses"] == {**EMPTY, **total}
        assert rig.stats["errors"] == {}

    run(test)


def test_times_tell_how_long_it_took() -> None:
    """From the head to the end of the answer; which includes the wait for a connection."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"max": 1, "queue_timeout": 5.0}))
        clock = asyncio.get_running_loop().time
        begin = clock()
        first, second = await rig.send(request(target="/hold")), await rig.send(request(target="/hold"))
        await rig.waiting(origin, 1)
        await asyncio.sleep(0.2)
        least = 0.2
        for number in range(2):
            (await origin.asked(number + 1))[number].go.set()
        for caller in (first, second):
            assert (await caller.answer()).status == 200
        most = clock() - begin
        times = version(rig, "v1")["times"]
        assert sum(count for _, count in times) == 2
        for end, _ in times:
            assert least * 1e6 * 0.9 < end < most * 1e6 * 17 / 16 + 1

    run(test)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_answers_without_a_body(method: str) -> None:
    async def quiet(ask: Ask) -> None:
        ask.link.write(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n")

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/quiet"] = quiet
        rig.swap(service(origin))
        caller = await rig.caller()
        for target, status in (("/quiet", 304), ("/", 200)):
            assert (await caller.ask(method, target)).status == status
        found = version(rig, "v1")
        assert found["statuses"] == {**EMPTY, "2xx": 1, "3xx": 1}
        assert found["bytes_out"] == (5 if method == "GET" else 0)

    run(test)


def test_interim_answers_and_redirects_are_no_answers_of_a_version() -> None:
    async def early(ask: Ask) -> None:
        ask.link.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3)
        ask.answer()

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/early"] = early
        rig.swap(service(origin))
        assert (await rig.ask("GET", "/early")).status == 200
        assert version(rig, "v1")["statuses"] == {**EMPTY, "2xx": 1}
        assert rig.stats["statuses"] == {**EMPTY, "2xx": 1}

    run(test)


def test_errors_of_our_own_are_counted_once_and_are_no_answers_of_a_version() -> None:
    async def cut(ask: Ask) -> None:
        ask.link.close()

    async def bad(ask: Ask) -> None:
        ask.link.write(b"HTTP/1.1 banana\r\n\r\n")

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers |= {"/cut": cut, "/bad": bad}
        rig.swap(service(origin), service(rig.refusing(), name="down"), service(name="empty"))
        for _ in range(3):
            for host, target, status in (
                ("up", "/cut", 502),
                ("up", "/bad", 502),
                ("down", "/", 502),
                ("empty", "/", 503),
            ):
                assert (await rig.ask("POST", target, host=host, body=b"x")).status == status
            caller = await rig.send(b"GET / HTTP/1.1\r\n\r\n")
            assert (await caller.answer()).status == 400
        stats = rig.stats
        assert stats["errors"] == {
            "upstream-reset": 3,
            "upstream-invalid": 3,
            "connect-failed": 3,
            "no-instance": 3,
            "bad-host": 3,
        }
        assert stats["statuses"] == {**EMPTY, "4xx": 3, "5xx": 12}
        assert version(rig, "v1")["statuses"] == EMPTY
        assert rig.figures(origin)["failures"] == 6
        assert rig.figures(origin)["requests"] == 6

    run(test)


def test_attempts_are_counted_where_they_were_made() -> None:
    """requests = attempts on an instance, failures = those that failed there, retries = attempts beyond the first."""

    async def test(rig: Rig) -> None:
        origin, down = await rig.origin(), rig.refusing()
        rig.swap(service(origin, down))
        for _ in range(40):
            assert (await rig.ask()).status == 200
        good, bad = rig.figures(origin), rig.figures(down)
        assert good["requests"] == 40
        assert good["failures"] == 0
        assert bad["requests"] == bad["failures"] == bad["connects"] == rig.stats["retries"] > 0
        assert rig.stats["requests"] == 40
        assert rig.stats["errors"] == {}
        assert version(rig, "v1")["statuses"] == {**EMPTY, "2xx": 40}

    run(test)


def test_a_stale_connection_is_one_retry() -> None:
    async def once(ask: Ask) -> None:
        ask.answer()
        await ask.link.until(b"\r\n\r\n")
        ask.link.close()
        raise EOFError

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/once"] = once
        rig.swap(service(origin))
        caller = await rig.caller()
        for _ in range(10):
            assert (await caller.ask("GET", "/once")).status == 200
            assert (await caller.ask("GET", "/")).status == 200
            (link,) = origin.open
            link.close()
            await until(lambda: rig.figures(origin)["idle"] == 0, "it to be gone")
        assert rig.stats["retries"] == 10
        assert rig.stats["errors"] == {}

    run(test)


def test_an_answer_that_was_cut_short_counts_what_went_out() -> None:
    async def half(ask: Ask) -> None:
        ask.link.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 300)
        ask.link.close()

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/half"] = half
        rig.swap(service(origin))
        caller = await rig.send(request(target="/half"))
        assert (await caller.ended()).endswith(b"x" * 300)
        await until(lambda: rig.engine.exchanges == 0, lambda: rig.stats)
        found = version(rig, "v1")
        assert (found["statuses"]["2xx"], found["bytes_out"]) == (1, 300)
        assert rig.stats["aborted"] == 1

    run(test)


def test_a_fallback_counts_for_the_version_that_answered() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service((origin, "v1"), split=split(v1=1, v2=1)))
        for _ in range(10):
            assert (await rig.ask()).status == 200
        assert version(rig, "v1")["statuses"]["2xx"] == 10
        assert rig.stats["fallbacks"] == [{"service": "up", "wanted": "v2", "got": "v1", "count": 5}]

    run(test)


def test_figures_outlive_tables_and_end_with_their_service() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v2=1)))
        await gather(rig.ask("POST", body=b"12345") for _ in range(7))
        # the instance goes and comes back, its version is the same
        rig.swap(service((one, "v1"), split=split(v1=1)))
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v2=1), rules=(networks("none", "v1", "::2/128"),)))
        await gather(rig.ask("POST", body=b"12345") for _ in range(3))
        assert (version(rig, "v2")["statuses"]["2xx"], version(rig, "v2")["bytes_in"]) == (10, 50)
        rig.swap(service("127.0.0.1:1", name="other"))
        assert {each["service"] for each in rig.stats["versions"]} == {"other"}
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v2=1)))
        assert version(rig, "v2")["statuses"] == EMPTY

    run(test)


def test_a_request_under_way_is_counted_although_its_instance_is_gone() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v2=1)))
        caller = await rig.send(request(target="/hold"))
        await two.asked(1)
        rig.swap(service((one, "v1")))
        two.asks[0].go.set()
        assert (await caller.answer()).status == 200
        assert version(rig, "v2")["statuses"]["2xx"] == 1

    run(test)
