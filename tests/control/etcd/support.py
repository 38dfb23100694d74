"""What tests on etcd share: a loop as in the control process, and a consumer that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvloop

from graylb.control.etcd.client import Client
from graylb.control.etcd.links import Options
from graylb.control.etcd.mailbox import Changed, Event, Loaded
from graylb.control.etcd.reflector import Reflector
from graylb.control.etcd.values import KeyValue
from tests.control.etcd.servers import Cluster

T = TypeVar("T")
PATIENCE = 40.0


def run(test: Coroutine[Any, Any, T], seconds: float = PATIENCE) -> T:
    """To its end, within `seconds`, with no task left behind."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            result = await test
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # gRPC's own are told of the end of a call a little later
            _, left = await asyncio.wait(left, timeout=2)
        assert not left, f"left behind: {left}"
        return result

    return uvloop.run(bounded())


async def until(look: Callable[[], T], what: str) -> T:
    """The first true answer of `look`; `run` bounds the wait."""
    try:
        while not (found := look()):  # noqa: ASYNC110 it looks at what tells nobody
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        raise AssertionError(f"{what}: not in time") from None
    return found


async def eventually(look: Callable[[], Awaitable[T]], what: str) -> T:
    """The first true answer of `look`, which asks; `run` bounds the wait."""
    try:
        while not (found := await look()):  # noqa: ASYNC110 it looks at what tells nobody
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        raise AssertionError(f"{what}: not in time") from None
    return found


def client(cluster: Cluster, **options: Any) -> Client:
    return Client(Options(cluster.endpoints, **options))


class Follower:
    """Consumes a reflector's events into `seen` and, as a consumer would, into `state`."""

    def __init__(self, reflector: Reflector) -> None:
        self.reflector = reflector
        self.seen: list[Event] = []
        self.state: dict[str, KeyValue] = {}

    async def follow(self) -> None:
        async for event in self.reflector:
            self.seen.append(event)
            if isinstance(event, Loaded):
                self.state = dict(event.items)
            elif isinstance(event, Changed):
                for key, now in event.changes.items():
                    if now is None:
                        del self.state[key]  # it was there, or nothing would have been said
                    else:
                        self.state[key] = now

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]

    def values(self) -> dict[str, bytes]:
        return {key: each.value for key, each in self.state.items()}

    async def until_values(self, wanted: dict[str, bytes]) -> None:
        await until(lambda: self.values() == wanted, f"{wanted} instead of {self.values()}")

    async def until_kind(self, kind: type[Event], count: int = 1) -> Any:
        """The `count`-th event of that kind."""
        name = kind.__name__
        await until(lambda: self.kinds().count(name) >= count, f"{count} {name} among {self.kinds()}")
        return [event for event in self.seen if type(event).__name__ == name][count - 1]


@asynccontextmanager
async def following(reflector: Reflector) -> AsyncIterator[Follower]:
    async with reflector:
        follower = Follower(reflector)
        task = asyncio.create_task(follower.follow())
        try:
            yield follower
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result()
