"""Keeping worker processes: tables, refusals, deaths, drain. The worker here is `fake_worker`, a real process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from graylb import supervisor
from graylb.control.spawning import spawn, worker_environment
from graylb.control.workers import Nursery, Worker, WorkerFailed
from graylb.listeners import Bound, bind
from graylb.model.snapshot import Listener, Snapshot
from graylb.proxy.channel import SOCKETS_AT_ONCE
from tests.control.fake_worker import HANGS

FAKE = "tests.control.fake_worker"
ANYWHERE = Listener("127.0.0.1:0")


@dataclass(frozen=True)
class Table:
    revision: int
    order: str = ""

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.revision, (), (), ())

    @property
    def image(self) -> bytes:
        return orjson.dumps({"revision": self.revision, "order": self.order})


@asynccontextmanager
async def running(count: int, table: Table) -> AsyncIterator[tuple[list[Worker], str]]:
    bound = bind(ANYWHERE, count)
    nursery = Nursery((), FAKE)
    workers = [worker_of(number, nursery, bound, count) for number in range(count)]
    keepers = [asyncio.create_task(worker.keep(table)) for worker in workers]
    try:
        await asyncio.gather(*(worker.loaded.wait() for worker in workers))
        for worker in workers:
            worker.listen()
        await asyncio.gather(*(worker.ready.wait() for worker in workers))
        yield workers, bound.address
    finally:
        for worker in workers:
            worker.kill()
        await asyncio.gather(*keepers)
        await nursery.close()
        bound.close()


def worker_of(number: int, nursery: Nursery, bound: Bound, count: int = 1) -> Worker:
    return Worker(number, nursery, [{"fd": made.fileno()} for made in bound.of(number, count)])


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
        bound = bind(ANYWHERE, 1)
        nursery = Nursery((), FAKE, spare=False)
        with pytest.raises(WorkerFailed, match="worker 0 told to refuse"):
            await worker_of(0, nursery, bound).keep(Table(1, "refuse-0"))
        with pytest.raises(WorkerFailed, match="worker 0 ended while it loaded the table"):
            await worker_of(0, nursery, bound).keep(Table(1, "die-0"))
        bound.close()

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
        bound = bind(ANYWHERE, 1)
        worker = worker_of(0, Nursery((), FAKE, spare=False), bound)
        keeper = asyncio.create_task(worker.keep(Table(1)))
        await worker.loaded.wait()
        worker.drain(1.0)
        await keeper
        assert worker.pid is None
        bound.close()

    run(test)


async def spare_of(nursery: Nursery, other_than: int | None = None) -> int:
    """The process id of the spare worker, once there is one."""
    await until(lambda: nursery.spare is not None and nursery.spare.pid != other_than)
    assert nursery.spare is not None
    return nursery.spare.pid


async def until(look: Callable[[], bool]) -> None:
    for _ in range(2000):
        if look():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 20 s")


def test_a_dead_worker_is_replaced_by_the_spare_one() -> None:
    async def test() -> None:
        async with running(2, Table(1)) as (workers, _):
            nursery = workers[0].nursery
            nursery.prepare()
            for worker in workers:
                spare, old = await spare_of(nursery), worker.pid
                assert old is not None
                os.kill(old, signal.SIGKILL)
                await until(lambda worker=worker, old=old: worker.ready.is_set() and worker.pid != old)  # type: ignore[misc]
                assert worker.pid == spare
                assert worker.recovered is not None
                assert await worker.stats() == {"served": 1}
                assert await spare_of(nursery, spare) != spare

    run(test)


def test_a_spare_worker_that_dies_is_replaced_and_ends_with_the_nursery() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], address):
            nursery = worker.nursery
            nursery.prepare()
            first = await spare_of(nursery)
            os.kill(first, signal.SIGKILL)
            second = await spare_of(nursery, first)
            await nursery.close()
            assert nursery.spare is None
            with pytest.raises(ProcessLookupError):
                os.kill(second, 0)
            assert (await ask(address))[1] == worker.pid

    run(test)


def test_what_was_started_early_is_taken_first_and_the_rest_ends() -> None:
    async def test() -> None:
        early = [spawn(FAKE) for _ in range(4)]
        early[0].process.kill()
        early[0].process.wait()
        nursery = Nursery(early, FAKE)
        assert nursery.take().pid == early[1].process.pid
        nursery.prepare()
        assert await spare_of(nursery) == early[2].process.pid
        assert early[3].process.returncode is not None
        await nursery.close()
        assert early[2].process.returncode is not None
        early[1].end()

    run(test)


def test_a_worker_gets_more_sockets_than_one_message_holds() -> None:
    async def test() -> None:
        many = [bind(ANYWHERE, 1) for _ in range(2 * SOCKETS_AT_ONCE + 1)]
        worker = Worker(0, Nursery((), FAKE), [{"fd": bound.sockets[0].fileno()} for bound in many])
        keeper = asyncio.create_task(worker.keep(Table(1)))
        worker.listen()
        await worker.ready.wait()
        assert [await ask(many[number].address) for number in (0, -1)] == [(1, worker.pid)] * 2
        worker.kill()
        await keeper
        for bound in many:
            bound.close()

    run(test)


def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of processes, or an interpreter that is just being replaced: the proxy itself goes on."""

    async def test() -> None:
        async with running(2, Table(1)) as (workers, _):
            first = workers[0].pid
            assert first is not None
            with monkeypatch.context() as patched:
                patched.setattr("sys.executable", "/missing/python")
                workers[0].nursery.prepare()
                os.kill(first, signal.SIGKILL)
                await until(lambda: workers[0].restarts >= 2)
                assert workers[1].ready.is_set()
            await until(workers[0].ready.is_set)
            await spare_of(workers[0].nursery)

    run(test)


def test_a_worker_that_can_never_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        bound = bind(ANYWHERE, 1)
        monkeypatch.setattr("sys.executable", "/missing/python")
        with pytest.raises(WorkerFailed, match="worker 0 cannot be started: No such file"):
            await worker_of(0, Nursery((), FAKE, spare=False), bound).keep(Table(1))
        bound.close()

    run(test)


def test_a_worker_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            assert await worker.answers()
            await worker.settle(Table(HANGS))
            monkeypatch.setattr("graylb.control.workers.PING_PATIENCE", 0.05)
            assert not await worker.answers()

    run(test)


def test_nothing_is_accepted_before_listen() -> None:
    async def test() -> None:
        bound = bind(ANYWHERE, 1)
        worker = worker_of(0, Nursery((), FAKE, spare=False), bound)
        keeper = asyncio.create_task(worker.keep(Table(1)))
        await worker.loaded.wait()
        host, _, port = bound.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = asyncio.create_task(reader.readline())
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done
        worker.listen()
        assert (await answer).split()[0] == b"1"
        writer.close()
        worker.kill()
        await keeper
        bound.close()

    run(test)


def test_workers_get_no_more_of_the_environment_than_they_need() -> None:
    found = worker_environment({"SECRET_TOKEN": "x", "GRAYLB_LOG": "y"})
    assert "SECRET_TOKEN" not in found
    assert found["GRAYLB_LOG"] == "y"
