"""Pools of connections to instances: reuse, maxima, time, warm-up, what poisons them; names resolved anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from graylb.model.snapshot import Instance
from tests.integration.engines import Ask, Origin, Rig, gather, request, run, service, turns, until

CLOSE = "Connection: close"


async def burst(rig: Rig, origin: Origin, count: int) -> None:
    """Makes the engine open `count` connections, all pooled afterwards."""
    before = len(origin.asks)
    callers = [await rig.caller() for _ in range(count)]
    for caller in callers:
        caller.write(request(target="/hold"))
    for ask in (await origin.asked(before + count))[before:]:
        ask.go.set()
    await gather(caller.answer() for caller in callers)
    for caller in callers:
        caller.close()


def test_the_last_one_used_is_used_first() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        one, two, three = [await rig.send(request(target="/hold")) for _ in range(3)]
        asks = await origin.asked(3)
        links = [ask.link for ask in asks]
        for turn in (1, 0, 2):
            asks[turn].go.set()
            await [one, two, three][turn].answer()
        for _ in range(5):
            assert (await rig.ask()).status == 200
            assert origin.asks[-1].link is links[2]
        await rig.send(request(target="/hold"))
        assert (await origin.asked(9))[-1].link is links[2]
        await rig.send(request(target="/hold"))
        assert (await origin.asked(10))[-1].link is links[0]
        for ask in origin.asks:
            ask.go.set()
        assert len(origin.links) == 3

    run(test)


@pytest.mark.parametrize("idle", [0, 1, 3])
def test_no_more_than_the_idle_maximum_are_kept(idle: int) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"idle": idle}))
        await burst(rig, origin, 6)
        await until(lambda: len(origin.open) == idle, lambda: len(origin.open))
        assert rig.figures(origin)["idle"] == idle

    run(test)


def test_unused_ones_go_when_their_time_is_over() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"idle_timeout": 0.2}))
        await burst(rig, origin, 4)
        assert rig.figures(origin)["idle"] == 4
        await until(lambda: not origin.open, lambda: len(origin.open))
        assert rig.figures(origin)["open"] == 0
        assert (await rig.ask()).status == 200, "the next request opens one anew"

    run(test)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nevil", False),
    ],
)
def test_which_answers_leave_a_connection_to_be_used_again(answer: bytes, kept: bool) -> None:
    async def speak(ask: Ask) -> None:
        ask.link.write(answer)

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/"] = speak
        rig.swap(service(origin))
        for count in range(1, 4):
            got = await rig.ask()
            assert (got.status, got.body) == (200, b"ok")
            assert len(origin.links) == (1 if kept else count)
        assert len(origin.open) == int(kept)

    run(test)


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_an_answer_that_its_end_delimits(version: bytes) -> None:
    async def speak(ask: Ask) -> None:
        ask.link.write(version + b" 200 OK\r\n\r\n" + b"x" * 100_000)
        ask.link.close()

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/"] = speak
        rig.swap(service(origin))
        caller = await rig.caller()
        for _ in range(3):
            got = await caller.ask()
            assert (got.status, len(got.body)) == (200, 100_000)
        assert len(origin.links) == 3

    run(test)


@pytest.mark.parametrize("late", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"\r\n"])
def test_bytes_that_nobody_asked_for_end_a_pooled_connection(late: bytes) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        assert (await rig.ask()).status == 200
        (link,) = origin.links
        link.write(late)
        await until(lambda: link.eof, "the connection to be closed")
        assert (await rig.ask()).body == b"hello"
        assert len(origin.links) == 2
        # at the very moment of the next request: the caller's bytes and the origin's are in one batch
        (link,) = origin.open
        caller = await rig.caller()
        await turns()
        link.write(late)
        caller.write(request())
        assert b"evil" not in (await caller.answer()).body

    run(test)


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_a_connection_that_the_instance_closed_costs_no_answer(method: str, reset: bool, when: str) -> None:
    """Closed just before the request arrives or just after, which the engine learns in one batch: methods that may be
    repeated are, others find out before they send anything."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        caller = await rig.caller()
        asked = request(method, body=None if method == "GET" else b"data")
        caller.write(asked)
        for _ in range(20):
            assert (await caller.answer()).status == 200
            await turns()
            (link,) = origin.open
            if when == "behind":
                caller.write_now(asked)
            if reset:
                link.reset_now()
            else:
                link.end_now()
            if when == "before":
                caller.write_now(asked)
        assert (await caller.answer()).status == 200
        assert rig.stats["errors"] == {}
        assert len(origin.asks) == 21

    run(test)


