"""Every request is counted exactly once, under the right names, also when a worker is killed; and /metrics tells it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvloop
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from graylb.model.snapshot import Subset
from graylb.observe.metrics import BY_NAME
from graylb.observe.slabs import Slabs
from tests.integration import admins, proxies
from tests.integration.counting import Crowd, Instance
from tests.integration.engines import Ask, Rig, request, rule, run, service, split, until
from tests.integration.proxies import Proxy
from tests.integration.scrapes import by, scrape


@contextmanager
def slab() -> Iterator[Slabs]:
    made = Slabs(1)
    try:
        yield made
    finally:
        made.close()


def figures(slabs: Slabs, name: str, *by: str) -> Counter[Any]:
    """Values of one name, summed by these labels; those that are 0 are left out."""
    found: Counter[Any] = Counter()
    for each in slabs.read():
        if each.name == name:
            labels = dict(each.labels)
            value = each.cells.total() if each.cells is not None else each.value
            found[tuple(labels[label] for label in by) if len(by) > 1 else labels[by[0]] if by else ""] += value
    return +found


def counted(test: Any) -> None:
    """A test of a rig whose engine counts in a slab."""
    with slab() as slabs:
        run(lambda rig: test(rig, slabs), slab=slabs.fds[0])


def test_every_request_is_counted_once_whatever_becomes_of_it() -> None:
    async def cut(ask: Ask) -> None:
        ask.link.close()

    async def bad(ask: Ask) -> None:
        ask.link.write(b"HTTP/1.1 banana\r\n\r\n")

    async def half(ask: Ask) -> None:
        ask.link.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 300)
        ask.link.close()

    async def missing(ask: Ask) -> None:
        ask.answer(status=404)

    async def test(rig: Rig, slabs: Slabs) -> None:
        one, two = await rig.origin(), await rig.origin()
        for origin in (one, two):
            origin.handlers |= {"/cut": cut, "/bad": bad, "/half": half, "/missing": missing}
        rig.swap(
            service((one, "v1"), (two, "v2"), split=split(v1=1, v2=1), rules=(rule("canary", "v2", x_canary="1"),)),
            service(rig.refusing(), name="down"),
            service(name="empty"),
        )
        choose = random.Random(5)
        codes, reasons, canaries = Counter[tuple[str, str]](), Counter[tuple[str, str]](), 0
        outcomes = [
            ("up", "/", 200, ""),
            ("up", "/missing", 404, ""),
            ("up", "/cut", 502, "upstream-reset"),
            ("up", "/bad", 502, "upstream-invalid"),
            ("down", "/", 502, "connect-failed"),
            ("empty", "/", 503, "no-instance"),
        ]
        for _ in range(60):
            host, target, status, reason = choose.choice(outcomes)
            canary = choose.choice(["0", "1"])
            got = await rig.ask("POST", target, f"X-Canary: {canary}", host=host, body=b"x")
            assert got.status == status
            codes[host, f"{status // 100}xx"] += 1
            canaries += host == "up" and canary == "1"
            if reason:
                reasons[host, reason] += 1
        for _ in range(3):
            caller = await rig.send(request(target="/half"))
            await caller.ended()
            codes["up", "2xx"] += 1
        for _ in range(4):
            caller = await rig.send(b"GET / HTTP/1.1\r\n\r\n")
            assert (await caller.answer()).status == 400
            codes["", "4xx"] += 1
            reasons["", "bad-host"] += 1
        for number in range(2):
            caller = await rig.send(request(target="/hold"))
            await until(lambda n=number: len(one.asks) + len(two.asks) > n, "it to be asked")  # type: ignore[misc]
            await until(lambda: rig.engine.exchanges == 1, "it to be under way")
            assert sum(figures(slabs, "graylb_requests_in_flight").values()) == 1
            caller.close()
            codes["up", "none"] += 1
            await until(lambda: rig.engine.exchanges == 0, "it to be over")
        await until(lambda: rig.engine.exchanges == 0, "all to be over")
        assert figures(slabs, "graylb_requests_total", "service", "code") == codes
        assert figures(slabs, "graylb_errors_total", "service", "reason") == reasons
        up = sum(n for (name, _), n in codes.items() if name == "up")
        rules = figures(slabs, "graylb_requests_total", "service", "rule")
        assert rules["up", "canary"] == canaries
        assert rules["up", "(split)"] == up - canaries
        assert rules["down", "(stable)"] == codes["down", "5xx"]
        assert figures(slabs, "graylb_decisions_total", "service", "by") == Counter(
            {("up", "exact"): canaries, ("up", "draw"): up - canaries}
            | {(name, "exact"): codes[name, "5xx"] for name in ("down", "empty")}
        )
        routed = sum(n for (name, _), n in codes.items() if name)
        assert figures(slabs, "graylb_route_requests_total").total() == routed
        # all but those that nobody answered or no instance was chosen for
        timed = up - codes["up", "none"] + codes["down", "5xx"]
        assert figures(slabs, "graylb_request_duration_seconds").total() == timed
        assert figures(slabs, "graylb_time_to_first_byte_seconds").total() == codes["up", "2xx"] + codes["up", "4xx"]
        assert figures(slabs, "graylb_requests_in_flight").total() == 0
        assert figures(slabs, "graylb_requests_lost_total").total() == 0
        stats = {each["address"]: each for each in rig.stats["instances"]}
        assert figures(slabs, "graylb_upstream_attempts_total").total() == sum(x["requests"] for x in stats.values())
        assert figures(slabs, "graylb_upstream_failures_total").total() == sum(x["failures"] for x in stats.values())
        assert figures(slabs, "graylb_upstream_connects_total").total() == sum(x["connects"] for x in stats.values())
        connections = figures(slabs, "graylb_upstream_connections", "state")
        assert connections["idle"] == sum(x["idle"] for x in stats.values())
        assert connections["busy"] == 0

    counted(test)


def test_requests_are_counted_by_the_names_of_the_table_that_decided_them() -> None:
    """What a service's figures go by is kept over a swap only where it is the same: rules and versions, in their order,
    and whether a split or the stable version takes the rest."""

    async def test(rig: Rig, slabs: Slabs) -> None:
        one, two = await rig.origin(), await rig.origin()
        canary, beta = rule("canary", "v1", x_canary="1"), rule("beta", "v1", x_beta="1")
        members = ((one, "v1"), (two, "v2"))
        tables: list[tuple[str, dict[str, Any]]] = [
            ("canary (stable)", {"rules": (canary,)}),
            ("canary (stable)", {"rules": (replace(canary, to=Subset(version="v2")),)}),
            ("renamed (stable)", {"rules": (replace(canary, name="renamed"),)}),
            ("canary (stable)", {"rules": (beta, canary)}),
            ("canary (split)", {"rules": (beta, canary), "split": split(v1=1)}),
            ("canary (split)", {"rules": (canary, beta), "split": split(v1=1, v2=1)}),
        ]
        wanted: Counter[str] = Counter()
        for told, more in tables:
            rig.swap(service(*members, **more))
            for value, name in zip("10", told.split(), strict=True):
                assert (await rig.ask("GET", "/", f"X-Canary: {value}")).status == 200
                wanted[name] += 1
        assert figures(slabs, "graylb_requests_total", "rule") == wanted
        rig.swap(service((one, "v1"), (two, "v0")))
        rig.swap(service((one, "v0"), (two, "v1")))
        assert (await rig.ask()).status == 200
        assert figures(slabs, "graylb_requests_total", "version", "rule")["v1", "(stable)"] == wanted["(stable)"] + 1

    counted(test)


def test_names_outlive_tables_and_a_changed_service_goes_on_counting() -> None:
    """Rules get other numbers, versions come and go: what was counted under a name stays under it."""

    async def test(rig: Rig, slabs: Slabs) -> None:
        one, two = await rig.origin(), await rig.origin()
        wanted: Counter[tuple[str, str]] = Counter()
        first, second = rule("first", "v1", x_a="1"), rule("second", "v2", x_b="1")
        tables = [
            service((one, "v1"), (two, "v2"), split=split(v1=1), rules=(first, second)),
            service((two, "v2"), (one, "v1"), split=split(v2=1), rules=(second, first)),
            service((one, "v1"), split=split(v1=1), rules=(first,)),
            service((one, "v1"), (two, "v3"), split=split(v3=1), rules=(first,)),
        ]
        choose = random.Random(3)
        for _ in range(30):
            number = choose.randrange(4)
            rig.swap(tables[number])
            assert (await rig.ask("GET", "/", "X-A: 1")).status == 200
            wanted["v1", "first"] += 1
            assert (await rig.ask("GET", "/")).status == 200
            wanted[("v1", "v2", "v1", "v3")[number], "(split)"] += 1
            if number < 2:
                assert (await rig.ask("GET", "/", "X-B: 1")).status == 200
                wanted["v2", "second"] += 1
        assert figures(slabs, "graylb_requests_total", "version", "rule") == wanted

    counted(test)


def test_a_fallback_is_counted_by_what_was_wanted_and_what_was_got() -> None:
    async def test(rig: Rig, slabs: Slabs) -> None:
        origin = await rig.origin()
        rig.swap(service((origin, "v1"), split=split(v1=1, v2=1)))
        for _ in range(10):
            assert (await rig.ask()).status == 200
        assert figures(slabs, "graylb_fallbacks_total", "service", "wanted", "got") == {("up", "v2", "v1"): 5}
        assert figures(slabs, "graylb_decisions_total", "version", "by") == {("v1", "draw"): 5, ("v2", "draw"): 5}
        assert figures(slabs, "graylb_requests_total", "version", "code") == {("v1", "2xx"): 10}

    counted(test)


def test_bodies_are_counted_without_their_heads() -> None:
    async def test(rig: Rig, slabs: Slabs) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        for _ in range(4):
            assert len((await rig.ask("POST", body=b"x" * 1000)).body) == 5
        assert figures(slabs, "graylb_request_body_bytes_total").total() == 4000
        assert figures(slabs, "graylb_response_body_bytes_total").total() == 20

    counted(test)


# ---- a real proxy ----------------------------------------------------------------------------------------------------


class Bench:
    """A proxy with two workers before two instances that count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()

    async def __aenter__(self) -> Bench:
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(lambda name=name: Instance(self.asked, name), "127.0.0.1", 0)  # type: ignore[misc]
            for name in ("v1", "v2")
        ]
        ports = [server.sockets[0].getsockname()[1] for server in self.servers]
        users = proxies.service(
            (f"127.0.0.1:{ports[0]}", "v1"), (f"127.0.0.1:{ports[1]}", "v2"), split={"v1": 95, "v2": 5}
        )
        document = proxies.document({"users": users}, admin={"address": "127.0.0.1:0"}, workers=2)
        self.proxy = await asyncio.to_thread(Proxy, self.folder, document)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.proxy.stop)
        for server in self.servers:
            server.close()

    async def kill_a_worker(self) -> None:
        before = self.proxy.workers
        victim = before()[0] if callable(before) else before[0]
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(
            proxies.until,
            lambda: [each for each in self.proxy.status()["workers"] if each["restarts"] == 1 and each["ready"]],
            "the worker to be replaced",
        )

    async def scrape(self) -> dict[str, Counter[Any]]:
        return await asyncio.to_thread(scrape, self.proxy)


