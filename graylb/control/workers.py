"""One worker as the supervisor sees it: a process with a role, handed tables, asked for acknowledgements, replaced."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from graylb.control import alarms, ejections
from graylb.control.logs import log
from graylb.control.spawning import MODULE, Spawned, spawn
from graylb.proxy import channel

ACK_PATIENCE: Final = 30.0
"""Seconds that a worker may take to load a table; then it counts as refused."""
STATS_PATIENCE: Final = 2.0
PING_PATIENCE: Final = 2.0
ENDED_EVERY: Final = 0.05
EARLY_DEATH: Final = 1.0
BACKOFF: Final = (0.1, 5.0)
"""Seconds before a worker that died within EARLY_DEATH starts again, or a spare one that died: first and most."""


class Table(Protocol):
    """What a worker is handed."""

    @property
    def revision(self) -> int: ...
    @property
    def image(self) -> bytes: ...


class WorkerFailed(Exception):
    """A worker ended or refused its table before it ever served."""


class Process:
    """One worker process and our end of its channel. It does nothing until it is given a role by `begin`."""

    def __init__(self, spawned: Spawned) -> None:
        self._process, self._channel = spawned.process, spawned.channel
        self._writer: asyncio.StreamWriter | None = None
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def begin(self, role: dict[str, Any], pipes: Sequence[int] = ()) -> asyncio.StreamReader:
        """Hands over the role, the sockets that it names, pipes, the slab and the memory; what the process says.

        Raises OSError when it is gone.
        """
        listening = [each["fd"] for each in role["listeners"]]
        fds = [*listening, *pipes]
        told: dict[str, Any] = {"pipes": list(range(len(listening), len(fds)))}
        for each in ("slab", "memory"):
            told[each] = None if role[each] is None else len(fds)
            if role[each] is not None:
                fds.append(role[each])
        for first in range(0, len(fds), channel.SOCKETS_AT_ONCE):
            socket.send_fds(
                self._channel, [channel.encode(channel.SOCKETS)], fds[first : first + channel.SOCKETS_AT_ONCE]
            )
        reader, self._writer = await asyncio.open_connection(sock=self._channel)
        # a descriptor has another number over there: what counts is which one of them it is
        told["listeners"] = [{**each, "fd": number} for number, each in enumerate(role["listeners"])]
        self.send(channel.encode_json(channel.ROLE, {**role, **told}))
        return reader

    def send(self, data: bytes) -> None:
        if self._writer is not None:
            self._writer.write(data)

    def kill(self) -> None:
        if self.alive:
            self._process.kill()

    async def ended(self) -> int:
        """Its exit status, once it is gone."""
        if self.alive:
            loop, gone = asyncio.get_running_loop(), asyncio.Event()
            try:
                fd = os.pidfd_open(self.pid)
            except OSError as error:  # out of descriptors: ask instead
                alarms.note(error)
                while (status := self._process.poll()) is None:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(ENDED_EVERY)
                return status
            loop.add_reader(fd, gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(fd)
                os.close(fd)
        return self._process.wait()

    def close(self) -> None:
        """Ends the channel; a worker without one ends itself."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._channel.close()


