"""The supervisor: opens the listeners, keeps the workers running, hands them tables, obeys signals.

One process with the control plane: `run` is the whole life of `graylb run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from graylb import _memory, listeners, systemd
from graylb.control import alarms, certificates, ejections, logs
from graylb.control.comparisons import Comparisons
from graylb.control.health import Health
from graylb.control.live_view import Views
from graylb.control.logs import log
from graylb.control.pace import staggered
from graylb.control.plane import Plane, StartRefused
from graylb.control.prepare import Applied
from graylb.control.reports import LogRefused, Reports
from graylb.control.spawning import Spawned
from graylb.control.store import Store, state_path
from graylb.control.told_file import ToldFile, replace_file
from graylb.control.watchdog import Watchdog, enduring
from graylb.control.workers import Nursery, Worker, WorkerFailed
from graylb.handover import HandoverFailed, Predecessor, Successor
from graylb.listeners import Bound, Given, ListenError
from graylb.model.snapshot import Access, Listener, Snapshot
from graylb.model.values import is_local
from graylb.observe.slabs import Slabs

KILL_AFTER: Final = 2.0
"""Seconds past the drain that workers have to exit by themselves."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. `listen`, `admin` and `workers` take the place of what the document says."""

    document: Path
    state: Path | None = None
    ports_file: Path | None = None
    workers: int | None = None
    listen: tuple[str, ...] = ()
    admin: str | None = None
    drain: float = 30.0  # seconds
    log_format: logs.Format = "plain"
    pid_file: Path | None = None
    roll_timeout: float = 60.0  # seconds that a successor has to be ready
    spare: bool = True  # keep a worker process in advance
    preset: Literal["edge", "sidecar"] | None = None  # fills in what the document leaves out
    log_level: logs.Level = "info"


_TOLD: Final = ("name", "role", "proxy_protocol", "trusted", "protocols", "grpc_health", "tls")
"""What a worker must know of a listener."""
Told = signal.Signals | Literal["drain"] | None
"""To stop: by a signal, by the admin API, or because a successor serves."""


class StartError(Exception):
    """Why the proxy cannot start, in one message."""


def run(
    options: Options,
    on_ready: Callable[[Supervisor], None] | None = None,
    *,
    settle: Callable[[], None] | None = None,
    early: Iterable[Spawned] = (),
) -> int:
    """Serves until a signal ends it; the exit status of the process. Raises StartError.

    on_ready: called once, when every worker serves. settle: called then and when the admin API does, for what is in
    memory mostly stays. early: worker processes that were started in advance.
    """
    import uvloop

    logs.configure(options.log_format, options.log_level)
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # when it wakes up, it does not interrupt a worker
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return uvloop.run(Supervisor(options, on_ready, settle=settle, early=early).serve())


