"""Workers that hang, and clocks. The workers here are `fake_worker`, real processes."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from graylb.control import alarms
from graylb.control.watchdog import LOADING, LOOKS, Watchdog
from graylb.control.workers import Worker
from tests.control.fake_worker import HANGS
from tests.control.test_workers import Table, ask, running, until

BOUND = 0.5


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


async def watched(workers: list[Worker], while_: Callable[[], bool], bound: float = BOUND) -> None:
    """The watchdog runs until `while_` is no longer so."""
    task = asyncio.create_task(Watchdog(lambda: workers, lambda: bound).run())
    try:
        await until(lambda: not while_() or task.done())
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_stopped_worker_is_replaced_and_the_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running(2, Table(1)) as (workers, address):
            before = [worker.pid for worker in workers]
            hung = alarms.told()["worker_hung"]
            assert before[0] is not None
            os.kill(before[0], signal.SIGSTOP)
            await watched(workers, lambda: not (workers[0].restarts and workers[0].ready.is_set()))
            assert (workers[0].hung, workers[1].hung) == (1, 0)
            assert workers[1].pid == before[1]
            assert alarms.told()["worker_hung"] == hung + 1
            for _ in range(5):
                revision, pid = await ask(address)
                assert revision == 1
                assert pid in {workers[0].pid, workers[1].pid}
        assert f"worker 0 (pid {before[0]}) has given no sign of life for 0.5 s" in caplog.text
        assert "state T (stopped)" in caplog.text

    with caplog.at_level(logging.INFO, "graylb"):
        run(test)


def test_a_worker_that_answers_no_ping_is_replaced() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            await worker.settle(Table(HANGS))
            worker.table, before = Table(2), worker.pid  # for its next life
            await watched([worker], lambda: worker.pid in (before, None) or not worker.ready.is_set())
            assert worker.hung
            assert worker.acknowledged == 2

    run(test)


def test_off_means_off() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            dog = Watchdog(lambda: [worker], lambda: 0.0)
            task = asyncio.create_task(dog.run())
            said = worker.said
            await asyncio.sleep(0)
            assert worker.said == said
            assert not worker.hung
            task.cancel()

    run(test)


def test_looks_are_counted_and_not_seconds() -> None:
    """After this process itself stood still a worker has its full number of looks; any frame is a sign of life."""

    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            dog = Watchdog(lambda: [worker], lambda: BOUND)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            assert [dog.hangs(worker) for _ in range(LOOKS)] == [False] * LOOKS
            worker.said += 1
            assert [dog.hangs(worker) for _ in range(LOOKS)] == [False] * LOOKS
            assert dog.hangs(worker)
            os.kill(worker.pid, signal.SIGCONT)

    run(test)


def test_a_worker_that_loads_a_table_has_more_time() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            dog = Watchdog(lambda: [worker], lambda: BOUND)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            loading = asyncio.create_task(worker.load(Table(2)))
            await asyncio.sleep(0)
            assert [dog.hangs(worker) for _ in range(LOOKS * LOADING)] == [False] * LOOKS * LOADING
            assert dog.hangs(worker)
            os.kill(worker.pid, signal.SIGCONT)
            assert await loading is None

    run(test)


def test_one_that_drains_is_left_to_its_drain() -> None:
    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            dog = Watchdog(lambda: [worker], lambda: BOUND)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            assert not dog.hangs(worker)
            worker.drain(1.0)
            assert not any(dog.hangs(worker) for _ in range(3 * LOOKS))
            os.kill(worker.pid, signal.SIGCONT)

    run(test)


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17


def test_a_debugger_s_worker_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    async def test() -> None:
        async with running(1, Table(1)) as ([worker], _):
            if libc.ptrace(PTRACE_SEIZE, worker.pid, None, None):
                pytest.skip("this process may not trace another")
            libc.ptrace(PTRACE_INTERRUPT, worker.pid, None, None)
            await until(lambda: "t (tracing stop)" in Path(f"/proc/{worker.pid}/status").read_text())
            dog = Watchdog(lambda: [worker], lambda: BOUND)
            assert not any(dog.hangs(worker) for _ in range(3 * LOOKS))
            assert caplog.text.count("so it is left alone") == 1
            assert f"process {os.getpid()} traces it" in caplog.text
            libc.ptrace(PTRACE_DETACH, worker.pid, None, None)
            said = worker.said
            await until(lambda: worker.said > said)

    with caplog.at_level(logging.INFO, "graylb"):
        run(test)


@pytest.mark.parametrize(
    ("every", "passed", "wall", "alarm"),
    [
        (0.1, 0.1, 0.1, None),
        (0.1, 0.9, 0.9, None),
        (0.1, 3.0, 3.0, "control_stalls"),
        (0.1, 0.1, 86_400.1, "clock_jumps"),
        (0.1, 0.1, -86_399.9, "clock_jumps"),
        (10.0, 10.1, 10.1, None),
    ],
)
def test_clocks(every: float, passed: float, wall: float, alarm: str | None) -> None:
    dog = Watchdog(list, lambda: BOUND)
    dog.look_at_clocks(every, 1000.0, 5_000_000.0)
    before = alarms.told()
    dog.look_at_clocks(every, 1000.0 + passed, 5_000_000.0 + wall)
    raised = {name for name, count in alarms.told().items() if count > before[name]}
    assert raised == ({alarm} if alarm else set())
