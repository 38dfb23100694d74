"""What becomes of open tunnels when tables change: kept, cut, or drained, where their version loses its traffic."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from graylb.model.snapshot import Instance, Match, Service, StickyKey, Subset, Timeouts, Tunnels
from tests.integration import proxies
from tests.integration.engines import (
    Ask,
    Caller,
    Origin,
    OriginLink,
    Rig,
    gather,
    request,
    rule,
    run,
    service,
    split,
    turns,
    until,
)
from tests.integration.upstream import Call, Upstream

OFFER = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CUT, KEEP = Tunnels("cut"), Tunnels("keep")


async def echo(ask: Ask) -> None:
    """A tunnel's far end: sends everything back."""
    link = ask.link
    link.write(ACCEPTED)
    while link.buffer or await link.news():
        link.write(link.take(len(link.buffer)))
    raise EOFError


@dataclass
class Tunnel:
    caller: Caller
    link: OriginLink
    said: int = 0

    async def alive(self) -> None:
        """A line goes there and comes back."""
        self.said += 1
        line = b"line %d\n" % self.said
        self.caller.write(line)
        assert await self.caller.until(b"\n") == line

    async def ended(self) -> None:
        """Both ends are closed."""
        assert await self.caller.ended() == b""
        await until(lambda: self.link.eof, "the instance to be told")


NUMBERS = itertools.count()


async def opened(rig: Rig, *origins: Origin, lines: tuple[str, ...] = (), **more: str) -> Tunnel:
    """A tunnel to whichever of these instances is chosen."""
    for origin in origins:
        origin.handlers["/ws"] = echo
    number = str(next(NUMBERS))
    caller = await rig.send(request("GET", "/ws", *OFFER, f"X-Number: {number}", *lines, **more))
    assert b" 101 " in await caller.until(b"\r\n\r\n")
    (link,) = [ask.link for origin in origins for ask in origin.asks if ask.get("x-number") == number]
    return Tunnel(caller, link)


def without(x: Service, version: str) -> Service:
    return replace(x, instances=tuple(each for each in x.instances if each.version != version))


Change = Callable[[Service], Service]
CANARY = rule("canary", "v2", x_canary="1")
# a table's change -> what a service of v1 and v2 becomes
BY_SPLIT: dict[str, Change] = {
    "left out of the split": lambda x: replace(x, split=split(v1=100)),
    "another split": lambda x: replace(x, split=split(v1=50, v3=50), instances=(*x.instances, THIRD)),
    "everything to the stable version": lambda x: replace(x, split=None),
    "its instance goes": lambda x: replace(without(x, "v2"), split=split(v1=100)),
    "its instance is of another version now": lambda x: replace(
        x, instances=(x.instances[0], replace(x.instances[1], version="v9")), split=split(v1=1, v9=1)
    ),
}
BY_RULE: dict[str, Change] = {
    "no such rule": lambda x: replace(x, rules=()),
    "another name": lambda x: replace(x, rules=(replace(CANARY, name="other"),)),
    "another version": lambda x: replace(x, rules=(replace(CANARY, to=Subset(version="v1")),)),
    "a split of its own without it": lambda x: replace(x, rules=(replace(CANARY, to=None, split=split(v1=1)),)),
    "its instance goes": lambda x: without(x, "v2"),
}
UNTOUCHED: dict[str, Change] = {
    "nothing": lambda x: x,
    "other weights": lambda x: replace(x, split=split(v1=99.99, v2=0.01)),
    "a third version": lambda x: replace(x, split=split(v1=50, v2=20, v3=30), instances=(*x.instances, THIRD)),
    "everything to it": lambda x: replace(x, split=split(v2=1)),
    "more rules": lambda x: replace(x, rules=(rule("first", "v1", x_first="1"), *x.rules)),
    "another sticky key": lambda x: replace(x, sticky=(StickyKey("header", "x-who"),)),
    "other timeouts": lambda x: replace(x, timeouts=Timeouts(connect=1, response=1, idle=30)),
    "another fallback": lambda x: replace(x, fallback="any"),
    "one more instance of it": lambda x: replace(x, instances=(*x.instances, Instance("127.0.0.1:2", "v2"))),
    "another match of its rule": lambda x: replace(x, rules=tuple(replace(each, match=Match()) for each in x.rules)),
    "the other version's instance goes": lambda x: replace(without(x, "v1"), stable="v2", split=split(v2=1)),
}
THIRD = Instance("127.0.0.1:1", "v3")