@pytest.mark.parametrize("reset", [False, True])
def test_a_put_whose_body_is_still_on_its_way_looks_before_it_leaps(reset: bool) -> None:
    """It can't be repeated, whatever its method, for nobody has kept what was sent."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        caller = await rig.caller()
        for _ in range(20):
            assert (await caller.ask()).status == 200
            await turns()
            (link,) = origin.open
            caller.write_now(request("PUT", "/", "Content-Length: 10") + b"begin")
            if reset:
                link.reset_now()
            else:
                link.end_now()
            await turns(3)
            caller.write(b"-ends")
            assert (await caller.answer("PUT")).status == 200
        assert origin.asks[-1].body == b"begin-ends"

    run(test)


def test_an_instance_that_takes_no_connections_is_passed_over() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        down = rig.refusing()
        rig.swap(service(origin, down))
        for _ in range(30):
            assert (await rig.ask("POST", body=b"once")).status == 200
        assert len(origin.asks) == 30
        figures = rig.figures(down)
        assert figures["failures"] == figures["connects"] == rig.stats["retries"] > 0
        rig.swap(service(down))
        got = await rig.ask()
        assert (got.status, got.get("x-graylb-error")) == (502, "connect-failed")

    run(test)


# ---- the maximum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_burst_never_exceeds_the_maximum(most: int) -> None:
    """`Origin` counts what is open at once; nobody is refused while the queue has room."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/close"] = close_behind
        rig.swap(service(origin, connections={"max": most, "queue_timeout": 5.0}))
        for _ in range(3):
            answers = await gather(
                rig.ask("POST" if turn % 3 == 0 else "GET", "/close" if turn % 5 == 0 else f"/{turn}", body=b"body")
                for turn in range(100)
            )
            assert [answer.status for answer in answers] == [200] * 100
        assert origin.most == most
        assert len(origin.asks) == 300

    run(test)


async def close_behind(ask: Ask) -> None:
    await ask.read_body()
    ask.answer(b"bye", "connection: close")
    ask.link.close()


def test_the_other_instance_of_a_version_is_used_before_anybody_waits() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        rig.swap(service(one, two, connections={"max": 2, "queue_timeout": 5.0}))
        callers = [await rig.send(request(target="/hold")) for _ in range(4)]
        await until(lambda: (len(one.asks), len(two.asks)) == (2, 2), lambda: (len(one.asks), len(two.asks)))
        assert rig.figures(one)["waiting"] + rig.figures(two)["waiting"] == 0
        callers += [await rig.send(request(target="/hold")) for _ in range(3)]
        await until(lambda: rig.figures(one)["waiting"] + rig.figures(two)["waiting"] == 3, lambda: rig.stats)
        for count in range(7):
            await until(lambda: len(one.asks) + len(two.asks) > count, "the next one")  # noqa: B023
            next(ask for ask in one.asks + two.asks if not ask.go.is_set()).go.set()
        assert [answer.status for answer in await gather(caller.answer() for caller in callers)] == [200] * 7
        assert (one.most, two.most) == (2, 2)

    run(test)


def test_a_lower_maximum_holds_as_soon_as_connections_come_free() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        await burst(rig, origin, 6)
        busy = [await rig.send(request(target="/hold")) for _ in range(3)]
        held = (await origin.asked(9))[6:]
        rig.swap(service(origin, connections={"max": 2}))
        await until(lambda: len(origin.open) == 3, lambda: len(origin.open))
        for ask in held:
            ask.go.set()
        await gather(caller.answer() for caller in busy)
        await until(lambda: len(origin.open) == 2, lambda: len(origin.open))
        origin.most = 0
        assert [answer.status for answer in await gather(rig.ask() for _ in range(20))] == [200] * 20
        assert len(origin.open) == 2

    run(test)


# ---- warm-up ---------------------------------------------------------------------------------------------------------


