"""The access log of an engine: what its lines tell of requests and decisions, sampling, bounds, changes of tables."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import orjson

from graylb import _ring
from graylb.model import log_fields
from graylb.model.snapshot import Condition, Instance, Match, Rule, Subset
from graylb.model.snapshot_observe import AccessLog
from graylb.release import access_log
from tests.integration.engines import Ask, Rig, run, service, split, until

ALL = log_fields.json_parts(tuple(log_fields.FIELDS))
EVERYTHING: dict[str, Any] = {"service": None, "version": None, "rule": None, "status": (0, 999)}


class Pipe:
    """What an engine wrote, by lines."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        os.set_blocking(self.ours, False)
        self.data = b""

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.ours, 1 << 20):
                self.data += piece
        return self.data

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)

    async def lines(self, count: int) -> list[dict[str, Any]]:
        await until(lambda: self.read().count(b"\n") >= count, lambda: self.data.decode())
        assert self.data.endswith(b"\n")
        return [orjson.loads(line) for line in self.data.splitlines()]


class Lines(Pipe):
    """The same of a ring, whose bell is the pipe: what it has not told of is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = _ring.create()
        self._reader = _ring.Reader(self.fd)

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            if os.read(self.ours, 4096):
                with self._reader.unread() as lines:
                    self.data += lines
                    self._reader.taken(len(lines))
        return self.data

    def close(self) -> None:
        super().close()
        self._reader.close()
        os.close(self.fd)


@contextlib.contextmanager
def told(rig: Rig, wanted: AccessLog | None) -> Iterator[tuple[Lines, Pipe]]:
    lines, events = Lines(), Pipe()
    rig.engine.open_logs(lines.fd, lines.theirs, events.theirs)
    rig.access_log = wanted
    try:
        yield lines, events
    finally:
        rig.engine.open_logs(-1, -1, -1)
        lines.close()
        events.close()


def test_what_is_kept_of_a_decision_is_of_that_decision_and_of_its_table() -> None:
    """Pieces of lines are kept by the numbers of a decision: another table means something else by the same ones."""

    async def test(rig: Rig) -> None:
        with told(rig, AccessLog("stdout", True, ALL)) as (log, _):
            v1, v2 = await rig.origin(), await rig.origin()
            when = Match((Condition("header", "exact", ("u1",), "x-user"),))
            wanted = []
            for rule, versions in (("testers", ("v1", "v2")), ("others", ("v3", "v4"))):
                shares = dict.fromkeys(versions, 0) | {versions[0]: 100}
                rig.swap(
                    service(
                        (v1, versions[0]), (v2, versions[1]),
                        rules=(Rule(rule, when, Subset(versions[1])),), split=split(**shares),
                    )
                )  # fmt: skip
                for user in ("u2", "u1", "u1", "u2", "u1"):
                    await rig.ask("GET", "/", f"x-user: {user}")
                    found = (rule, versions[1], v2.address) if user == "u1" else (None, versions[0], v1.address)
                    wanted.append((*found, rig.revision))
            lines = await log.lines(10)
            assert [(x.get("rule"), x["version"], x["instance"], x["revision"]) for x in lines] == wanted

    run(test)


def test_a_head_that_comes_again_is_told_again_and_one_that_nearly_does_as_what_it_is() -> None:
    """What was told of a head is kept for the next one in its place, as long as that is the same byte for byte."""
    lines = ["user-agent: me", "x-request-id: r-1", "referer: http://a/b"]
    asked = [("GET", "/a/b?c=d", lines)]
    asked += [("GET", target, lines) for target in ("/a/b?c=e", "/a/B?c=d", "/a/b?c=d1", "/a/b")]
    asked += [("PUT", "/a/b?c=d", lines), ("GET", "/a/b?c=d", [*lines, "x: y"]), ("GET", "/a/b?c=d", lines[:1])]
    asked += [
        ("GET", "/a/b?c=d", ["user-agent: ME", *lines[1:]]),
        ("GET", "/a/b?c=d", [*lines[:2], 'referer: http://a/"']),
    ]
    choose = random.Random(7)

    async def test(rig: Rig) -> None:
        wanted = []
        with told(rig, AccessLog("stdout", True, ALL)) as (log, _):
            origin = await rig.origin()
            rig.swap(service((origin, "v1"), split=split(v1=100)))
            callers = [await rig.caller(), await rig.caller(), await rig.caller(source=("127.0.0.2", 0))]
            for turn in range(150):
                if turn == 75:  # another format
                    rig.access_log = AccessLog("stdout", True, log_fields.json_parts(("target", "client_ip", "method")))
                    rig.swap(service((origin, "v1"), split=split(v1=100)))
                caller = choose.choice(callers)
                method, target, more = asked[choose.choice((0, 0, 0, choose.randrange(len(asked))))]
                assert (await caller.ask(method, target, *more)).status == 200
                host, port = caller.transport.get_extra_info("sockname")
                line: dict[str, Any] = {"method": method, "target": target, "client_ip": host}
                if turn < 75:
                    path, _, query = target.partition("?")
                    line |= {"client_port": port, "path": path} | ({"query": query} if query else {})
                    heads = dict(each.split(": ", 1) for each in more)
                    line |= {"http_user_agent": heads["user-agent"]}
                    line |= {"request_id": heads["x-request-id"]} if "x-request-id" in heads else {}
                    line |= {"http_referer": heads["referer"]} if "referer" in heads else {}
                wanted.append(line)
            found = await log.lines(len(wanted))
        names = {name for line in wanted for name in line}
        assert [{name: line[name] for name in names & set(line)} for line in found] == wanted
        times = [line["time"] for line in found[:75]]
        assert times == sorted(times)
        assert len(set(times)) == 75

    run(test)


def test_a_line_tells_request_decision_and_end() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, AccessLog("stdout", True, ALL)) as (log, _):
            v1, v2 = await rig.origin(), await rig.origin()
            when = Match((Condition("header", "exact", ("u1",), "x-user"),))
            rig.swap(
                service(
                    (v1, "v1"), (v2, "v2"),
                    rules=(Rule("testers", when, Subset("v2")),), split=split(v1=90, v2=10),
                )
            )  # fmt: skip
            await rig.ask("POST", "/a?b=c", "x-user: u1", "user-agent: me", body=b"12345")
            await rig.ask("GET", "/d")
            ruled, drawn = await log.lines(2)
            assert {name: ruled[name] for name in (
                "client_ip", "listener", "scheme", "method", "host", "path", "query", "target", "protocol",
                "http_user_agent", "service", "route", "version", "rule", "instance", "revision", "attempts", "status",
                "bytes_in", "bytes_out", "tls", "upstream_protocol", "worker",
            )} == {
                "client_ip": "127.0.0.1", "listener": "edge", "scheme": "http", "method": "POST", "host": "up",
                "path": "/a", "query": "b=c", "target": "/a?b=c", "protocol": "HTTP/1.1", "http_user_agent": "me",
                "service": "up", "route": "up", "version": "v2", "rule": "testers", "instance": v2.address,
                "revision": 1, "attempts": 1, "status": 200, "bytes_in": 5, "bytes_out": 5, "tls": False,
                "upstream_protocol": "HTTP/1.1", "worker": 0,
            }  # fmt: skip
            assert 0 < ruled["first_byte"] <= ruled["duration"]
            assert ruled["connect"] > 0
            assert not {"slot", "draw", "fallback", "error", "aborted"} & ruled.keys()
            assert isinstance(drawn["draw"], int)
            assert "rule" not in drawn

    run(test)


def test_errors_have_their_reason_and_whose_fault_they_are() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, AccessLog("stdout", True, ALL)) as (log, _):
            origin = await rig.origin()

            async def cut(ask: Ask) -> None:
                ask.link.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                ask.link.transport.abort()

            origin.handlers["/cut"] = cut
            nowhere = service(Instance(rig.refusing(), "v1"), name="nowhere")
            rig.swap(service(origin), nowhere)
            await (await rig.send(b"nonsense\r\n\r\n")).ended()
            await rig.ask("GET", "/", host="nowhere")
            await (await rig.send(b"GET /cut HTTP/1.1\r\nhost: up\r\n\r\n")).ended()
            caller = await rig.send(b"GET /hold HTTP/1.1\r\nhost: up\r\n\r\n")
            (*_, held) = await origin.asked(2)
            caller.reset()
            bad, refused, half, gone = await log.lines(4)
            held.go.set()
            assert (bad["status"], bad["error"], bad["error_source"]) == (400, "bad-request", "client")
            assert "path" not in bad
            assert "service" not in bad
            assert (refused["status"], refused["error"], refused["service"]) == (502, "connect-failed", "nowhere")
            assert refused["attempts"] >= 1
            assert "first_byte" not in refused
            assert (half["status"], half["aborted"], half["bytes_out"]) == (200, "instance", 4)
            assert (gone["status"], gone["aborted"]) == (499, "client")

    run(test)


def test_statuses_are_sampled_by_class() -> None:
    async def test(rig: Rig) -> None:
        names = log_fields.json_parts(("status",))
        with told(rig, AccessLog("stdout", True, names, (100.0, 0.0, 100.0, 100.0, 50.0))) as (log, _):
            origin = await rig.origin()

            async def by_path(ask: Ask) -> None:
                ask.answer(status=int(ask.target[1:4]))

            origin.handlers.update({f"/{status}": by_path for status in (200, 404, 503)})
            rig.swap(service(origin))
            caller = await rig.caller()
            for _ in range(200):
                await caller.ask("GET", "/200")
                await caller.ask("GET", "/503")
            await caller.ask("GET", "/404")
            await until(lambda: b"404" in log.read(), "the last line")
            found = [line["status"] for line in await log.lines(1)]
            assert 200 not in found
            assert found[-1] == 404
            assert 60 < found.count(503) < 140  # 1 in 10**8 otherwise

    run(test)


def test_a_new_table_changes_the_format_and_ends_it() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, AccessLog("stdout", False, log_fields.split("$method $path $status $rule"))) as (log, _):
            origin = await rig.origin()
            rig.swap(service(origin))
            caller = await rig.send(b"GET /hold HTTP/1.1\r\nhost: up\r\n\r\n")
            (held,) = await origin.asked(1)
            rig.access_log = AccessLog("stdout", True, log_fields.json_parts(("path",)))
            rig.swap(service(origin))
            await rig.ask("GET", "/new")
            rig.access_log = None
            rig.swap(service(origin))
            await rig.ask("GET", "/silent")
            held.go.set()
            await caller.answer()
            await until(lambda: log.read().count(b"\n") >= 2, lambda: log.data.decode())
            # the held request keeps the format that its head was read by
            assert log.data == b'{"path":"/new"}\nGET /hold 200 -\n'

    run(test)


def test_what_finds_no_room_is_dropped_whole_and_counted() -> None:
    async def test(rig: Rig) -> None:
        long = "x" * 4000
        with told(rig, AccessLog("stdout", True, log_fields.json_parts(("http_x_long",)), buffer=65536)) as (log, _):
            origin = await rig.origin()
            rig.swap(service(origin))
            caller = await rig.caller()
            asked = 0
            while not rig.stats["access_log"]["dropped"]:  # nobody reads
                await caller.ask("GET", "/", f"x-long: {asked:06d}{long}")
                asked += 1
            figures = rig.stats["access_log"]
            assert figures["written"] + figures["dropped"] == asked
            lines = await log.lines(figures["written"])
            assert [line["http_x_long"][:6] for line in lines] == [f"{n:06d}" for n in range(figures["written"])]
            await caller.ask("GET", "/", "x-long: again")
            assert (await log.lines(figures["written"] + 1))[-1] == {"http_x_long": "again"}

    run(test)


def test_live_views_see_what_they_want_without_an_access_log() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (log, events):
            a, b = await rig.origin(), await rig.origin()
            rig.swap(service(a, name="a"), service(b, name="b"))
            await rig.ask("GET", "/before", host="a")
            rig.engine.watch([{**EVERYTHING, "service": "b", "version": "v1"}, {**EVERYTHING, "status": (400, 499)}])
            await rig.ask("GET", "/1", host="a")
            await rig.ask("GET", "/2", host="b")
            await (await rig.send(b"nonsense\r\n\r\n")).ended()
            found = await events.lines(2)
            assert [(line.get("path"), line["status"]) for line in found] == [("/2", 200), (None, 400)]
            rig.engine.watch([])
            await rig.ask("GET", "/3", host="b")
            assert len(await events.lines(2)) == 2
            assert log.read() == b""

    run(test)


def test_replay_reads_our_own_lines() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, AccessLog("stdout", True, log_fields.json_parts(log_fields.DEFAULT))) as (log, _):
            origin = await rig.origin()
            rig.swap(service(origin))
            await rig.ask("GET", "/a?b=c", 'user-agent: "quoted" ä')
            await log.lines(1)
            fields = access_log.Fields.of(())
            assert access_log.detect(log.data) == "json"
            read = access_log.reader("json", fields)(log.data)
            assert read.client_ip == "127.0.0.1"
            assert read.listener == "edge"
            assert read.head == 'GET /a?b=c HTTP/1.1\r\nhost: up\r\nuser-agent: "quoted" ä\r\n\r\n'.encode()
        # and those of the combined format
        made = AccessLog("stdout", False, log_fields.split(log_fields.COMBINED))
        assert made.parts

    run(test)