class Nursery:
    """Starts worker processes, and keeps one in advance: a worker that died is replaced without waiting for Python.

    early: processes that were started before it was known how many are wanted.
    """

    def __init__(self, early: Iterable[Spawned] = (), module: str = MODULE, *, spare: bool = True) -> None:
        self.module = module
        self.spare: Process | None = None
        self._early = list(early)
        self._wanted = spare
        self._keeper: asyncio.Task[None] | None = None
        self._taken = asyncio.Event()

    def take(self) -> Process:
        """A process without a role: one that waits, or else a new one. Raises OSError when it cannot be started."""
        process, self.spare = self.spare, None
        self._taken.set()
        if process is not None and process.alive:
            return process
        return self._next()

    def prepare(self) -> None:
        """Keeps a spare process from now on, and no other one."""
        if self._wanted and self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        elif self._keeper is None:
            self._drop_early()

    async def close(self) -> None:
        """No spare any more. A worker that dies is still replaced, slowly."""
        spare = self.spare
        self._drop_early()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if spare is not None:
            await spare.ended()

    def _next(self) -> Process:
        while self._early:
            early = self._early.pop(0)
            if early.process.poll() is None:
                return Process(early)
            early.end()
        return Process(spawn(self.module))

    def _drop_early(self) -> None:
        while self._early:
            self._early.pop().end()

    async def _keep(self) -> None:
        delay = 0.0
        while True:
            self._taken.clear()
            try:
                spare = self.spare = self._next()
            except OSError as error:
                delay = min(max(BACKOFF[0], delay * 2), BACKOFF[1])
                alarms.note(error)
                log.warning("no spare worker can be started: %s", error.strerror)
                await asyncio.sleep(delay)
                continue
            self._drop_early()
            waits = {asyncio.create_task(self._taken.wait()), asyncio.create_task(spare.ended())}
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waits:
                    task.cancel()
                if self.spare is spare:  # dead, or not wanted any more
                    self.spare = None
                    spare.kill()
                    spare.close()
            if self._taken.is_set():
                delay = 0.0
            else:
                delay = min(max(BACKOFF[0], delay * 2), BACKOFF[1])
                log.warning("the spare worker (pid %d) ended; starting another", spare.pid)
                await asyncio.sleep(delay)


