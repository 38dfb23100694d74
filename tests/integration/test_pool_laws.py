"""Pools under anything: requests that come, go, wait and fail in random order while tables change.

The laws, looked at after each step once everything has had its turn: no instance has more connections than its maximum,
nobody waits beside room, what is counted is what is there; and in the end everybody has got an answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.integration.engines import Ask, Caller, Origin, Rig, gather, request, run, service, turns, until

STEPS = 120


async def bye(ask: Ask) -> None:
    await ask.read_body()
    await ask.go.wait()
    ask.answer(b"bye", "connection: close")
    ask.link.close()


async def cut(ask: Ask) -> None:
    await ask.read_body()
    await ask.go.wait()
    raise EOFError


class Play:
    """One random play: `origins` of one service, callers of all kinds."""

    def __init__(self, rig: Rig, choose: random.Random, origins: list[Origin], proxied: bool) -> None:
        self.rig, self.choose, self.origins, self.proxied = rig, choose, origins, proxied
        self.open: list[Caller] = []
        self.part: list[Caller] = []  # those whose body is not complete yet
        self.most = 1
        self.lowered: set[str] = set()
        self.table()

    def table(self) -> None:
        """Another maximum, perhaps another set of instances; the first is always there."""
        chosen = [origin for origin in self.origins if origin is self.origins[0] or self.choose.random() < 0.7]
        self.most = self.choose.choice([1, 1, 2, 3])
        more = {
            "max": self.most,
            "queue": self.choose.choice([2, 100, 100]),
            "queue_timeout": self.choose.choice([0.05, 60.0, 60.0]),
            "idle": self.choose.choice([0, 1, 100]),
            "proxy_protocol": "v2" if self.proxied else "off",
        }
        self.rig.swap(service(*chosen, connections=more))

    async def come(self) -> None:
        path = self.choose.choice(["/hold", "/hold", "/", "/bye", "/cut"])
        kind = self.choose.choice(["GET", "POST", "part"])
        caller = await self.rig.caller()
        if kind == "part":
            caller.write(request("POST", path, "Content-Length: 10") + b"half-")
            self.part.append(caller)
        else:
            size = self.choose.choice([0, 100, 70_000])
            caller.write(request(kind, path, body=None if kind == "GET" else b"x" * size))
        self.open.append(caller)

    async def finish(self) -> None:
        if self.part:
            caller = self.part.pop(self.choose.randrange(len(self.part)))
            if not caller.eof:
                caller.write(b"done!")

    async def go(self) -> None:
        if self.open:
            caller = self.open.pop(self.choose.randrange(len(self.open)))
            if caller in self.part:
                self.part.remove(caller)
            if not caller.lost:
                self.choose.choice([caller.close, caller.reset])()

    async def answer(self) -> None:
        held = [ask for origin in self.origins for ask in origin.asks if not ask.go.is_set()]
        for ask in self.choose.sample(held, min(len(held), self.choose.choice([1, 1, 3]))):
            ask.go.set()

    async def kill_links(self) -> None:
        """An instance resets everything it has."""
        for link in self.choose.choice(self.origins).open:
            link.reset()

    async def change(self) -> None:
        self.table()

    async def steps(self) -> None:
        work: list[Callable[[], Awaitable[None]]] = [
            *[self.come] * 6,
            *[self.answer] * 5,
            *[self.finish] * 2,
            self.go,
            self.kill_links,
            self.change,
        ]
        for _ in range(STEPS):
            for _ in range(self.choose.choice([1, 1, 2, 4])):
                await self.choose.choice(work)()
            await turns(self.choose.choice([1, 5, 30]))
            await until(self.lawful, lambda: self.rig.stats)

    def lawful(self) -> bool:
        """Of the instances that the table names. Asked again until it holds: what is on its way may be seen late."""
        found = []
        for each in self.rig.stats["instances"]:
            busy = each["open"] - each["idle"]
            found.append(not each["waiting"] or (each["idle"] == 0 and each["open"] >= self.most))
            found.append(each["in_flight"] == busy)
        return all(found)

    async def end(self) -> None:
        """Everything is answered: each caller that is left has an answer, whatever it says."""
        releasing = asyncio.get_running_loop().create_task(self.release())
        for caller in self.part:
            if not caller.eof:
                caller.write(b"done!")
        answers = await gather(caller.answer() for caller in self.open)
        assert {answer.status for answer in answers} <= {200, 502, 503}
        releasing.cancel()

    async def release(self) -> None:
        while True:
            for origin in self.origins:
                for ask in origin.asks:
                    ask.go.set()
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_laws_hold_whatever_happens(seed: int, proxied: bool) -> None:
    async def test(rig: Rig) -> None:
        origins = [await rig.origin(proxied=proxied) for _ in range(3)]
        for origin in origins:
            origin.handlers |= {"/bye": bye, "/cut": cut}
        play = Play(rig, random.Random(seed), origins, proxied)
        await play.steps()
        await play.end()

    run(test)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_instance_ever_sees_more_connections_than_its_maximum(seed: int, most: int) -> None:
    """One table: then it holds at every moment, as the instances count."""

    async def test(rig: Rig) -> None:
        origins = [await rig.origin(proxied=seed % 2 == 1) for _ in range(2)]
        for origin in origins:
            origin.handlers |= {"/bye": bye, "/cut": cut}
        play = Play(rig, random.Random(100 + seed), origins, seed % 2 == 1)
        proxy = "v2" if seed % 2 else "off"
        rig.swap(service(*origins, connections={"max": most, "queue_timeout": 60.0, "proxy_protocol": proxy}))
        play.most = most
        play.table = lambda: None  # type: ignore[method-assign]
        await play.steps()
        await play.end()
        assert max(origin.most for origin in origins) == most

    run(test)