def test_warm_connections_are_there_before_the_first_request_and_stay() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"warm": 3, "idle_timeout": 0.2}))
        await until(lambda: rig.figures(origin)["idle"] == 3, lambda: rig.figures(origin))
        before = list(origin.links)
        await burst(rig, origin, 6)
        assert rig.figures(origin)["connects"] == 6, "the warm ones were used"
        await until(lambda: len(origin.open) == 3, lambda: len(origin.open))
        await asyncio.sleep(0.5)  # twice the time of unused ones
        assert len(origin.open) == 3
        assert rig.figures(origin)["connects"] == 6
        assert before

    run(test)


def test_warm_connections_are_replaced_and_not_in_a_loop() -> None:
    """An instance that closes each at once gets a few tries in a second, not thousands."""

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"warm": 2}))
        await until(lambda: rig.figures(origin)["idle"] == 2, lambda: rig.figures(origin))
        for link in origin.open:
            link.close()
        await until(lambda: rig.figures(origin)["idle"] == 0, lambda: rig.figures(origin))
        await until(lambda: rig.figures(origin)["idle"] == 2, lambda: rig.figures(origin))
        assert rig.figures(origin)["connects"] == 4

    run(test)


def test_an_instance_that_is_down_is_tried_now_and_then() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        await origin.kill()
        rig.swap(service(origin, connections={"warm": 2}))
        await until(lambda: rig.figures(origin)["connects"] >= 4, lambda: rig.figures(origin))
        assert rig.figures(origin)["connects"] <= 8
        await origin.start()
        await until(lambda: rig.figures(origin)["idle"] == 2, lambda: rig.figures(origin))
        assert rig.figures(origin)["connects"] < 30

    run(test)


def test_warm_connections_never_exceed_the_maximum_and_serve_who_waits() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin, connections={"warm": 2, "max": 2, "queue_timeout": 5.0}))
        answers = await gather(rig.ask() for _ in range(30))
        assert [answer.status for answer in answers] == [200] * 30
        assert origin.most == 2

    run(test)


def test_no_warm_connections_to_an_instance_that_is_taken_out() -> None:
    async def test(rig: Rig) -> None:
        origin, out = await rig.origin(), await rig.origin()
        instances = (Instance(origin.address, "v1"), Instance(out.address, "v1", 0))
        rig.swap(service(*instances, connections={"warm": 2}))
        await until(lambda: rig.figures(origin)["idle"] == 2, lambda: rig.figures(origin))
        assert not out.links
        rig.swap(service(*(replace(each, weight=1) for each in instances), connections={"warm": 2}))
        await until(lambda: rig.figures(out)["idle"] == 2, lambda: rig.figures(out))

    run(test)


def test_a_table_without_the_instance_takes_its_warm_connections_along() -> None:
    """Those that are only being opened, too."""

    async def test(rig: Rig) -> None:
        origin, other = await rig.origin(), await rig.origin()
        for _ in range(5):
            rig.swap(service(origin, connections={"warm": 4}))
            rig.swap(service(other))
            rig.swap(service(origin, connections={"warm": 4}))
            await until(lambda: rig.figures(origin)["idle"] == 4, lambda: rig.figures(origin))
            rig.swap(service(other))
            await until(lambda: not origin.open, lambda: len(origin.open))
        assert rig.stats["upstream_connections"] == 0

    run(test)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_is_used_as_it_was_resolved_last() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.origin("127.0.0.1")
        port = first.address.rpartition(":")[2]
        second = Origin("127.0.0.2")
        second.address = f"127.0.0.2:{port}"
        rig.origins.append(await second.start())
        name = f"somewhere.test:{port}"
        rig.swap(service(name, connections={"warm": 1}))
        assert rig.engine.upstream_names() == [(("up", name), False)]
        assert (await rig.ask()).status == 502
        rig.engine.resolved("up", name, "127.0.0.1")
        assert (await rig.ask("GET", "/", CLOSE)).status == 200
        assert rig.engine.upstream_names() == [(("up", name), True)]
        rig.engine.resolved("up", name, "127.0.0.2")
        rig.engine.resolved("nobody", name, "127.0.0.9")
        (link,) = first.open
        link.close()
        await turns()
        assert (await rig.ask()).status == 200
        assert len(second.asks) == 1
        rig.swap(service(name))
        assert rig.engine.upstream_names() == [(("up", name), True)], "a new table keeps what is known"

    run(test)
