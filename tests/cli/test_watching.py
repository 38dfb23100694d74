"""`graylb tail` and `graylb top` on a real proxy; figures from two looks at counters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graylb.cli.figures import Counts, counts, rows
from graylb.control.live_view import Wanted, statuses
from tests.integration import proxies
from tests.integration.proxies import Proxy
from tests.integration.upstream import Upstream


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    v1, v2 = Upstream("v1").start(), Upstream("v2").start()
    rules = [{"name": "testers", "match": {"headers": {"x-user": "u1"}}, "to": "v2"}]
    instances = [{"address": v1.address, "version": "v1"}, {"address": v2.address, "version": "v2"}]
    document = {
        "listeners": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "services": {"users": {"stable": "v1", "instances": instances, "rules": rules, "split": {"v1": 75, "v2": 25}}},
    }
    with proxies.running(tmp_path_factory.mktemp("watching"), document) as found:
        yield found
    v1.stop()
    v2.stop()


def command(proxy: Proxy, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "graylb.cli", *arguments, "--admin", proxy.admin]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "140"}
    )


def ask(proxy: Proxy, target: str, *lines: str) -> int:
    with proxy.client() as client:
        head = "\r\n".join([f"GET {target} HTTP/1.1", "host: x", "connection: close", *lines, "", ""])
        return client.send(head.encode()).response().status


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=30)
    return process.returncode, out, error


def until_ends(proxy: Proxy, process: subprocess.Popen[str], *asked: tuple[str, ...]) -> tuple[int, str, str]:
    """Asks over and over until the command, which ends after some requests, has seen enough."""
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        for each in asked:
            ask(proxy, *each)
    return ended(process)


def test_tail_shows_what_is_asked_for(proxy: Proxy) -> None:
    both = command(proxy, "tail", "--service", "users", "--rule", "testers", "--json", "-n", "2")
    plain = command(proxy, "tail", "--version", "v2", "-n", "1")
    status, out, error = until_ends(proxy, both, ("/a?b=c", "x-user: u1"), ("/d",))
    assert (status, error) == (0, "")
    for line in map(json.loads, out.splitlines()):
        assert (line["path"], line["query"], line["rule"], line["version"]) == ("/a", "b=c", "testers", "v2")
        assert (line["status"], line["service"], line["method"]) == (200, "users", "GET")
    status, out, error = until_ends(proxy, plain, ("/a", "x-user: u1"))
    assert (status, error) == (0, "")
    assert "200" in out
    assert " users v2 GET x/" in out


def test_tail_refuses_what_is_no_status_and_says_where_nobody_runs(proxy: Proxy) -> None:
    status, _, error = ended(command(proxy, "tail", "--status", "6xx"))
    assert status == 2
    assert "expected a status such as 404, a class such as 5xx" in error
    line = [sys.executable, "-m", "graylb.cli", "tail", "--admin", "127.0.0.1:1"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "no proxy answers on 127.0.0.1:1" in done.stderr


def test_workers_stop_when_nobody_looks_on_any_more(proxy: Proxy) -> None:
    status, _, _ = until_ends(proxy, command(proxy, "tail", "-n", "1"), ("/",))
    assert status == 0
    with_nobody = [proxy.call("/stats")[0]["stats"]["access_log"]]
    assert with_nobody[0]["dropped"] == 0


def test_top_shows_versions_side_by_side(proxy: Proxy) -> None:
    process = command(proxy, "top", "--once", "--json", "--interval", "2")
    status, out, error = until_ends(proxy, process, ("/", "x-user: u1"), ("/",))
    assert (status, error) == (0, "")
    found = {row["version"]: row for row in json.loads(out)}
    assert found["v1"]["wanted"] == 75
    assert found["v2"]["wanted"] == 25
    assert found["v1"]["requests"] + found["v2"]["requests"] > 0
    assert found["v1"]["served"] + found["v2"]["served"] == pytest.approx(100)
    assert found["v2"]["p50"] <= found["v2"]["p99"]
    status, out, _ = ended(command(proxy, "top", "--once", "--interval", "0.1"))
    assert status == 0
    assert "users" in out
    assert "75.00%" in out


def stats(worker: int, requests: int, errors: int, times: dict[int, int]) -> dict[str, Any]:
    version = {
        "service": "s",
        "version": "v1",
        "statuses": {"2xx": requests, "5xx": errors},
        "failed_calls": 0,
        "times": [*times.items()],
    }
    instance = {"service": "s", "version": "v1", "in_flight": 2}
    return {"worker": worker, "stats": {"versions": [version], "instances": [instance]}}


def test_figures_are_differences_of_all_workers() -> None:
    before = counts([stats(0, 100, 0, {1000: 100}), {"worker": 1, "stats": None}])
    now = counts([stats(0, 150, 10, {1000: 150, 8000: 10}), stats(1, 40, 0, {2000: 40})])
    (row,) = rows(before, now, 2.0, {"s": {"v1": 1, "v2": 3}})
    assert (row.requests, row.errors, row.in_flight) == (50.0, 10.0, 4)
    assert (row.p50, row.p95, row.p99) == (1.0, 8.0, 8.0)
    assert (row.wanted, row.served) == (25.0, 100.0)
    # a worker that was replaced begins anew
    (row,) = rows(now, counts([stats(0, 5, 0, {1000: 5})]), 1.0, {})
    assert (row.requests, row.p50, row.wanted) == (5.0, 1.0, None)
    assert rows({("s", "v1"): Counts()}, {("s", "v1"): Counts(Counter(), Counter(), 1)}, 1.0, {})[0].p50 is None


def test_statuses_are_read() -> None:
    assert (statuses("404"), statuses("5xx"), statuses("400-499")) == ((404, 404), (500, 599), (400, 499))
    for wrong in ("", "xx", "6xx", "a-b", "4-"):
        with pytest.raises(ValueError, match="expected a status"):
            statuses(wrong)
    assert Wanted(status=(500, 599)).holds({"status": 503, "service": "s"})
    assert not Wanted(service="t").holds({"status": 503, "service": "s"})


def test_the_admin_api_names_what_it_does_not_take(proxy: Proxy, tmp_path: Path) -> None:
    import httpx

    with httpx.Client(base_url=f"http://{proxy.admin}") as client:
        for query in ("status=99xx", "service=%20", "rule=%2F", "what=1"):
            answer = client.get(f"/tail?{query}")
            assert answer.status_code == 422, query
            assert answer.json()["error"] == "invalid"
