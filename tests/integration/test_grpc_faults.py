"""gRPC while things happen: connections end, instances die, configurations change; and many streams at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from graylb import builds
from tests.integration import proxies
from tests.integration.grpcs import PATIENCE, UNLIMITED, Channel, servers
from tests.integration.proxies import Proxy, until

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")


def calls(address: str, host: str, count: int, *, threads: int = 8) -> Counter[str]:
    """What so many unary calls gave: a version, or the code of the failure; a channel for each thread."""

    def some(number: int) -> Counter[str]:
        found: Counter[str] = Counter()
        with Channel(address, host) as channel:
            for each in range(count // threads):
                try:
                    found[channel.echo(b"%d %d" % (number, each))] += 1
                except grpc.RpcError as error:
                    found[f"{error.code().name}: {error.details()}"] += 1
        return found

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(some, range(threads)), Counter())


def test_instances_that_end_connections_by_age_fail_no_call(tmp_path: Path) -> None:
    """Each GOAWAY comes while calls are under way on its connection."""
    with servers("v1", max_connection_age_ms=100, max_connection_age_grace_ms=5000) as (one,):
        doc = proxies.document({"echo": proxies.service(one.address)})
        with proxies.running(tmp_path, doc) as proxy:
            assert calls(proxy.address, "echo.test", 800) == {"v1": 800}
            peers = {call.peer for call in one.calls}
            assert len(peers) > 2, "no connection was ended"


def test_an_instance_that_is_killed_fails_only_what_it_had(tmp_path: Path) -> None:
    """Calls that it may have seen fail with UNAVAILABLE; later ones go to the other instance of the version."""
    with own_process() as (process, victim), servers("v1") as (other,):
        doc = proxies.document({"echo": proxies.service(victim, other.address)})
        with proxies.running(tmp_path, doc) as proxy, Channel(proxy.address) as channel:
            hanging = [channel.channel.unary_unary("/test.Echo/Hang").future(b"", timeout=60) for _ in range(20)]
            until(lambda: len(other.calls) > 0, "calls at both")
            seen_by_other = until(
                lambda: len(other.calls) if sum(_in_flight(proxy)) == 20 else None, "all calls under way"
            )
            process.send_signal(signal.SIGKILL)
            process.wait()
            failed = until(lambda: _done(hanging) if len(_done(hanging)) >= 20 - seen_by_other else None, "failures")
            assert len(failed) == 20 - seen_by_other
            assert {each.code() for each in failed} <= {grpc.StatusCode.UNAVAILABLE}
            assert calls(proxy.address, "echo.test", 200) == {"v1": 200}
            for each in hanging:
                each.cancel()


def test_a_call_whose_instance_is_killed_after_its_first_message_is_told_that_it_is_unavailable(tmp_path: Path) -> None:
    """By a status in trailers: a reset would be INTERNAL to the client, which is not asked again."""
    answered = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"first"
        answered.wait(PATIENCE)

    with own_process() as (process, victim):
        doc = proxies.document({"echo": proxies.service(victim)})
        with proxies.running(tmp_path, doc) as proxy, Channel(proxy.address) as channel:
            call = channel.talk(messages(), timeout=PATIENCE)
            assert next(iter(call)) == b"first"
            process.send_signal(signal.SIGKILL)
            with pytest.raises(grpc.RpcError):
                next(iter(call))
            answered.set()
            assert call.code() == grpc.StatusCode.UNAVAILABLE
            assert call.details() == "graylb: the instance closed the connection before it answered"


@contextlib.contextmanager
def own_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of v1 that can be killed, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.grpcs", "v1"], cwd=proxies.ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _in_flight(proxy: Proxy) -> list[int]:
    (worker,) = proxy.call("/stats")
    return [each["in_flight"] for each in worker["stats"]["instances"]]


def _done(calls: list[Any]) -> list[Any]:
    return [each for each in calls if each.done()]


@pytest.mark.slow
def test_a_hundred_changes_of_configuration_break_no_stream(tmp_path: Path) -> None:
    async def scene(address: str, change: Any) -> None:
        async with contextlib.AsyncExitStack() as stack:
            options = [*UNLIMITED, ("grpc.default_authority", "echo.test"), ("grpc.use_local_subchannel_pool", 1)]
            channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(5)]
            streams = [channels[n % 5].stream_stream("/test.Echo/Talk")(timeout=120) for n in range(500)]

            async def say(stream: Any, text: bytes) -> None:
                await stream.write(text)
                assert await stream.read() == text

            async def all_say(text: bytes) -> None:
                await asyncio.gather(*(say(each, text) for each in streams))

            await all_say(b"before")
            changing = asyncio.create_task(asyncio.to_thread(change))
            rounds = 0
            while not changing.done():
                await all_say(b"%d" % rounds)
                rounds += 1
            await changing
            await all_say(b"after")
            for each in streams:
                await each.done_writing()
                assert await each.read() is grpc.aio.EOF
                assert await each.code() is grpc.StatusCode.OK
            assert rounds > 1

    with servers("v1", "v2") as (one, two):
        both = ((one.address, "v1"), (two.address, "v2"))

        def document(number: int) -> dict[str, Any]:
            split = {"v1": 100 - number % 100, "v2": 1 + number % 100}
            rules = [{"name": "r", "match": {"metadata": {"x-user": str(number)}}, "to": "v2"}]
            return proxies.document({"echo": proxies.service(*both, split=split, rules=rules)})

        with proxies.running(tmp_path, document(0)) as proxy:

            def change() -> None:
                for number in range(1, 101):
                    proxy.edit(document(number))

            asyncio.run(scene(proxy.address, change))


def test_a_thousand_streams_at_once(tmp_path: Path) -> None:
    async def scene(address: str) -> None:
        options = [*UNLIMITED, ("grpc.default_authority", "echo.test")]
        async with grpc.aio.insecure_channel(address, options) as channel:
            streams = [channel.stream_stream("/test.Echo/Talk")(timeout=60) for _ in range(1000)]
            for number, each in enumerate(streams):
                await each.write(b"%d" % number)
            assert await asyncio.gather(*(each.read() for each in streams)) == [b"%d" % n for n in range(1000)]
            for each in streams:
                await each.done_writing()
            assert {await each.code() for each in streams} == {grpc.StatusCode.OK}

    with servers("v1") as (one,):
        doc = proxies.document(
            {"echo": proxies.service(one.address, connections={"streams": 300})}, limits={"h2": {"streams": 1000}}
        )
        with proxies.running(tmp_path, doc) as proxy:
            asyncio.run(scene(proxy.address))
            # all were under way at once, on as few connections as the service's `streams` allow
            assert len({call.peer for call in one.calls}) >= 4


def test_a_drain_lets_calls_finish_and_asks_clients_to_go(tmp_path: Path) -> None:
    with servers("v1") as (one,):
        proxy = Proxy(tmp_path, proxies.document({"echo": proxies.service(one.address)}))
        try:
            with Channel(proxy.address) as channel:
                assert channel.echo() == "v1"
                go_on = threading.Event()

                def messages() -> Iterator[bytes]:
                    yield b"one"
                    assert go_on.wait(PATIENCE)
                    yield b"two"

                call = channel.talk(messages())
                assert next(call) == b"one"
                assert proxy.process is not None
                proxy.process.send_signal(signal.SIGTERM)
                until(lambda: "draining" in proxy.log(), "the drain")
                go_on.set()
                assert list(call) == [b"two"]
                assert call.code() is grpc.StatusCode.OK
                assert proxy.process.wait(PATIENCE) == 0
        finally:
            proxy.kill()
