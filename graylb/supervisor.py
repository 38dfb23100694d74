"""The supervisor: binds the listeners, keeps the workers running, hands them tables, obeys signals.

One process with the control plane: `run` is the whole life of `graylb run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from graylb.control import logs
from graylb.control.logs import log
from graylb.control.plane import Plane, StartRefused
from graylb.control.prepare import Applied
from graylb.control.store import Store, state_path
from graylb.control.workers import Worker, WorkerFailed
from graylb.model.snapshot import Snapshot

BACKLOG: Final = 4096
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


class StartError(Exception):
    """Why the proxy cannot start, in one message."""


def run(options: Options, on_ready: Callable[[Supervisor], None] | None = None) -> int:
    """Serves until a signal ends it; the exit status of the process. Raises StartError.

    on_ready: called once, when every worker serves.
    """
    import uvloop

    logs.configure(options.log_format)
    return uvloop.run(Supervisor(options, on_ready).serve())


@dataclass(slots=True)
class _Bound:
    """One listener: a socket for each worker on the same address."""

    address: str
    sockets: list[socket.socket] = field(default_factory=list)


class Supervisor:
    def __init__(self, options: Options, on_ready: Callable[[Supervisor], None] | None = None) -> None:
        self.options = options
        self.on_ready = on_ready
        store = Store(options.state or state_path(options.document))
        self.plane = Plane(options.document, store)
        self.workers: list[Worker] = []
        self.listeners: list[_Bound] = []
        self._admin: _Bound | None = None
        self.draining = False
        self._announced = False
        self._started_with: Snapshot | None = None
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._keepers: list[asyncio.Task[None]] = []

    async def serve(self) -> int:
        """Start, serve, drain. Raises StartError when it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self.plane.reload)
        background: list[asyncio.Task[Any]] = []
        try:
            applied = await self.plane.start()
            self._started_with = applied.snapshot
            self._bind(applied)
            # FastAPI takes about as long to load as a worker to start
            loading = asyncio.create_task(asyncio.to_thread(importlib.import_module, "graylb.control.admin"))
            await self._start_workers(applied)
            admin = await loading
            if self._admin is not None:
                background.append(asyncio.create_task(admin.serve(self._admin.sockets[0], self.plane, self)))
            if not self._signals.empty():  # told to stop while it started
                return await self._drain()
            self._announce(applied)
            background.append(asyncio.create_task(self.plane.run(self.publish)))
            await self._until_told(background)
            return await self._drain()
        except StartRefused as error:
            raise StartError(str(error)) from error
        except WorkerFailed as error:
            raise StartError(f"cannot start: {error}") from error
        finally:
            for worker in self.workers:
                worker.kill()
            await asyncio.gather(*self._keepers, return_exceptions=True)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self._close_listeners()
            if self._admin is not None:
                self._admin.sockets[0].close()

    async def publish(self, applied: Applied, last: Applied) -> list[str]:
        """All workers serve `applied`, or, when one refuses, `last` again; then the reasons."""
        answers = await asyncio.gather(*(worker.load(applied) for worker in self.workers))
        refusals = [f"worker {w.number}: {text}" for w, text in zip(self.workers, answers, strict=True) if text]
        settled = last if refusals else applied
        await asyncio.gather(*(worker.settle(settled) for worker in self.workers))
        self._write_ports_file()
        return refusals

    @property
    def admin_address(self) -> str | None:
        return self._admin.address if self._admin else None

    def ready(self) -> bool:
        """All workers serve a table, and none is told to stop."""
        return bool(self.workers) and not self.draining and all(worker.ready.is_set() for worker in self.workers)

    def status(self) -> dict[str, Any]:
        """The process tree's part of the status."""
        return {
            "pid": os.getpid(),
            "ready": self.ready(),
            "draining": self.draining,
            "listeners": [bound.address for bound in self.listeners],
            "admin": self.admin_address,
            "restart_needed": self._restart_needed(),
            "workers": [
                {
                    "worker": worker.number,
                    "pid": worker.pid,
                    "ready": worker.ready.is_set(),
                    "revision": worker.acknowledged,
                    "restarts": worker.restarts,
                }
                for worker in self.workers
            ],
        }

    async def stats(self) -> list[dict[str, Any]]:
        """The counters of every worker; null for one that does not answer."""
        answers = await asyncio.gather(*(worker.stats() for worker in self.workers))
        return [{"worker": w.number, "stats": stats} for w, stats in zip(self.workers, answers, strict=True)]

    def _restart_needed(self) -> list[str]:
        """What the document says now and only a new start can give."""
        started, applied = self._started_with, self.plane.applied
        if started is None or applied is None:
            return []
        pairs = {
            "listeners": (started.listeners, applied.snapshot.listeners, self.options.listen),
            "admin": (started.admin, applied.snapshot.admin, self.options.admin),
            "workers": (started.workers, applied.snapshot.workers, self.options.workers),
        }
        return [name for name, (then, now, option) in pairs.items() if then != now and not option]

    def _bind(self, applied: Applied) -> None:
        count = self.options.workers or applied.snapshot.workers or len(os.sched_getaffinity(0))
        addresses = self.options.listen or tuple(listener.address for listener in applied.snapshot.listeners)
        if not addresses:
            raise StartError("the document has no listeners; expected at least one {address: host:port}")
        admin = self.options.admin or applied.snapshot.admin
        if admin is not None:
            _refuse_beyond_loopback(admin)
            self._admin = bind(admin, 1)
        for address in addresses:
            self.listeners.append(bind(address, count))
        self.workers = [
            Worker(n, [bound.sockets[n] for bound in self.listeners], on_ready=self._write_ports_file)
            for n in range(count)
        ]

    async def _start_workers(self, applied: Applied) -> None:
        """Returns when all serve, or when a signal came. Raises WorkerFailed."""
        self._keepers = [asyncio.create_task(worker.keep(applied)) for worker in self.workers]
        up = asyncio.gather(*(worker.ready.wait() for worker in self.workers))
        told = asyncio.create_task(self._told())
        try:
            tasks: list[asyncio.Future[Any]] = [up, told, *self._keepers]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()
        finally:
            up.cancel()
            told.cancel()
            await asyncio.gather(up, told, return_exceptions=True)

    async def _told(self) -> None:
        """Waits for a signal to stop, and leaves it in the queue."""
        self._signals.put_nowait(await self._signals.get())

    async def _until_told(self, background: Sequence[asyncio.Task[Any]]) -> None:
        """Returns on a signal to stop; a part of the control plane that ends by itself is a bug and stops the proxy."""
        told = asyncio.create_task(self._told())
        done, _ = await asyncio.wait([told, *background, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {told}:
            log.error("a part of the control process ended: %r; stopping", task.exception() or task.get_coro())
        told.cancel()

    async def _drain(self) -> int:
        """Workers finish what they have; a second signal or the end of the drain time ends them at once."""
        self.draining = True
        if not self._signals.empty():
            log.info("%s: draining for at most %g s", self._signals.get_nowait().name, self.options.drain)
        for worker in self.workers:
            worker.drain(self.options.drain)
        # our copies too, or the kernel would go on accepting connections that nobody serves
        self._close_listeners()
        gone = asyncio.gather(*self._keepers, return_exceptions=True)
        told = asyncio.create_task(self._signals.get())
        either: list[asyncio.Future[Any]] = [gone, told]
        await asyncio.wait(either, timeout=self.options.drain + KILL_AFTER, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            log.warning("ending the workers at once%s", f" ({told.result().name})" if told.done() else "")
            for worker in self.workers:
                worker.kill()
        told.cancel()
        await gone
        if self.options.ports_file:
            self.options.ports_file.unlink(missing_ok=True)
        return 0

    def _announce(self, applied: Applied) -> None:
        self._announced = True
        self._write_ports_file()
        for bound in self.listeners:
            log.info("listening on http://%s (revision %d)", bound.address, applied.revision)
        if self.admin_address:
            log.info("admin on http://%s", self.admin_address)
        if self.on_ready is not None:
            self.on_ready(self)

    def _write_ports_file(self) -> None:
        """{"listeners": [address], "admin": address, "pid": int, "workers": [pid], "revision": int}."""
        path = self.options.ports_file
        if path is None or self.plane.applied is None or not self._announced:
            return  # the file tells that all serve
        found = {
            "listeners": [bound.address for bound in self.listeners],
            "admin": self.admin_address,
            "pid": os.getpid(),
            "workers": [worker.pid for worker in self.workers],
            "revision": self.plane.applied.revision,
        }
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(orjson.dumps(found))
        temporary.rename(path)

    def _close_listeners(self) -> None:
        for bound in self.listeners:
            for listener in bound.sockets:
                listener.close()


def bind(address: str, count: int) -> _Bound:
    """`count` listening sockets on one `host:port`, among which the kernel spreads connections. Raises StartError.

    Port 0 lets the kernel choose, once for all of them.
    """
    host, _, port = address.rpartition(":")
    sockets: list[socket.socket] = []
    try:
        family, _, _, _, target = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # SO_REUSEPORT would let a second graylb share the port in silence, so ask without it first
        with _socket(family) as probe:
            probe.bind(target)
        for _ in range(count):
            listener = _socket(family)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(target)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            target = listener.getsockname()
    except (OSError, ValueError) as error:
        for listener in sockets:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StartError(f"cannot listen on {address}: {reason}") from error
    host, port = sockets[0].getsockname()[:2]
    return _Bound(f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}", sockets)


def _refuse_beyond_loopback(address: str) -> None:
    """Raises StartError for an admin address that others than this machine could reach."""
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    raise StartError(
        f"admin address {address}: the admin API has no authentication yet; expected a loopback address, 127.0.0.1:9900"
    )


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made
