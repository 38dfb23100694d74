"""One worker process as the supervisor sees it: spawn, hand tables, collect acknowledgements, start again."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import graylb
from graylb.control.logs import log
from graylb.proxy import channel

MODULE: Final = "graylb.proxy.worker"
ACK_PATIENCE: Final = 30.0
"""Seconds that a worker may take to load a table; then it counts as refused."""
STATS_PATIENCE: Final = 2.0
EARLY_DEATH: Final = 1.0
BACKOFF: Final = (0.1, 5.0)
"""Seconds before a worker that died within EARLY_DEATH starts again: first and most."""

_PASSED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG")
_PASSED_PREFIXES = ("LC_", "PYTHON", "LD_", "ASAN_", "UBSAN_", "GRAYLB_", "COVERAGE_", "COV_")


class Table(Protocol):
    """What a worker is handed."""

    @property
    def revision(self) -> int: ...
    @property
    def image(self) -> bytes: ...


class WorkerFailed(Exception):
    """A worker ended or refused its table before it ever served."""


class Worker:
    """Keeps one worker running. `sockets` stay open here, so connections in their backlogs outlive a dead worker."""

    def __init__(
        self,
        number: int,
        sockets: Sequence[socket.socket],
        module: str = MODULE,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = number
        self.on_ready = on_ready
        self.module = module
        self.sockets = tuple(sockets)
        self.table: Table | None = None
        self.pid: int | None = None
        self.ready = asyncio.Event()
        self.acknowledged: int | None = None
        self.restarts = 0
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._sent: Table | None = None
        self._acks: deque[asyncio.Future[str | None]] = deque()
        self._stats: deque[asyncio.Future[dict[str, Any]]] = deque()

    async def keep(self, table: Table) -> None:
        """Runs the worker with `table`, and again whenever it dies, until `drain` or `kill`.

        Raises WorkerFailed when it never served at all: starting it again would not help.
        """
        self.table = table
        delay, served = 0.0, False
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            refusal = await self._live()
            served = served or self.acknowledged is not None
            code = self._process.returncode if self._process else None
            pid, self._process, self.pid = self.pid, None, None
            if self._stopping.is_set():
                return
            if not served:
                raise WorkerFailed(f"worker {self.number} {refusal or f'ended with status {code}'} before it served")
            delay = min(max(BACKOFF[0], delay * 2), BACKOFF[1]) if loop.time() - started < EARLY_DEATH else 0.0
            log.warning("worker %d (pid %s) ended with status %s; starting it again", self.number, pid, code)
            self.restarts += 1
            await asyncio.sleep(delay)

    async def load(self, table: Table) -> str | None:
        """Hands the worker a table; the reason when it refuses. A worker that is not up takes it when it starts."""
        if self._writer is None:
            return None
        taken: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._acks.append(taken)
        self._sent = table
        self._send(channel.encode(channel.TABLE, table.image))
        try:
            return await asyncio.wait_for(asyncio.shield(taken), ACK_PATIENCE)
        except TimeoutError:
            return f"did not acknowledge within {ACK_PATIENCE:g} s"

    async def settle(self, table: Table) -> str | None:
        """`table` is served from now on, also after a restart; it is sent unless it was the last one sent."""
        self.table = table
        return await self.load(table) if self._sent is not table else None

    async def stats(self) -> dict[str, Any] | None:
        """The worker's counters; None when it is not up or does not answer."""
        if self._writer is None or not self.ready.is_set():
            return None
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._send(channel.encode(channel.STATS))
        try:
            return await asyncio.wait_for(asyncio.shield(answer), STATS_PATIENCE)
        except (TimeoutError, ConnectionError):
            return None

    def drain(self, seconds: float) -> None:
        """Tells the worker to finish what it has and exit; it is not started again."""
        self._stopping.set()
        self._send(channel.encode_json(channel.DRAIN, {"seconds": seconds}))

    def kill(self) -> None:
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _live(self) -> str | None:
        """One process from start to end. Returns why it refused its first table, if it did."""
        ours, theirs = socket.socketpair()
        with theirs:
            listen = [listener.fileno() for listener in self.sockets]
            command = [sys.executable, "-P", "-m", self.module, "--channel", str(theirs.fileno())]
            command += ["--listen", ",".join(map(str, listen)), "--worker", str(self.number)]
            # a session of its own: Ctrl-C reaches the supervisor only, which drains the workers
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *listen],
                env=worker_environment(),
                start_new_session=True,
            )
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours)
        assert self.table is not None
        table = self.table
        first = asyncio.create_task(self._begin(table, self._process))
        try:
            await self._listen(reader)
        finally:
            self.ready.clear()
            self._writer.close()
            self._writer = None
            self._abandon()
            if self._process.returncode is None and not self._stopping.is_set():
                self._process.terminate()  # without a channel it serves nobody's table
        await self._process.wait()
        return None if self.acknowledged is not None else await first

    async def _begin(self, table: Table, process: asyncio.subprocess.Process) -> str | None:
        """Hands over the first table; a worker that does not take it has nothing to serve."""
        refusal = await self.load(table)
        if refusal is not None and process.returncode is None:
            process.terminate()
        return refusal

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        decoder = channel.Decoder()
        try:
            while data := await reader.read(1 << 16):
                for frame in decoder.feed(data):
                    await self._take(frame)
            decoder.eof()
        except channel.ChannelError as error:
            log.error("worker %d: %s", self.number, error)
        except ConnectionError:
            pass  # it died; its exit status tells more

    async def _take(self, frame: channel.Frame) -> None:
        if frame.type == channel.READY:
            self.ready.set()
            self.on_ready()
        elif frame.type == channel.ACK:
            answer = frame.json()
            error = answer.get("error")
            if error is None:
                self.acknowledged = answer["revision"]
            if self._acks:
                self._acks.popleft().set_result(error)
        elif frame.type == channel.STATS and self._stats:
            self._stats.popleft().set_result(frame.json())

    def _abandon(self) -> None:
        while self._acks:
            self._acks.popleft().set_result("ended while it loaded the table")
        while self._stats:
            self._stats.popleft().set_exception(ConnectionResetError())

    def _send(self, data: bytes) -> None:
        if self._writer is not None:
            self._writer.write(data)


def worker_environment() -> dict[str, str]:
    """Of this process's environment what an interpreter needs, and the place of this very package."""
    kept = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
    root = str(Path(graylb.__file__).resolve().parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))
    return kept
