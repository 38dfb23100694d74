"""A service registers itself: its key is in etcd while the process lives, and gone soon after.

    async with Registration("10.0.0.2:2379", service="users", version="v2", address="10.0.0.5:9001"):
        ...

Nothing is loaded that needs gRPC or pydantic before a registration is made. A service without asyncio takes
`BlockingRegistration`; one whose source cannot be touched is started by `graylb register`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

if TYPE_CHECKING:
    from graylb.control.etcd.client import Client
    from graylb.control.etcd.lease import Lease
    from graylb.control.etcd.links import Options

PREFIX: Final = "/graylb"
TTL: Final = 10
"""Seconds after which a key is gone whose process died without a word."""
WEIGHT: Final = 100


class Registration:
    """Use: `async with Registration(…) as registration: …`. Leaving takes the instance out, whatever became of etcd.

    Entering does not wait for etcd: a service that can serve does so. It is registered as soon as etcd answers, and
    again whenever the lease was lost.

    etcd: `Options`, or endpoints with commas between them. service, version, address, weight, metadata, zone: those of
    an instance in a document. id: the key's last part; by default the address, so that a service that is started again
    takes the place of the one before. prefix: of all of graylb's keys. ttl: seconds. Raises ValueError.
    """

    def __init__(
        self,
        etcd: Options | str,
        *,
        service: str,
        version: str,
        address: str,
        weight: int = WEIGHT,
        metadata: Mapping[str, str] | None = None,
        zone: str = "",
        id: str = "",
        prefix: str = PREFIX,
        ttl: int = TTL,
    ) -> None:
        from graylb.control.etcd.links import Options
        from graylb.model import values

        if ttl < 1:
            raise ValueError(f"register: ttl {ttl}: expected at least a second")
        self.options = (
            Options(tuple(each.strip() for each in etcd.split(",") if each.strip())) if isinstance(etcd, str) else etcd
        )
        self.address = checked("address", values.instance_address, address)
        service = checked("service", values.name, service)
        identity = checked("id", values.filled, id or self.address)
        self.key = f"{prefix.rstrip('/')}/services/{service}/instances/{identity}"
        self._data: dict[str, Any] = {
            "address": self.address,
            "version": checked("version", values.version, version),
            "weight": checked("weight", values.instance_weight, weight),
        }
        if metadata:
            self._data["metadata"] = {
                checked("metadata", values.filled, name): checked(f"metadata {name}", values.text, text)
                for name, text in metadata.items()
            }
        if zone:
            self._data["zone"] = checked("zone", values.text, zone)
        self._ttl = ttl
        self._lost = asyncio.Event()
        self._client: Client | None = None
        self._lease: Lease | None = None

    @property
    def value(self) -> bytes:
        """JSON, as it is put."""
        return orjson.dumps(self._data)

    @property
    def problem(self) -> str:
        """Why it is not registered now, as far as etcd said so; else ""."""
        return str(self._entered().problem or "")

    def offer(self, *, weight: int | None = None) -> None:
        """The instance is there (again), with another weight if one is given. Raises ValueError."""
        from graylb.model import values

        if weight is not None:
            self._data["weight"] = checked("weight", values.instance_weight, weight)
        self._entered().set(self.key, self.value)

    def withdraw(self) -> None:
        """It gets no more requests, until `offer`; the lease is kept."""
        self._entered().unset(self.key)

    async def settled(self) -> None:
        """Waits until etcd has what was asked for last: the instance, or its absence."""
        await self._entered().settled()

    async def lost(self) -> None:
        """Waits until the lease is lost, or nobody can know; it is asked for again meanwhile."""
        await self._lost.wait()

    async def __aenter__(self) -> Self:
        from graylb.control.etcd.client import Client
        from graylb.control.etcd.lease import Lease

        self._lost.clear()
        self._client = Client(self.options)
        self._lease = Lease(self._client, self._ttl, on_granted=self._lost.clear, on_lost=self._lost.set)
        await self._lease.__aenter__()
        self._lease.set(self.key, self.value)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        try:
            await self._entered().__aexit__()
        finally:
            await self._client.close()

    def _entered(self) -> Lease:
        if self._lease is None:
            raise RuntimeError("register: a registration is used by `with`")
        return self._lease


class BlockingRegistration:
    """`Registration` for services without asyncio: `with BlockingRegistration(…) as registration: …`, in a thread.

    The arguments are those of `Registration`. Its methods may be called from any thread. A service that forks does so
    before it registers.
    """

    def __init__(self, etcd: Options | str, **instance: Any) -> None:
        self._registration = Registration(etcd, **instance)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._entered = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def key(self) -> str:
        return self._registration.key

    @property
    def problem(self) -> str:
        """As `Registration.problem`."""
        return self._registration.problem

    def offer(self, *, weight: int | None = None) -> None:
        """As `Registration.offer`."""
        self._call(lambda: self._registration.offer(weight=weight))

    def withdraw(self) -> None:
        """As `Registration.withdraw`."""
        self._call(self._registration.withdraw)

    def settled(self, timeout: float | None = None) -> bool:
        """Whether etcd has, within `timeout` seconds, what was asked for last."""
        waiting = self._submit(self._registration.settled())
        try:
            waiting.result(timeout)
        except concurrent.futures.TimeoutError:
            waiting.cancel()
            return False
        return True

    def __enter__(self) -> Self:
        # a daemon: a process that forgets to leave still ends, and its lease after it
        self._thread = threading.Thread(target=self._run, name="graylb-registration", daemon=True)
        self._thread.start()
        self._entered.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._leave is not None
        assert self._thread is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            self._failure = error
        finally:
            self._entered.set()

    async def _live(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        async with self._registration:
            self._entered.set()
            await self._leave.wait()

    def _call(self, work: Callable[[], None]) -> None:
        async def call() -> None:
            work()

        self._submit(call()).result()

    def _submit(self, work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
        if self._loop is None:
            work.close()
            raise RuntimeError("register: a registration is used by `with`")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def checked(what: str, check: Callable[[Any], Any], value: Any) -> Any:
    """The canonical form. Raises ValueError."""
    from pydantic_core import PydanticCustomError

    from graylb.model.problems import shown

    try:
        return check(value)
    except PydanticCustomError as error:
        raise ValueError(f"register: {what} {shown(value)}: expected {(error.context or {})['expected']}") from None