async def exact(folder: Path, requests: int, patience: float) -> None:
    async with Bench(folder) as bench:
        crowd = Crowd(bench.proxy.address)
        await crowd.ask(requests // 2, patience)
        await bench.kill_a_worker()
        await crowd.ask(requests - requests // 2, patience)
        found = await bench.scrape()
        assert crowd.statuses == {200: requests}
        assert crowd.lost == 0
        told = found["graylb_requests_total"]
        assert by(told, "code") == {"2xx": requests}
        assert by(told, "version") == bench.asked
        assert bench.asked.total() == requests
        assert found["graylb_request_duration_seconds_count"].total() == requests
        assert found["graylb_upstream_attempts_total"].total() == requests
        assert found["graylb_response_body_bytes_total"].total() == 5 * requests
        assert found["graylb_requests_lost_total"].total() == 0
        assert by(found["graylb_worker_restarts_total"], "worker").total() == 1
        assert set(found) <= known_samples()


def known_samples() -> set[str]:
    found = set()
    for name, metric in BY_NAME.items():
        found |= {name} if metric.kind != "histogram" else {name + end for end in ("_bucket", "_count", "_sum")}
    return found


def test_the_figures_are_those_of_callers_and_instances_across_a_worker_that_is_killed(tmp_path: Path) -> None:
    uvloop.run(exact(tmp_path, 20_000, 50))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_over_a_million_requests(tmp_path: Path) -> None:
    uvloop.run(exact(tmp_path, 1_000_000, 800))


def test_what_a_killed_worker_had_under_way_is_counted_as_lost(tmp_path: Path) -> None:
    """Killed in full swing: an answer is counted or lost, and so is what an instance was asked."""

    async def main() -> None:
        async with Bench(tmp_path) as bench:
            crowd = Crowd(bench.proxy.address, callers=32)
            asking = asyncio.create_task(crowd.ask(6000, 50))
            await until(lambda: crowd.statuses.total() >= 1000, "a thousand answers", 30)
            await bench.kill_a_worker()
            await asking
            found = await bench.scrape()
            answered = by(found["graylb_requests_total"], "code")["2xx"]
            lost = found["graylb_requests_lost_total"].total()
            assert 0 <= crowd.lost <= 32
            assert crowd.statuses.total() + crowd.lost == 6000
            assert answered - 1 <= crowd.statuses[200] <= answered + lost  # 1: killed between counting and sending
            assert answered - 1 <= bench.asked.total() <= answered + lost
            assert lost <= 33

    uvloop.run(main())


def test_the_page(tmp_path: Path) -> None:
    """In both formats; every family is one of the table, with its kind and labels; processes are told as they are."""

    async def main() -> None:
        async with Bench(tmp_path) as bench:
            await Crowd(bench.proxy.address, callers=2).ask(200, 30)
            await asyncio.to_thread(look, bench.proxy)

    def look(proxy: Proxy) -> None:
        with admins.client(proxy) as client:
            plain = client.get("/metrics")
            opened = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
            assert client.get("/metrics?x=1").status_code == 422
        assert plain.headers["content-type"].startswith("text/plain; version=")
        assert opened.headers["content-type"].startswith("application/openmetrics-text")
        assert opened.text.endswith("# EOF\n")
        told = {}
        for family in parse(plain.text):
            name = family.name + "_total" if family.type == "counter" else family.name
            metric = BY_NAME[name]
            assert (family.type, family.documentation) == (metric.kind, metric.text)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels), sample
            told[name] = family
        assert {each.name for each in parse_openmetrics(opened.text)} >= {"graylb_requests", "graylb_build_info"}
        processes = {each.labels["process"]: each.value for each in told["graylb_process_open_fds"].samples}
        assert set(processes) == {"control", "worker-0", "worker-1"}
        start = {each.labels["process"]: each.value for each in told["graylb_process_start_time_seconds"].samples}
        assert abs(start["control"] - psutil.Process(proxy.pid).create_time()) < 2
        ratios = {each.labels["version"]: each.value for each in told["graylb_split_ratio"].samples}
        assert ratios == {"v1": 0.95, "v2": 0.05}
        (revision,) = told["graylb_config_revision"].samples
        assert revision.value == proxy.status()["revision"]
        (memory,) = told["graylb_metrics_memory_bytes"].samples
        assert 0 < memory.value < 1 << 20

    uvloop.run(main())


def test_who_may_not_use_the_admin_api_may_not_scrape(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"prometheus: {admins.TOKEN}\n")
    users = proxies.service("127.0.0.1:9")
    document = proxies.document({"users": users}, admin={"address": "127.0.0.1:0", "token_file": "tokens"})
    with proxies.running(tmp_path, document, "--workers", "1") as proxy:
        with admins.client(proxy) as client:
            assert client.get("/metrics").status_code == 401
        with admins.client(proxy, token=admins.TOKEN) as client:
            answer: httpx.Response = client.get("/metrics")
            assert answer.status_code == 200
            assert "graylb_build_info" in answer.text
