"""Late answers: a second instance is asked too, the first answer counts, and nothing is left of the other attempt."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from graylb import builds
from graylb.model.snapshot import Backoff, Connections, Health, Hedge, Retries, RetryBudget, Service, Subset, Timeouts
from graylb.model.snapshot_faults import Mirror
from graylb.model.snapshot_health import Outliers
from graylb.model.snapshot_limits import Bounds
from graylb.model.snapshot_limits import ServiceLimits as Limits
from tests.integration import engines
from tests.integration.engines import Ask, Caller, Origin, Rig, gather, request, run, split, until
from tests.integration.h2_ends import Asked, H2Client, H2Upstream, fields

needs_h2 = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")
CALM = Health(outliers=Outliers(consecutive_gateway_failures=0))
Handler = Callable[[Ask], Awaitable[None]]


def service(*instances: Any, **more: Any) -> Service:
    return engines.service(*instances, **{"health": CALM, "retries": policy(), **more})


def policy(delay: float = 0.02, **more: Any) -> Retries:
    plenty = {"on": (), "backoff": Backoff(0, 0), "budget": RetryBudget(100, 1000), "hedge": Hedge(delay)}
    return Retries(**{**plenty, **more})


def is_second(ask: Ask) -> bool:
    return ask.get("x-graylb-attempts") == "2"


class Two:
    """Two instances, of which the one that is asked first is late: `first` answers that, `second` the other attempt.

    asked: attempts in the order they came; `go`: what the default `first` waits for.
    """

    def __init__(self, one: Origin, other: Origin) -> None:
        self.both = one, other
        self.asked: list[Ask] = []
        self.go = asyncio.Event()
        self.first: Handler = self._waits
        self.second: Handler = self._answers
        for each in self.both:
            each.handle = self._handle  # type: ignore[method-assign]

    async def _handle(self, ask: Ask) -> None:
        await ask.read_body()
        self.asked.append(ask)
        await (self.second if is_second(ask) else self.first)(ask)

    async def _waits(self, ask: Ask) -> None:
        await self.go.wait()
        ask.answer(b"first")

    async def _answers(self, ask: Ask) -> None:
        ask.answer(b"second")

    async def begun(self, count: int) -> None:
        await until(lambda: len(self.asked) == count, lambda: f"{len(self.asked)} of {count} attempts")


async def two(rig: Rig, **more: Any) -> Two:
    made = Two(await rig.origin(), await rig.origin())
    rig.swap(service(*made.both, **more))
    return made


def hedges(rig: Rig) -> dict[str, int]:
    found: Counter[str] = Counter()
    for each in rig.stats["versions"]:
        found.update(each["hedges"])
    return dict(found)


def status(code: int) -> Handler:
    async def fails(ask: Ask) -> None:
        ask.answer(b"sorry", status=code)

    return fails


async def reset(ask: Ask) -> None:
    ask.link.reset()


async def garbage(ask: Ask) -> None:
    ask.link.write(b"I am no HTTP\r\n\r\n")


async def silent(ask: Ask) -> None:
    await asyncio.Event().wait()


BODIES = {"none": None, "length": b"x" * 60_000, "chunked": b"y" * 60_000}


@pytest.mark.parametrize("kind", BODIES)
def test_a_late_answer_is_not_waited_for(kind: str) -> None:
    body = BODIES[kind]

    async def test(rig: Rig) -> None:
        made = await two(rig)
        caller = await rig.caller()
        if kind == "chunked":
            assert body is not None
            caller.write(request("PUT", "/", "Transfer-Encoding: chunked"))
            for at in range(0, len(body), 10_000):
                caller.write(b"%x\r\n%b\r\n" % (10_000, body[at : at + 10_000]))
                await asyncio.sleep(0)
            caller.write(b"0\r\n\r\n")
            answer = await caller.answer("PUT")
        else:
            answer = await caller.ask("GET" if body is None else "PUT", "/", body=body)
        assert (answer.status, answer.body, answer.get("x-graylb-attempts")) == (200, b"second", "2")
        late, used = made.asked
        assert late.link.origin is not used.link.origin
        assert bytes(late.body) == bytes(used.body) == (body or b"")
        assert (late.get("x-graylb-attempts"), used.get("x-graylb-attempts")) == (None, "2")
        await late.link.ended()
        assert hedges(rig) == {"won": 1}
        assert [rig.figures(each)["failures"] for each in made.both] == [0, 0]
        made.asked.clear()
        made.go.set()
        assert (await caller.ask()).body == b"first"  # the connection serves on
        assert len(made.asked) == 1

    run(test)


def test_the_first_attempt_may_still_be_the_first_to_answer() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig)
        made.second = silent
        caller = await rig.send(request())
        await made.begun(2)
        made.go.set()
        assert (await caller.answer()).body == b"first"
        await made.asked[1].link.ended()
        assert hedges(rig) == {"lost": 1}
        assert [rig.figures(each)["failures"] for each in made.both] == [0, 0]
        assert rig.stats["retries"] == 0

    run(test)


def test_both_answer_at_once_and_one_of_them_counts() -> None:
    """As near to each other as a machine can have it, many times; no caller gets two answers or half of each."""

    async def test(rig: Rig) -> None:
        made = await two(rig, retries=policy(0.001))
        both = asyncio.Condition()

        async def together(ask: Ask) -> None:
            number = ask.target
            async with both:
                both.notify_all()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        both.wait_for(lambda: sum(each.target == number for each in made.asked) == 2), 2
                    )
            ask.answer(number.encode())

        made.first = made.second = together
        callers = [await rig.caller() for _ in range(10)]

        async def go(caller: Caller, name: int) -> None:
            for count in range(20):
                answer = await caller.ask("GET", f"/{name}-{count}")
                assert (answer.status, answer.body) == (200, f"/{name}-{count}".encode())

        await gather(go(caller, name) for name, caller in enumerate(callers))
        assert sum(hedges(rig).values()) == 200
        assert set(hedges(rig)) <= {"won", "lost"}

    run(test)


# ---- failures --------------------------------------------------------------------------------------------------------

FAILURES: dict[str, tuple[Handler, Retries]] = {
    "reset": (reset, policy()),
    "garbage": (garbage, policy()),
    "503": (status(503), policy(on=("gateway-error",))),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_second_attempt_that_fails_changes_nothing_for_the_first(name: str) -> None:
    fails, retries = FAILURES[name]

    async def test(rig: Rig) -> None:
        made = await two(rig, retries=retries)
        made.second = fails
        caller = await rig.send(request())
        await made.begun(2)
        await until(lambda: hedges(rig) == {"failed": 1}, lambda: rig.stats)
        made.go.set()
        answer = await caller.answer()
        assert (answer.status, answer.body, answer.get("x-graylb-attempts")) == (200, b"first", "2")
        assert sum(rig.figures(each)["failures"] for each in made.both) == 1
        assert len(made.asked) == 2

    run(test)


@pytest.mark.parametrize("name", FAILURES)
def test_where_the_first_attempt_fails_the_second_is_waited_for(name: str) -> None:
    fails, retries = FAILURES[name]

    async def test(rig: Rig) -> None:
        made = await two(rig, retries=retries)
        begun, go = asyncio.Event(), asyncio.Event()

        async def first(ask: Ask) -> None:
            await begun.wait()
            await fails(ask)

        async def second(ask: Ask) -> None:
            begun.set()
            await go.wait()
            ask.answer(b"second")

        made.first, made.second = first, second
        caller = await rig.send(request())
        await until(lambda: hedges(rig) == {"won": 1}, lambda: rig.stats)
        go.set()
        answer = await caller.answer()
        assert (answer.status, answer.body, answer.get("x-graylb-attempts")) == (200, b"second", "2")
        assert len(made.asked) == 2
        assert rig.stats["errors"] == {}

    run(test)


@pytest.mark.parametrize("name", [*FAILURES, "silent"])
def test_both_fail(name: str) -> None:
    fails, retries = FAILURES.get(name, (silent, policy(per_try_timeout=0.1)))
    wanted = {"503": 503, "silent": 504}.get(name, 502)

    async def test(rig: Rig) -> None:
        made = await two(rig, retries=retries)

        async def first(ask: Ask) -> None:
            await made.begun(2)
            await fails(ask)

        made.first, made.second = first, fails
        assert (await rig.ask()).status == wanted
        assert len(made.asked) == 2

    run(test)


def test_a_failure_that_is_not_retried_is_an_answer_as_any_other() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig)
        made.second = status(503)
        answer = await rig.ask()
        assert (answer.status, answer.body) == (503, b"sorry")
        assert hedges(rig) == {"won": 1}

    run(test)


def test_attempts_are_bounded_also_where_hedges_fail() -> None:
    """Three in all, never more than two at once, each at another instance."""

    async def test(rig: Rig) -> None:
        made = [await rig.origin() for _ in range(4)]
        rig.swap(service(*made, retries=policy(attempts=3)))
        asked: list[Ask] = []
        go = asyncio.Event()

        async def handle(ask: Ask) -> None:
            asked.append(ask)
            if ask.get("x-graylb-attempts") is not None:
                ask.link.reset()
                return
            await go.wait()
            ask.answer()

        for each in made:
            each.handlers["/"] = handle
        caller = await rig.send(request())
        await until(lambda: hedges(rig) == {"failed": 2}, lambda: rig.stats)
        assert [ask.get("x-graylb-attempts") for ask in asked] == [None, "2", "3"]
        assert len({ask.link.origin.address for ask in asked}) == 3
        await asyncio.sleep(0.1)  # five delays: nobody else is asked
        assert len(asked) == 3
        go.set()
        assert (await caller.answer()).get("x-graylb-attempts") == "3"

    run(test)


def test_a_retry_is_hedged_too() -> None:
    async def test(rig: Rig) -> None:
        made = [await rig.origin() for _ in range(3)]
        rig.swap(service(*made, retries=policy(attempts=3, on=("reset",))))
        seen: list[str | None] = []

        async def handle(ask: Ask) -> None:
            seen.append(number := ask.get("x-graylb-attempts"))
            if number is None:
                ask.link.reset()
            elif number == "2":
                await asyncio.Event().wait()
            else:
                ask.answer(b"third")

        for each in made:
            each.handlers["/"] = handle
        assert (await rig.ask()).body == b"third"
        assert seen == [None, "2", "3"]

    run(test)


def test_an_instance_that_cannot_be_connected_is_no_second_attempt() -> None:
    async def test(rig: Rig) -> None:
        one = await rig.origin()
        rig.swap(service(one, rig.refusing()))
        go = asyncio.Event()

        async def held(ask: Ask) -> None:
            await go.wait()
            ask.answer()

        one.handlers["/"] = held
        callers = [await rig.send(request()) for _ in range(10)]  # about half of them come to it at once
        await until(lambda: len(one.asks) == 10 and hedges(rig).get("failed", 0) >= 1, lambda: rig.stats)
        go.set()
        assert {(await caller.answer()).status for caller in callers} == {200}
        assert len(one.asks) == 10

    run(test)


# ---- which requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["post", "long", "unlisted", "websocket", "unfinished", "single"])
def test_never(case: str) -> None:
    """What may not be carried out twice, or is not wholly here, has one attempt at a time."""

    async def test(rig: Rig) -> None:
        retries = policy(methods=("PUT",)) if case == "unlisted" else policy(buffer=100)
        made = await two(rig, retries=retries)
        if case == "single":
            rig.swap(service(made.both[0], retries=retries))
        if case == "post":
            caller = await rig.send(request("POST", "/", "Content-Length: 2"), b"hi")
        elif case == "long":
            caller = await rig.send(request("PUT", "/", "Content-Length: 101"), b"x" * 101)
        elif case == "unfinished":
            caller = await rig.send(request("PUT", "/", "Content-Length: 2"), b"h")
            await until(lambda: sum(rig.figures(each)["in_flight"] for each in made.both) == 1, "an attempt")
        elif case == "websocket":
            offer = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
            caller = await rig.send(request("GET", "/", *offer))
        else:
            caller = await rig.send(request())
        if case != "unfinished":
            await made.begun(1)
        await asyncio.sleep(0.1)  # five delays
        if case == "unfinished":
            caller.write(b"i")
            await made.begun(1)
        assert (len(made.asked), hedges(rig)) == (1, {})
        made.go.set()
        assert (await caller.answer()).body == b"first"

    run(test)


def test_a_method_that_is_listed() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig, retries=policy(methods=("POST",)))
        answer = await rig.ask("POST", "/", body=b"twice")
        assert answer.body == b"second"
        assert [bytes(ask.body) for ask in made.asked] == [b"twice"] * 2

    run(test)


def test_the_budget_bounds_them() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig, retries=policy(budget=RetryBudget(0, 1)))  # three are saved up
        callers = [await rig.send(request()) for _ in range(20)]
        await until(lambda: rig.stats["services"][0]["retry_budget_exhausted"] >= 16, lambda: rig.stats)
        assert 3 <= hedges(rig)["won"] <= 4
        made.go.set()
        bodies = Counter([(await caller.answer()).body for caller in callers])
        assert bodies[b"second"] == hedges(rig)["won"]
        assert sum(bodies.values()) == 20

    run(test)


def test_an_instance_without_room_or_health_is_not_asked() -> None:
    async def test(rig: Rig) -> None:
        full = Connections(max=1, queue_timeout=60)
        made = await two(rig, connections=full)
        made.second = silent
        callers = [await rig.send(request()) for _ in range(2)]
        await until(lambda: len({ask.link.origin for ask in made.asked}) == 2, "both busy")
        rig.swap(service(*made.both, health=replace(CALM, panic=0)))
        await asyncio.sleep(0.1)
        assert hedges(rig) == {}
        made.go.set()
        assert {(await caller.answer()).body for caller in callers} == {b"first"}
        made.asked.clear()
        made.go.clear()
        well = await rig.send(request())
        await made.begun(1)
        (ill,) = {each.address for each in made.both} - {made.asked[0].link.origin.address}
        rig.engine.set_down([("up", ill)])
        await asyncio.sleep(0.1)
        made.go.set()
        assert (await well.answer()).body == b"first"

    run(test)


def test_a_circuit_breaker_is_asked_first() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig, limits=Limits(instance=Bounds(requests=1)))
        made.second = silent
        callers = [await rig.send(request()) for _ in range(2)]
        await until(lambda: len({ask.link.origin for ask in made.asked}) == 2, "both busy")
        await asyncio.sleep(0.1)
        assert hedges(rig) == {}
        made.go.set()
        assert {(await caller.answer()).body for caller in callers} == {b"first"}

    run(test)


@pytest.mark.parametrize("leaves", [False, True])
def test_the_version_is_kept_unless_it_may_be_left(leaves: bool) -> None:
    async def test(rig: Rig) -> None:
        stable, slow, slow2 = await rig.origin(), await rig.origin(), await rig.origin()
        go = asyncio.Event()

        async def held(ask: Ask) -> None:
            if not is_second(ask):
                await go.wait()
            ask.answer()

        slow.handlers["/"] = slow2.handlers["/"] = held
        instances = stable, (slow, "v2"), (slow2, "v2")
        rig.swap(service(*instances, split=split(v2=100), retries=policy(other_version=leaves)))
        answer = await rig.ask()
        assert answer.get("x-graylb-attempts") == "2"
        assert answer.get("x-graylb-version") == ("v1" if leaves else "v2")
        assert answer.get("x-graylb-fallback") == ("v2" if leaves else None)
        assert len(stable.asks) == leaves
        assert rig.stats["services"][0]["retries_left_version"] == leaves
        assert [each["count"] for each in rig.stats["fallbacks"]] == [1] * leaves

    run(test)


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_client_that_goes_takes_both_attempts_along(way: str) -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig)
        made.second = silent
        caller = await rig.send(request())
        await made.begun(2)
        getattr(caller, way)()
        for ask in made.asked:
            await ask.link.ended()
        assert hedges(rig) == {"cancelled": 1}
        assert rig.engine.exchanges == 0
        assert [rig.figures(each)["failures"] for each in made.both] == [0, 0]

    run(test)


def test_the_time_of_a_whole_request_ends_both() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig, timeouts=Timeouts(request=0.2))
        made.second = silent
        answer = await rig.ask()
        assert (answer.status, answer.get("x-graylb-error")) == (504, "request-timeout")
        assert len(made.asked) == 2
        for ask in made.asked:
            await ask.link.ended()
        assert hedges(rig) == {"cancelled": 1}

    run(test)


def test_each_attempt_has_its_own_time() -> None:
    """The first is over at 0.3 s; the second, which began later, may take longer than that."""

    async def test(rig: Rig) -> None:
        made = await two(rig, retries=policy(0.2, per_try_timeout=0.3))
        go = asyncio.Event()

        async def second(ask: Ask) -> None:
            await go.wait()
            ask.answer(b"second")

        made.second = second
        caller = await rig.send(request())
        await made.begun(2)
        await made.asked[0].link.ended()
        go.set()
        assert (await caller.answer()).body == b"second"

    run(test)


def test_a_drain_waits_for_whoever_answers() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig)
        made.second = silent
        caller = await rig.send(request())
        await made.begun(2)
        quiet = asyncio.Event()
        rig.engine.drain(quiet.set)
        made.go.set()
        answer = await caller.answer()
        assert (answer.body, answer.get("connection")) == (b"first", "close")
        caller.close()
        await engines.within(quiet.wait())

    run(test)


def test_a_worker_that_ends_leaves_nothing_behind() -> None:
    async def test(rig: Rig) -> None:
        made = await two(rig)
        made.second = silent
        for _ in range(5):
            await rig.send(request())
        await made.begun(10)
        rig.engine.close()
        for ask in made.asked:
            await ask.link.ended()
        assert rig.engine.exchanges == 0

    run(test)


def test_who_is_cancelled_is_not_ejected() -> None:
    async def test(rig: Rig) -> None:
        watched = Health(outliers=Outliers(consecutive_gateway_failures=1, consecutive_5xx=1, max_ejection_percent=100))
        await two(rig, health=watched)
        for _ in range(10):
            assert (await rig.ask()).body == b"second"
        assert hedges(rig) == {"won": 10}
        assert rig.engine.ejected() == []

    run(test)


def test_one_request_has_one_copy() -> None:
    async def test(rig: Rig) -> None:
        other = await rig.origin()
        made = Two(await rig.origin(), await rig.origin())
        mirror = Mirror(Subset(version="v2"))
        rig.swap(service(*made.both, (other, "v2"), split=split(v1=100), mirror=mirror))
        assert (await rig.ask("PUT", "/", body=b"some")).body == b"second"
        (copied,) = await other.asked(1)
        assert (bytes(copied.body), copied.get("x-graylb-attempts")) == (b"some", None)
        await until(lambda: rig.stats["mirrors"][0]["active"] == 0, lambda: rig.stats)

    run(test)


# ---- one request, one table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hedged", [True, False])
def test_a_change_of_the_settings_is_for_later_requests(hedged: bool) -> None:
    """Both ways: what was to be hedged is, what was not is not, whatever comes to be in force meanwhile."""

    async def test(rig: Rig) -> None:
        retries = [policy(0.2), replace(policy(), hedge=None)]
        made = await two(rig, retries=retries[0 if hedged else 1])
        caller = await rig.send(request())
        await made.begun(1)
        rig.swap(service(*made.both, retries=retries[1 if hedged else 0]))
        if not hedged:
            later = await rig.ask()  # by the new settings
            assert later.body == b"second"
            made.go.set()
        assert (await caller.answer()).body == (b"second" if hedged else b"first")

    run(test)


# ---- HTTP/2 ----------------------------------------------------------------------------------------------------------


class LateUpstream(H2Upstream):
    """Does not answer a first attempt."""

    def _answer(self, link: Any, stream: int, request: Asked, unsent: Any) -> None:
        if request.all("x-graylb-attempts"):
            super()._answer(link, stream, request, unsent)


@contextlib.contextmanager
def two_late(rig: Rig) -> Iterator[tuple[LateUpstream, LateUpstream]]:
    """Two instances by HTTP/2, whose connections are gone at the end."""
    with closing(LateUpstream()) as one, closing(LateUpstream()) as other:
        rig.swap(service(one.address, other.address, connections={"protocol": "h2"}))
        yield one, other
        rig.swap(service(rig.refusing()))


@needs_h2
def test_the_stream_of_the_other_attempt_is_cancelled() -> None:
    body = b"all of it" * 1000

    async def test(rig: Rig) -> None:
        with two_late(rig) as (one, other):
            caller = await rig.caller()
            for number in range(1, 6):
                assert (await caller.ask("PUT", "/", body=body)).body == body
                await until(lambda: sorted(one.resets + other.resets) == [8] * number, "CANCEL")  # noqa: B023
            asked = one.requests + other.requests
            assert [bytes(each.body) for each in asked] == [body] * 10
            assert sorted(each.all("x-graylb-attempts") for each in asked) == [[]] * 5 + [["2"]] * 5
            # the second attempt had the caller's Host as a field, for nobody made that lower case
            assert [(each.all(":authority"), each.all("host")) for each in asked] == [(["up"], [])] * 10
            assert hedges(rig) == {"won": 5}
            assert rig.stats["sessions"] == 2

    run(test)


@needs_h2
@pytest.mark.parametrize("upstream", ["h1", "h2"])
def test_clients_of_http2(upstream: str) -> None:
    def go(address: str) -> None:
        with H2Client(address) as client:
            for _ in range(5):
                answer = client.ask(fields(method="PUT"), b"second")
                assert (answer.status, answer.body, answer.ended) == (200, b"second", True)

    async def test(rig: Rig) -> None:
        with two_late(rig):
            if upstream == "h1":
                await two(rig)
            await asyncio.to_thread(go, rig.address)
            assert hedges(rig) == {"won": 5}

    run(test)


@needs_h2
def test_a_stream_that_its_client_resets_takes_both_attempts_along() -> None:
    def begun(address: str) -> H2Client:
        client = H2Client(address)
        client.begin(fields(path="/Hang"), end=True)
        return client

    async def test(rig: Rig) -> None:
        with two_late(rig) as (one, other):
            client = await asyncio.to_thread(begun, rig.address)
            await until(lambda: len(one.requests + other.requests) == 2, "two attempts")
            client.h2.reset_stream(1)
            client.flush()
            await until(lambda: one.resets + other.resets == [8, 8], "CANCEL")
            assert hedges(rig) == {"cancelled": 1}
            client.sock.close()

    run(test)