class Worker:
    """Keeps one worker running. Its sockets stay open here, so connections in their backlogs outlive a dead worker.

    listeners: what each of its sockets is, as `Engine.listen` takes it; tls: the key of its certificates, or None.
    of: how many workers there are. cpu: the only one that it may run on. slab: the descriptor of what it counts in,
    which outlives it. memory: likewise of the marks of traces. secrets: what a worker needs besides a table, the
    payload of a frame. pipes: ends for each process that is started, of the access log and of live views; they are
    closed here.
    on_pair: takes both answers to a mirrored request, see `tell_mirror`.
    """

    def __init__(
        self,
        number: int,
        nursery: Nursery,
        listeners: Iterable[dict[str, Any]],
        *,
        of: int = 1,
        cpu: int | None = None,
        slab: int | None = None,
        memory: int | None = None,
        on_ready: Callable[[], None] = lambda: None,
        secrets: Callable[[Any], bytes] = lambda table: b"",
        pipes: Callable[[], Sequence[int]] = tuple,
        on_pair: Callable[[dict[str, Any]], None] = lambda told: None,
    ) -> None:
        self.on_pair = on_pair
        self.pipes = pipes
        self.number = number
        self.secrets = secrets
        self.nursery = nursery
        self.role: dict[str, Any] = {"worker": number, "workers": of, "cpu": cpu, "slab": slab, "memory": memory}
        self.role["listeners"] = list(listeners)
        self.on_ready = on_ready
        self.table: Table | None = None
        self.loaded = asyncio.Event()
        self.ready = asyncio.Event()
        self.acknowledged: int | None = None
        self.restarts = 0
        self.hung = 0  # times that it was ended because it did nothing any more
        self.said = 0  # frames that came from it, in all its lives
        self.recovered: float | None = None  # seconds that the last restart took, from death to serving
        self._died = 0.0
        self._listening = False
        self._stopping = asyncio.Event()
        self._process: Process | None = None
        self._connected = False
        self._sent: Table | None = None
        self._sent_secrets = b""
        self._health = b""
        self.ejected: list[dict[str, Any]] = []  # instances, see control.ejections
        self._views = b""
        self._acks: deque[asyncio.Future[str | None]] = deque()
        self._stats: deque[asyncio.Future[dict[str, Any] | None]] = deque()
        self._pings: deque[asyncio.Future[None]] = deque()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def figures(self) -> dict[str, Any]:
        """What the status tells of it."""
        return {
            "worker": self.number,
            "pid": self.pid,
            "ready": self.ready.is_set(),
            "revision": self.acknowledged,
            "restarts": self.restarts,
            "hung": self.hung,
            "recovered": self.recovered,
        }

    async def keep(self, table: Table) -> None:
        """Runs the worker with `table`, and again whenever it dies, until `drain` or `kill`. It listens after `listen`.

        Raises WorkerFailed when it never took a table at all: starting it again would not help.
        """
        self.table = table
        delay = 0.0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            why = await self._one_life()
            if self._stopping.is_set():
                return
            if self.acknowledged is None:
                raise WorkerFailed(f"worker {self.number} {why} before it served")
            delay = min(max(BACKOFF[0], delay * 2), BACKOFF[1]) if loop.time() - started < EARLY_DEATH else 0.0
            log.warning("worker %d %s; starting it again", self.number, why)
            self.restarts += 1
            alarms.count("worker_respawns")
            await asyncio.sleep(delay)

    def listen(self) -> None:
        """Clients are accepted from now on, also after a restart."""
        self._listening = True
        self._send(channel.encode(channel.LISTEN))

    async def load(self, table: Table) -> str | None:
        """Hands the worker a table; the reason when it refuses. A worker that is not up takes it when it starts."""
        if not self._connected:
            return None
        taken: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._acks.append(taken)
        self._sent = table
        self._tell_secrets(table)
        self._send(channel.encode(channel.TABLE, table.image))
        try:
            return await asyncio.wait_for(asyncio.shield(taken), ACK_PATIENCE)
        except TimeoutError:
            return f"did not acknowledge within {ACK_PATIENCE:g} s"

    def renew(self) -> None:
        """The secrets have changed, and the table has not."""
        if self._connected and self._sent is not None:
            self._tell_secrets(self._sent)

    def _tell_secrets(self, table: Table) -> None:
        secrets = self.secrets(table)
        if secrets and secrets != self._sent_secrets:
            self._sent_secrets = secrets
            self._send(channel.encode(channel.CERTIFICATES, secrets))

    async def settle(self, table: Table) -> str | None:
        """`table` is served from now on, also after a restart; it is sent unless it was the last one sent."""
        self.table = table
        return await self.load(table) if self._sent is not table else None

    def tell_health(self, down: Iterable[tuple[str, str]]) -> None:
        """The instances, as service and address, that are ill; a worker that starts later is told before its table."""
        self._health = channel.encode_json(channel.HEALTH, list(down))
        self._send(self._health)

    def tell_views(self, wanted: Iterable[dict[str, Any]]) -> None:
        """Which requests live views want, see `live_view.Wanted`; also after a restart."""
        self._views = channel.encode_json(channel.VIEWS, list(wanted))
        self._send(self._views)

    def tell_mirror(self, told: dict[str, Any]) -> None:
        """Both answers to mirrored requests of a service are wanted: service, seconds, requests."""
        self._send(channel.encode_json(channel.MIRROR, told))

    async def stats(self) -> dict[str, Any] | None:
        """The worker's counters; None when it is not up or does not answer."""
        if not self.ready.is_set():
            return None
        answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._send(channel.encode(channel.STATS))
        try:
            return await asyncio.wait_for(asyncio.shield(answer), STATS_PATIENCE)
        except TimeoutError:
            return None

    async def answers(self) -> bool:
        """Whether it does something else than hang; one that is being started is left alone."""
        if not self.ready.is_set():
            return True
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings.append(answer)
        self._send(channel.encode(channel.PING))
        try:
            await asyncio.wait_for(asyncio.shield(answer), PING_PATIENCE)
        except TimeoutError:
            return False
        return True

    @property
    def loading(self) -> bool:
        """Whether it has a table that it has not acknowledged yet."""
        return bool(self._acks)

    @property
    def stopping(self) -> bool:
        """Whether it was told to end, and is not started again."""
        return self._stopping.is_set()

    def ping(self) -> None:
        """Asks for a sign of life, which `said` counts."""
        self._pings.append(asyncio.get_running_loop().create_future())
        self._send(channel.encode(channel.PING))

    def replace(self) -> None:
        """Ends the process, which hangs; another one takes its place."""
        self.hung += 1
        if self._process is not None:
            self._process.kill()

    def drain(self, seconds: float, *, keep_idle: bool = False) -> None:
        """Tells the worker to finish what it has and exit; it is not started again.

        keep_idle: idle clients may ask once more, for somebody else accepts their next connection.
        """
        self._stopping.set()
        self._send(channel.encode_json(channel.DRAIN, {"seconds": seconds, "keep_idle": keep_idle}))

    def kill(self) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    async def _one_life(self) -> str:
        """A process from start to end. Returns in words why it ended."""
        try:
            process = self.nursery.take()
        except OSError as error:  # out of processes or descriptors, or the interpreter was removed from the disk
            alarms.note(error)
            return f"cannot be started: {error.strerror}"
        refusal = await self._live(process)
        status = await process.ended()
        self._process = None
        return refusal or f"(pid {process.pid}) ended with status {status}"

    def _its_pipes(self) -> Sequence[int]:
        """None when there are no descriptors for them: a worker without a log is better than no worker."""
        try:
            return self.pipes()
        except OSError as error:
            alarms.note(error)
            log.error("worker %d has no access log: %s", self.number, error.strerror)
            return ()

    async def _live(self, process: Process) -> str | None:
        """One process from its role to its end. Returns why it refused its first table, if it did."""
        self._process = process
        assert self.table is not None
        if self._stopping.is_set():
            process.kill()
            return None
        first: asyncio.Task[str | None] | None = None
        try:
            pipes = self._its_pipes()
            try:
                reader = await process.begin(self.role, pipes)
            finally:
                for fd in pipes:
                    os.close(fd)
            if not self._stopping.is_set():
                self._connected = True
                self._sent_secrets = b""
                first = asyncio.create_task(self._begin(self.table, process))
                await self._listen(reader)
        except OSError as error:
            log.warning("worker %d cannot be given its role: %s", self.number, error.strerror)
        finally:
            self._died = asyncio.get_running_loop().time()
            self.ready.clear()
            self.loaded.clear()
            self.ejected = []
            self._connected = False
            self._abandon()
            process.close()
            if first is None or not self._stopping.is_set():
                process.kill()  # without a channel it serves nobody's table
        return None if self.acknowledged is not None or first is None else await first

    async def _begin(self, table: Table, process: Process) -> str | None:
        """Hands over the first table; a worker that does not take it has nothing to serve."""
        refusal = await self.load(table)
        if refusal is not None:
            process.kill()
        else:
            self._send(self._health)  # before it may accept anybody
            self._send(self._views)
            self.loaded.set()
            if self._listening:
                self.listen()
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
        self.said += 1
        if frame.type == channel.READY:
            if self.restarts:
                self.recovered = asyncio.get_running_loop().time() - self._died
                log.info("worker %d serves again after %d ms", self.number, self.recovered * 1000)
            self.ready.set()
            self.on_ready()
        elif frame.type == channel.ACK:
            answer = frame.json()
            error = answer.get("error")
            if error is None:
                self.acknowledged = answer["revision"]
            if self._acks:
                self._acks.popleft().set_result(error)
        elif frame.type == channel.MIRROR:
            self.on_pair(frame.json())
        elif frame.type == channel.EJECTED:
            self.ejected = ejections.taken(self.number, self.ejected, frame.json())
        elif frame.type == channel.STATS and self._stats:
            self._stats.popleft().set_result(frame.json())
        elif frame.type == channel.PING and self._pings:
            self._pings.popleft().set_result(None)

    def _abandon(self) -> None:
        while self._acks:
            self._acks.popleft().set_result("ended while it loaded the table")
        for waiting in (self._stats, self._pings):
            while waiting:
                waiting.popleft().set_result(None)

    def _send(self, data: bytes) -> None:
        if self._connected and self._process is not None:
            self._process.send(data)