async def scene(rig: Rig, tunnels: Tunnels, *, by_rule: bool = False) -> tuple[Service, Tunnel]:
    """A service of v1 and v2 with this policy, and a tunnel to v2 that its split, or the rule `canary`, chose."""
    one, two = await rig.origin(), await rig.origin()
    made = service((one, "v1"), (two, "v2"), split=split(v2=1), tunnels=tunnels, rules=(CANARY,))
    rig.swap(made)
    tunnel = await opened(rig, one, two, lines=("X-Canary: 1",) if by_rule else ())
    assert tunnel.link in two.links
    await tunnel.alive()
    rig.swap(replace(made, split=split(v1=1, v2=1)))
    return replace(made, split=split(v1=1, v2=1)), tunnel


@pytest.mark.parametrize("by_rule", [False, True])
@pytest.mark.parametrize("change", sorted(BY_SPLIT | BY_RULE))
def test_keep_leaves_them_alone_whatever_changes(change: str, by_rule: bool) -> None:
    async def test(rig: Rig) -> None:
        made, tunnel = await scene(rig, KEEP, by_rule=by_rule)
        rig.swap((BY_SPLIT | BY_RULE)[change](made))
        await tunnel.alive()
        rig.swap(service("127.0.0.1:1", name="other"))
        await tunnel.alive()
        assert (rig.stats["tunnels"], rig.stats["tunnels_cut"]) == (1, 0)

    run(test)


@pytest.mark.parametrize(
    ("by_rule", "change"), [*((False, name) for name in BY_SPLIT), *((True, name) for name in BY_RULE)]
)
def test_cut_and_drain_where_the_version_loses_what_chose_it(by_rule: bool, change: str) -> None:
    changes = BY_RULE if by_rule else BY_SPLIT

    async def cut(rig: Rig) -> None:
        made, tunnel = await scene(rig, CUT, by_rule=by_rule)
        rig.swap(changes[change](made))
        await tunnel.ended()
        assert (rig.stats["tunnels"], rig.stats["tunnels_cut"]) == (0, 1)

    async def drain(rig: Rig) -> None:
        made, tunnel = await scene(rig, Tunnels("drain", 0.5), by_rule=by_rule)
        rig.swap(changes[change](made))
        await tunnel.alive()
        assert rig.stats["tunnels"] == 1
        await tunnel.ended()
        assert (rig.stats["tunnels"], rig.stats["tunnels_cut"]) == (0, 1)

    run(cut)
    run(drain)


@pytest.mark.parametrize("change", UNTOUCHED)
@pytest.mark.parametrize("by_rule", [False, True])
def test_changes_that_take_nothing_from_it_touch_nothing(change: str, by_rule: bool) -> None:
    async def test(rig: Rig) -> None:
        made, tunnel = await scene(rig, CUT, by_rule=by_rule)
        rig.swap(UNTOUCHED[change](made))
        await tunnel.alive()
        rig.swap(UNTOUCHED[change](made), service("127.0.0.1:1", name="another"))
        await tunnel.alive()
        assert rig.stats["tunnels_cut"] == 0

    run(test)


@pytest.mark.parametrize("change", ["left out of the split", "no such rule"])
def test_what_chose_it_decides_not_what_might_have(change: str) -> None:
    """A rule's tunnel stays when the split changes, the split's when rules change."""

    async def test(rig: Rig) -> None:
        by_rule = change == "left out of the split"
        made, tunnel = await scene(rig, CUT, by_rule=by_rule)
        rig.swap((BY_SPLIT | BY_RULE)[change](made))
        await tunnel.alive()
        assert rig.stats["tunnels_cut"] == 0

    run(test)