class Supervisor:
    def __init__(
        self,
        options: Options,
        on_ready: Callable[[Supervisor], None] | None = None,
        *,
        settle: Callable[[], None] | None = None,
        early: Iterable[Spawned] = (),
    ) -> None:
        self.options = options
        self.on_ready = on_ready
        self.settle = settle
        self._tickets = certificates.Tickets()
        store = Store(options.state or state_path(options.document))
        self.plane = Plane(options.document, store, options.preset)
        self.workers: list[Worker] = []
        self.health = Health(self._health_changed)
        self.comparisons = Comparisons(lambda: self.workers)
        self.reports = Reports(options.document.parent, self._views_changed)
        self.listeners: list[Bound] = []
        self.slabs: Slabs | None = None
        self.memory = -1  # of the marks of traces, shared by the workers
        self.draining = False
        self.withdrawn = False  # somebody asked that /ready says no
        self.rolling = False
        self.roll_failed: str | None = None  # why the last one did
        self._drain_seconds = options.drain
        self._ports_file = ToldFile(options.ports_file) if options.ports_file is not None else None
        self._admin: Bound | None = None
        self._unwanted: list[Given] = []
        self._announced = False
        self._started_with: Snapshot | None = None
        self._stops: asyncio.Queue[Told] = asyncio.Queue()
        self._nursery = Nursery(early, spare=options.spare)
        self._keepers: list[asyncio.Task[None]] = []
        self._background: list[asyncio.Task[Any]] = []  # each runs for ever
        self._tasks: set[asyncio.Task[None]] = set()  # each ends by itself
        self._manager = systemd.Notifier.from_environment()

    async def serve(self) -> int:
        """Start, serve, drain. Raises StartError when it cannot start."""
        self._obey_signals()
        try:
            predecessor = Predecessor.from_environment()
            applied = await self.plane.start()
            self._started_with = applied.snapshot
            self.reports.start(applied.snapshot)
            self._open_listeners(applied, predecessor)
            loading = asyncio.create_task(self._access(applied)) if applied.snapshot.access != Access() else None
            await self._start_workers(applied)
            access = await loading if loading is not None else None  # files that it names must be good for a start
            if not self._stops.empty():  # told to stop while it started
                return await self._drain()
            if predecessor is not None:
                await self._relieve(predecessor)
            self._announce(applied)
            self.health.follow(applied.snapshot)
            if self._admin is not None:
                listener = self._admin.sockets[0]
                self._run(lambda: self._serve_admin(listener, access, applied))
            self._run(lambda: self.plane.run(self.publish))
            self._run(self._renew_tickets)
            self._run(Watchdog(lambda: self.workers, self._watchdog).run)
            await self._until_told()
            return await self._drain()
        except (StartRefused, ListenError, HandoverFailed, LogRefused) as error:
            raise StartError(str(error)) from error
        except WorkerFailed as error:
            raise StartError(f"cannot start: {error}") from error
        finally:
            await self._end()

    async def publish(self, applied: Applied, last: Applied) -> list[str]:
        """All workers serve `applied`, or, when one refuses, `last` again; then the reasons."""
        apart = self.plane.pace.apart(len(self.workers), asyncio.get_running_loop().time())
        answers = await staggered([partial(worker.load, applied) for worker in self.workers], apart)
        refusals = [f"worker {w.number}: {text}" for w, text in zip(self.workers, answers, strict=True) if text]
        settled = last if refusals else applied
        await asyncio.gather(*(worker.settle(settled) for worker in self.workers))
        self.health.follow(settled.snapshot)
        self.reports.follow(settled.snapshot)
        self._write_ports_file()
        self._manager.status(self._summary(settled.revision))
        return refusals

    def _watchdog(self) -> float:
        return self.plane.applied.snapshot.watchdog if self.plane.applied is not None else 0.0

    async def _renew_tickets(self) -> None:
        while True:
            await asyncio.sleep(certificates.RENEW_TICKETS)
            self._tickets.renew()
            for worker in self.workers:
                worker.renew()

    @property
    def admin_address(self) -> str | None:
        return self._admin.address if self._admin else None

    def ready(self) -> bool:
        """All workers serve a table, none is told to stop, and nobody asked for another answer."""
        if self.draining or self.withdrawn or not self._stops.empty():
            return False
        return bool(self.workers) and all(worker.ready.is_set() for worker in self.workers)

    def withdraw(self, withdrawn: bool) -> None:
        """Whether `ready` says no while all goes on."""
        self.withdrawn = withdrawn

    def drain(self, seconds: float | None = None) -> float:
        """As SIGTERM, with a drain time of its own if there is one; the time. A second call changes nothing."""
        if not self.draining and self._stops.empty():
            self._drain_seconds = self.options.drain if seconds is None else seconds
            self._stops.put_nowait("drain")
        return self._drain_seconds

    def status(self) -> dict[str, Any]:
        """The process tree's part of the status."""
        return {
            "pid": os.getpid(),
            "ready": self.ready(),
            "withdrawn": self.withdrawn,
            "draining": self.draining,
            "rolling": self.rolling,
            "roll_failed": self.roll_failed,
            "listeners": [bound.address for bound in self.listeners],
            "admin": self.admin_address,
            **self.reports.figures(),
            "restart_needed": self._restart_needed(),
            "workers": [worker.figures() for worker in self.workers],
            "alarms": alarms.told(),
            "ejected": ejections.of(self.workers),
        }

    def _health_changed(self) -> None:
        for worker in self.workers:
            worker.tell_health(self.health.down())

    @property
    def views(self) -> Views:
        return self.reports.views

    def _views_changed(self, wanted: list[dict[str, Any]]) -> None:
        for worker in self.workers:
            worker.tell_views(wanted)

    async def stats(self) -> list[dict[str, Any]]:
        """The counters of every worker; null for one that does not answer."""
        answers = await asyncio.gather(*(worker.stats() for worker in self.workers))
        return [{"worker": w.number, "stats": stats} for w, stats in zip(self.workers, answers, strict=True)]

    # -- start and end -------------------------------------------------------------------------------------------------

    def _obey_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._reload()))
        loop.add_signal_handler(signal.SIGUSR1, self.reports.reopen)
        loop.add_signal_handler(signal.SIGUSR2, lambda: self._begin(self._roll()))

    def _told_to_stop(self, number: signal.Signals) -> None:
        if number == signal.SIGQUIT and self.draining:
            log.info("SIGQUIT: draining already")
        else:
            self._stops.put_nowait(number)

    def _run(self, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._background.append(asyncio.create_task(enduring(begin)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _open_listeners(self, applied: Applied, predecessor: Predecessor | None) -> None:
        snapshot = applied.snapshot
        cpus = sorted(os.sched_getaffinity(0))
        count = self.options.workers or snapshot.workers or len(cpus)
        wanted = tuple(map(Listener, self.options.listen)) or snapshot.listeners
        if not wanted:
            raise StartError("the document has no listeners; expected at least one {address: host:port}")
        try:
            given = [listeners.activated(*each) for each in systemd.activated_sockets()]
        except ValueError as error:
            raise StartError(f"sockets from systemd: {error}") from error
        if predecessor is not None:
            given += predecessor.admin
        admin = self.options.admin or snapshot.admin
        if admin is not None:
            _refuse_open_to_others(admin, snapshot.access)
            (self._admin,) = listeners.open_listeners([Listener(admin, name="admin", mode=0o600)], 1, given)
        if predecessor is not None:
            given = [*predecessor.listeners, *given]
        self.listeners = listeners.open_listeners(wanted, count, given)
        self._unwanted = [each for each in given if each.origin == "made"]
        if unnamed := [f"{each.name} ({each.address})" for each in given if each.origin == "activated"]:
            served = ", ".join(each.address for each in wanted)
            raise StartError(f"no listener has the address of the socket {unnamed[0]} from systemd; there is {served}")
        self.memory = _memory.create()
        self.slabs = Slabs(count)
        self.workers = [
            Worker(
                number,
                self._nursery,
                [_told(bound.listener, each, wanted) for bound in self.listeners for each in bound.of(number, count)],
                of=count,
                cpu=cpus[number % len(cpus)] if snapshot.pin_workers else None,
                slab=self.slabs.fds[number],
                memory=self.memory,
                on_ready=self._worker_ready,
                secrets=lambda table: certificates.told(table.snapshot, self._tickets),
                pipes=self.reports.pipes,
                on_pair=self.comparisons.take,
            )
            for number in range(count)
        ]

    async def _access(self, applied: Applied) -> Any:
        """`graylb.control.admin.Access`. FastAPI takes longer to load than a worker to start."""
        module = await asyncio.to_thread(importlib.import_module, "graylb.control.admin")
        return module.Access(applied.snapshot.access, self.options.document.parent)

    async def _serve_admin(self, listener: socket.socket, access: Any, applied: Applied) -> None:
        """Callers wait in the backlog until it is loaded, which nobody else waits for."""
        access = access or await self._access(applied)
        if self.settle is not None:
            self.settle()
        await access.serve(listener, self.plane, self)

    async def _start_workers(self, applied: Applied) -> None:
        """Returns when all serve, or when told to stop. Raises WorkerFailed.

        None accepts before all have loaded the table: whoever has been accepted is served.
        """
        self._keepers = [asyncio.create_task(worker.keep(applied)) for worker in self.workers]
        if await self._unless_stopped(worker.loaded for worker in self.workers):
            for bound in self.listeners:
                bound.start()
            for worker in self.workers:
                worker.listen()
            await self._unless_stopped(worker.ready for worker in self.workers)

    async def _unless_stopped(self, events: Iterable[asyncio.Event]) -> bool:
        """Whether all these have come before a signal to stop. Raises WorkerFailed."""
        up = asyncio.gather(*(event.wait() for event in events))
        told = asyncio.create_task(self._told())
        try:
            tasks: list[asyncio.Future[Any]] = [up, told, *self._keepers]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()
            return up.done()
        finally:
            up.cancel()
            told.cancel()
            await asyncio.gather(up, told, return_exceptions=True)

    async def _told(self) -> None:
        """Waits until told to stop, and leaves what it was told in the queue."""
        self._stops.put_nowait(await self._stops.get())

    async def _until_told(self) -> None:
        """Returns when told to stop; a part of the control plane that ends by itself is a bug and stops the proxy."""
        told = asyncio.create_task(self._told())
        await asyncio.wait([told, *self._background, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        for task in (*self._background, *self._keepers):
            if task.done():
                log.error("a part of the control process ended: %r; stopping", task.exception() or task.get_coro())
        told.cancel()

    def _announce(self, applied: Applied) -> None:
        self._announced = True
        self._nursery.prepare()
        self._write_ports_file()
        if self.options.pid_file:
            replace_file(self.options.pid_file, b"%d\n" % os.getpid())
        for bound in self.listeners:
            log.info("listening on %s (revision %d)", _shown(bound.address), applied.revision)
        if self.admin_address:
            log.info("admin on %s", _shown(self.admin_address, tls=applied.snapshot.access.cert is not None))
        self._tell_ready()
        with contextlib.suppress(ValueError):
            if seconds := systemd.watchdog_seconds():
                self._run(lambda: self._keep_alive(seconds))
        if self.settle is not None:
            self.settle()
        if self.on_ready is not None:
            self.on_ready(self)

    def _worker_ready(self) -> None:
        self._write_ports_file()
        if self._announced and not self.draining:
            self._nursery.prepare()

    async def _drain(self) -> int:
        """Workers finish what they have; another signal or the end of the drain time ends them at once."""
        self.draining = True
        told = self._stops.get_nowait() if not self._stops.empty() else signal.SIGTERM
        relieved = told is None
        for task in self._tasks:
            task.cancel()
        if told is None:
            await self._end_background()  # the successor watches, and answers on the admin address
            await self.plane.close()
        else:
            log.info("%s: draining for at most %g s", _named(told), self._drain_seconds)
            self._manager.stopping("draining")
        await self._nursery.close()
        for worker in self.workers:
            worker.drain(self._drain_seconds, keep_idle=relieved)
        # our copies too, or the kernel would go on accepting connections that nobody serves
        for bound in self.listeners:
            bound.close(remove=not relieved)
        gone = asyncio.gather(*self._keepers, return_exceptions=True)
        again = asyncio.create_task(self._stops.get())
        either: list[asyncio.Future[Any]] = [gone, again]
        await asyncio.wait(either, timeout=self._drain_seconds + KILL_AFTER, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            by = again.result() if again.done() else None
            log.warning("ending the workers at once%s", f" ({_named(by)})" if by else "")
            for worker in self.workers:
                worker.kill()
        again.cancel()
        await gone
        if relieved:
            log.info("process %d is relieved and ends", os.getpid())
            if self._admin is not None:
                self._admin.close()
        else:
            self._remove_files()
        return 0

    async def _end(self) -> None:
        """Nothing is left behind, whatever became of the rest."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self.workers:
            worker.kill()
        await self._nursery.close()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._end_background()
        await self.health.close()
        await self.plane.close()
        await self.reports.close()
        for bound in (*self.listeners, *([self._admin] if self._admin else ())):
            bound.close(remove=True)
        if self.slabs is not None:
            self.slabs.close()
            os.close(self.memory)

    async def _end_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background.clear()

    # -- reload, roll and the service manager --------------------------------------------------------------------------

    async def _reload(self) -> None:
        log.info("SIGHUP: looking at the configuration again")
        if self._announced:
            self._manager.reloading()
        await self.plane.reload()
        self._tell_ready()

    async def _roll(self) -> None:
        """A new process takes over; if it does not, nothing has happened."""
        if self.rolling or self.draining or not self._announced:
            log.warning("SIGUSR2: there is %s; ignored", "a roll under way" if self.rolling else "nothing to roll now")
            return
        self.rolling = True
        try:
            if os.getpid() == 1:
                raise HandoverFailed("process 1 of a container ends the container with it; replace the container")
            successor = Successor.start(self.listeners, self._admin)
            log.info("SIGUSR2: process %d starts, to take over from %d", successor.pid, os.getpid())
            try:
                pid = await successor.ready(self.options.roll_timeout)
                self._hand_over(successor, pid)
            except BaseException:
                await successor.abandon()
                raise
            log.info("process %d serves; %d drains for at most %g s", pid, os.getpid(), self.options.drain)
        except HandoverFailed as error:
            self.rolling = False
            self.roll_failed = str(error)
            log.error("no roll: %s; process %d goes on", error, os.getpid())

    def _hand_over(self, successor: Successor, pid: int) -> None:
        """Nothing waits here: both processes know, or none. Raises HandoverFailed."""
        self._manager.main_process(pid)  # what it says itself is not believed before
        try:
            successor.go()
        except HandoverFailed:
            self._manager.main_process(os.getpid())
            raise
        self.draining = True
        self._stops.put_nowait(None)

    async def _relieve(self, predecessor: Predecessor) -> None:
        """From now on the listeners' files and the pid file are ours. Raises HandoverFailed."""
        await predecessor.relieve()
        for bound in (*self.listeners, *([self._admin] if self._admin else ())):
            bound.own()
        listeners.discard(self._unwanted)

    async def _keep_alive(self, seconds: float) -> None:
        """Tells the service manager so, as long as every worker that should answer does, and one at least serves."""
        while True:
            answers = await asyncio.gather(*(worker.answers() for worker in self.workers))
            hung = [worker.number for worker, answered in zip(self.workers, answers, strict=True) if not answered]
            if hung:
                log.error("worker %d does not answer", hung[0])
            elif any(worker.ready.is_set() for worker in self.workers):
                self._manager.alive()
            await asyncio.sleep(seconds / 3)

    def _tell_ready(self) -> None:
        applied = self.plane.applied
        if self._announced and not self.draining and applied is not None:
            self._manager.ready(self._summary(applied.revision))
            if self._manager.error:
                log.warning("the service manager cannot be told: %s", self._manager.error)

    def _summary(self, revision: int) -> str:
        where = ", ".join(bound.address for bound in self.listeners)
        refused = "; a newer configuration is refused" if self.plane.refusal else ""
        return f"revision {revision} on {where}, {len(self.workers)} workers{refused}"

    # -- files and figures ---------------------------------------------------------------------------------------------

    def _restart_needed(self) -> list[str]:
        """What the document says now and only a new start, or a roll, can give."""
        started, applied = self._started_with, self.plane.applied
        if started is None or applied is None:
            return []
        then, now = started, applied.snapshot
        pairs = {
            "listeners": (_fixed(then.listeners), _fixed(now.listeners), self.options.listen),
            "admin": (then.admin, now.admin, self.options.admin),
            "admin.token_file, admin.tls": (then.access, now.access, None),
            "workers": (then.workers, now.workers, self.options.workers),
            "pin_workers": (then.pin_workers, now.pin_workers, None),
        }
        changed = [name for name, (before, after, option) in pairs.items() if before != after and not option]
        return [*changed, *(self.plane.side.moved if self.plane.side is not None else [])]

    def _write_ports_file(self) -> None:
        """{"listeners": [address], "admin": address, "pid": int, "workers": [pid], "revision": int}."""
        file = self._ports_file
        if file is None or self.plane.applied is None or not self._announced or self.draining:
            return  # the file tells that all serve
        found = {
            "listeners": [bound.address for bound in self.listeners],
            "admin": self.admin_address,
            "pid": os.getpid(),
            "workers": [worker.pid for worker in self.workers],
            "revision": self.plane.applied.revision,
        }
        try:
            file.write(orjson.dumps(found), self._write_ports_file)
        except OSError as error:
            raise StartError(f"{file.path} cannot be written: {error.strerror}") from error

    def _remove_files(self) -> None:
        if self.options.ports_file:
            self.options.ports_file.unlink(missing_ok=True)
        pid_file = self.options.pid_file
        if pid_file and pid_file.exists() and pid_file.read_text().strip() == str(os.getpid()):
            pid_file.unlink()


def _told(listener: Listener, made: socket.socket, among: Iterable[Listener]) -> dict[str, Any]:
    """What a worker must know of one of its sockets."""
    said = asdict(listener)
    said["protocols"] = certificates.protocols_of(listener)
    said["tls"] = certificates.key_of(listener, among) if listener.tls else None
    return {"fd": made.fileno(), **{key: said[key] for key in _TOLD}}


def _fixed(wanted: Iterable[Listener]) -> list[Listener]:
    """What of listeners is for their life: certificates are not, but whether there are any."""
    return [replace(each, tls=each.tls and ("tls",)) for each in wanted]  # type: ignore[arg-type]


def _refuse_open_to_others(address: str, access: Access) -> None:
    """Raises StartError for an admin address, of the command line, where others could do all without being asked."""
    if not is_local(address) and access.token_file is None and access.client_ca is None:
        raise StartError(
            f"admin address {address}: others could reach it without a token or a certificate; expected a loopback "
            "address, 127.0.0.1:9900, or unix:/path, or in the document's admin: a token_file or tls with a client_ca"
        )


def _named(told: Told) -> str:
    return told.name if isinstance(told, signal.Signals) else "told to drain"


def _shown(address: str, *, tls: bool = False) -> str:
    return address if address.startswith(listeners.UNIX) else f"http{'s' if tls else ''}://{address}"
