"""Keeping worker processes: tables, refusals, deaths, drain. The worker here is `fake_worker`, a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from graylb import supervisor
from graylb.control.workers import Worker, WorkerFailed, worker_environment

FAKE = "tests.control.fake_worker"


@dataclass(frozen=True)
class Table:
    revision: int
    order: str = ""

    @property
    def image(self) -> bytes:
        return orjson.dumps({"revision": self.revision, "order": self.order})


@asynccontextmanager
async def running(count: int, table: Table) -> AsyncIterator[tuple[list[Worker], str]]:
    bound = supervisor.bind("127.0.0.1:0", count)
    workers = [Worker(number, [bound.sockets[number]], FAKE) for number in range(count)]
    keepers = [asyncio.create_task(worker.keep(table)) for worker in workers]
    try:
        await asyncio.gather(*(worker.ready.wait() for worker in workers))
        yield workers, bound.address
    finally:
        for worker in workers:
            worker.kill()
        await asyncio.gather(*keepers)
        for listener in bound.sockets:
            listener.close()


async def ask(address: str) -> tuple[int, int]:
    """(revision, pid) of the worker that answers."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    revision, pid = (await reader.read()).split()
    writer.close()
    await writer.wait_closed()
    return int(revision), int(pid)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


def test_a_worker_serves_what_it_is_handed_and_says_so() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], address):
            assert await ask(address) == (1, worker.pid)
            assert await worker.load(Table(2)) is None
            assert (await ask(address))[0] == worker.acknowledged == 2
            assert await worker.stats() == {"served": 2}

    run(test)


def test_a_killed_worker_comes_back_with_the_table_and_waiting_connections() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], address):
            assert await worker.settle(Table(5)) is None
            first = worker.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            # the listening socket outlives the process, so this connects at once and waits in the backlog
            revision, second = await ask(address)
            assert (revision, worker.restarts) == (5, 1)
            assert second != first

    run(test)


def test_a_worker_that_never_serves_is_not_started_for_ever() -> None:
    async def test() -> None:
        bound = supervisor.bind("127.0.0.1:0", 1)
        with pytest.raises(WorkerFailed, match="worker 0 told to refuse"):
            await Worker(0, bound.sockets, FAKE).keep(Table(1, "refuse-0"))
        with pytest.raises(WorkerFailed, match="worker 0 ended while it loaded the table"):
            await Worker(0, bound.sockets, FAKE).keep(Table(1, "die-0"))
        bound.sockets[0].close()

    run(test)


@pytest.mark.parametrize("order", ["refuse-1", "die-1"])
def test_what_one_worker_refuses_none_serves(tmp_path: Path, order: str) -> None:
    async def test() -> None:
        good, bad = Table(1), Table(2, order)
        async with running(2, good) as (workers, _):
            tree = supervisor.Supervisor(supervisor.Options(tmp_path / "x.yaml"))
            tree.workers = workers
            refusals = await tree.publish(bad, good)  # type: ignore[arg-type]
            assert [text.partition(":")[0] for text in refusals] == ["worker 1"]
            await asyncio.gather(*(worker.ready.wait() for worker in workers))
            assert [worker.acknowledged for worker in workers] == [1, 1]
            assert await tree.publish(Table(3), good) == []  # type: ignore[arg-type]

    run(test)


def test_drain_ends_a_worker_for_good() -> None:
    async def test() -> None:
        bound = supervisor.bind("127.0.0.1:0", 1)
        worker = Worker(0, bound.sockets, FAKE)
        keeper = asyncio.create_task(worker.keep(Table(1)))
        await worker.ready.wait()
        worker.drain(1.0)
        await keeper
        assert worker.pid is None
        bound.sockets[0].close()

    run(test)


def test_binding_the_same_port_for_all_workers_and_nobody_else() -> None:
    bound = supervisor.bind("127.0.0.1:0", 3)
    assert {listener.getsockname() for listener in bound.sockets} == {bound.sockets[0].getsockname()}
    with pytest.raises(supervisor.StartError, match=f"cannot listen on {bound.address}: Address already in use"):
        supervisor.bind(bound.address, 1)
    for listener in bound.sockets:
        listener.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_binding_ipv6() -> None:
    bound = supervisor.bind("[::1]:0", 2)
    assert bound.address.startswith("[::1]:")
    for listener in bound.sockets:
        listener.close()


def test_workers_get_no_more_of_the_environment_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("GRAYLB_LOG", "y")
    found = worker_environment()
    assert "SECRET_TOKEN" not in found
    assert found["GRAYLB_LOG"] == "y"