def test_another_service_with_the_same_versions_is_none_of_its_business() -> None:
    async def test(rig: Rig) -> None:
        origin, two = await rig.origin(), await rig.origin()
        up = service((origin, "v1"), (two, "v2"), split=split(v1=1, v2=1), tunnels=CUT)
        other = service((origin, "v1"), (two, "v2"), name="other", split=split(v2=1), tunnels=CUT)
        rig.swap(up, other)
        tunnel = await opened(rig, origin, two, host="other")
        rig.swap(replace(up, split=split(v1=1)), other)
        await tunnel.alive()
        rig.swap(replace(up, split=split(v1=1)), replace(other, split=split(v1=1)))
        await tunnel.ended()

    run(test)


def test_a_service_that_goes_takes_its_tunnels_by_its_own_policy() -> None:
    async def test(rig: Rig) -> None:
        for policy, ends in ((CUT, True), (KEEP, False)):
            _, tunnel = await scene(rig, policy)
            rig.swap(service("127.0.0.1:1", name="another"))
            if ends:
                await tunnel.ended()
            else:
                await tunnel.alive()

    run(test)


def test_the_policy_of_the_new_table_holds() -> None:
    """For tunnels that were opened under another one, too."""

    async def test(rig: Rig) -> None:
        made, tunnel = await scene(rig, KEEP)
        rig.swap(replace(made, tunnels=CUT))
        await tunnel.alive()
        rig.swap(replace(made, tunnels=CUT, split=split(v1=1)))
        await tunnel.ended()
        made, tunnel = await scene(rig, CUT)
        rig.swap(replace(made, tunnels=KEEP, split=split(v1=1)))
        await tunnel.alive()

    run(test)


@pytest.mark.parametrize("talks", [False, True])
def test_a_drain_ends_when_the_traffic_comes_back(talks: bool) -> None:
    """Before its time; afterwards the tunnel is as any other, also one that has been silent meanwhile."""

    async def test(rig: Rig) -> None:
        made, tunnel = await scene(rig, Tunnels("drain", 0.4))
        rig.swap(replace(made, split=split(v1=1)))
        await tunnel.alive()
        rig.swap(made)
        if talks:
            await tunnel.alive()
        await asyncio.sleep(0.8)
        await tunnel.alive()
        assert (rig.stats["tunnels"], rig.stats["tunnels_cut"]) == (1, 0)
        rig.swap(replace(made, split=split(v1=1)))
        await tunnel.ended()

    run(test)


def test_a_drain_is_not_put_off() -> None:
    """Neither by traffic in the tunnel nor by further tables."""

    async def test(rig: Rig) -> None:
        made, tunnel = await scene(rig, Tunnels("drain", 0.5))
        gone = replace(made, split=split(v1=1))
        rig.swap(gone)
        end = asyncio.get_running_loop().time() + 5
        while not tunnel.caller.eof:
            assert asyncio.get_running_loop().time() < end
            tunnel.caller.write(b"x\n")
            rig.swap(replace(gone, timeouts=Timeouts(idle=30 + end)))
            await asyncio.sleep(0.02)
        assert rig.stats["tunnels_cut"] == 1

    run(test)


def test_a_drain_that_becomes_a_cut() -> None:
    async def test(rig: Rig) -> None:
        made, tunnel = await scene(rig, Tunnels("drain", 60))
        rig.swap(replace(made, split=split(v1=1)))
        await tunnel.alive()
        rig.swap(replace(made, split=split(v1=1), tunnels=CUT))
        await tunnel.ended()

    run(test)


def test_a_tunnel_by_fallback_was_never_the_version_s_traffic() -> None:
    """v2 has no instance, so v1 got it: a change of v1's share in the split says nothing about it."""

    async def test(rig: Rig) -> None:
        one = await rig.origin()
        made = service((one, "v1"), split=split(v1=1, v2=1), rules=(CANARY,), tunnels=CUT)
        rig.swap(made)
        tunnel = await opened(rig, one, lines=("X-Canary: 1",))
        rig.swap(replace(made, rules=(replace(CANARY, priority=3),)))
        await tunnel.alive()
        rig.swap(replace(made, split=split(v2=1)))
        await tunnel.alive()
        assert rig.stats["tunnels_cut"] == 0

    run(test)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_bytes_under_way_and_many_at_once(seconds: float) -> None:
    """Both ends slow, buffers full in both directions: closed all the same, nothing is left."""

    async def pour(ask: Ask) -> None:
        ask.link.write(ACCEPTED + b"x" * 5_000_000)
        ask.link.transport.pause_reading()
        await until(lambda: ask.link.lost, "the end", 10)
        raise EOFError

    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        two.handlers["/ws"] = pour
        policy = Tunnels("drain", seconds) if seconds else CUT
        made = service((one, "v1"), (two, "v2"), split=split(v2=1), tunnels=policy)
        rig.swap(made)
        callers = [await rig.send(request("GET", "/ws", *OFFER)) for _ in range(20)]
        for caller in callers:
            assert b" 101 " in await caller.until(b"\r\n\r\n")
            caller.transport.pause_reading()
            caller.write(b"y" * 5_000_000)
        await until(lambda: rig.stats["tunnels"] == 20, lambda: rig.stats)
        await turns()
        rig.swap(replace(made, split=split(v1=1)))
        await until(lambda: rig.stats["tunnels"] == 0, lambda: rig.stats)
        assert rig.stats["tunnels_cut"] == 20
        for caller in callers:
            caller.transport.abort()

    run(test)


def test_a_hundred_tunnels_and_twenty_changes_with_keep() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        made = service((one, "v1"), (two, "v2"), split=split(v1=1, v2=1), rules=(CANARY,), tunnels=KEEP)
        rig.swap(made)
        tunnels = [await opened(rig, one, two) for _ in range(100)]
        changes = [*(BY_SPLIT | BY_RULE | UNTOUCHED).values()][:20]
        for change in [*changes, UNTOUCHED["nothing"]]:
            rig.swap(change(made))
            await gather(tunnel.alive() for tunnel in tunnels)
        assert (rig.stats["tunnels"], rig.stats["tunnels_cut"], rig.stats["aborted"]) == (100, 0, 0)
        assert {len(one.open) > 0, len(two.open) > 0} == {True}

    run(test)


def test_a_tunnel_counts_towards_the_maximum_and_makes_room_when_it_ends() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()
        more = {"connections": {"max": 1, "queue_timeout": 5.0}, "tunnels": CUT}
        made = service((one, "v1"), (two, "v2"), split=split(v2=1), **more)
        rig.swap(made)
        tunnel = await opened(rig, one, two)
        waits = await rig.send(request())
        await rig.waiting(two, 1)
        rig.swap(replace(made, split=split(v1=1)))
        await tunnel.ended()
        assert (await waits.answer()).get("x-graylb-version") == "v2"
        assert two.most == 1

    run(test)


def test_a_drain_of_the_worker_leaves_them_until_it_closes() -> None:
    """`graylb.proxy.worker` closes the engine when its drain time is over."""

    async def test(rig: Rig) -> None:
        _, tunnel = await scene(rig, KEEP)
        quiet = asyncio.Event()
        rig.engine.drain(quiet.set)
        await tunnel.alive()
        assert not quiet.is_set()
        rig.engine.close()
        await tunnel.ended()
        assert rig.stats["tunnels"] == 0

    run(test)


def test_a_process_that_is_told_to_stop_leaves_them_until_its_drain_is_over(tmp_path: Path) -> None:
    def far_end(call: Call) -> None:
        call.send(ACCEPTED)
        while True:
            call.send(call.connection.some(1000))

    upstream = Upstream().start()
    upstream.on("/ws", far_end)
    proxy = proxies.Proxy(tmp_path, proxies.document({"talk": proxies.service(upstream.address)}), "--drain", "1.5")
    try:
        with proxy.client() as client:
            client.send(request("GET", "/ws", *OFFER))
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.sock.recv(1000)
            assert proxy.process is not None
            proxy.process.terminate()
            proxy.wait_for_log("draining")
            client.send(b"still there")
            assert client.sock.recv(1000) == b"still there"
            assert client.closed()
            assert proxy.process.wait(10) == 0
        upstream.connections[0].wait_closed()
    finally:
        proxy.kill()
        upstream.stop()
    upstream.check()
