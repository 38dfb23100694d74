"""Calls of gRPC are counted once, under the status that their clients were told, whoever has told it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from graylb import _grpc, builds
from graylb.cli.figures import counts, rows
from graylb.observe.metrics import GRPC_FAILURES
from tests.integration import proxies
from tests.integration.grpcs import Channel, Server, servers
from tests.integration.proxies import Proxy, until
from tests.integration.scrapes import by, scrape

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")

NAMES = dict(zip((code.value[0] for code in grpc.StatusCode), grpc.StatusCode, strict=True))


def test_failures_of_the_server_are_those_that_http_would_have_as_5xx() -> None:
    """So that alerts, outlier ejection and retries mean the same by them."""
    failures = {
        name
        for number, name in enumerate(_grpc.CODE_NAMES)
        if (_grpc.http_status_of(b"grpc-status: %d\r\n" % number) or 0) >= 500
    }
    assert failures == set(GRPC_FAILURES)
    assert [name.lower() for name in _grpc.CODE_NAMES] == [
        NAMES[number].name.replace("_", "").lower().replace("cancelled", "canceled") for number in range(17)
    ]


def one_call(channel: Channel, server: Server, what: str) -> grpc.StatusCode:
    """The status that a client is told of one call."""
    try:
        if what == "cancel":
            before = len(server.calls)
            call = channel.channel.unary_unary("/test.Echo/Hang").future(b"", timeout=30)
            until(lambda: len(server.calls) > before, "the call at its instance")
            call.cancel()
            server.wait_end()
            return grpc.StatusCode.CANCELLED
        if what == "late":
            list(channel.channel.unary_stream("/test.Echo/FailLate")(b"", timeout=30))
        elif what == "ok":
            channel.echo(b"hello")
        else:
            channel.unary("Fail", what.encode())
    except grpc.RpcError as error:
        return grpc.StatusCode[error.code().name]
    return grpc.StatusCode.OK


def test_calls_are_counted_by_what_their_clients_were_told(tmp_path: Path) -> None:
    choose = random.Random(11)
    whats = ["ok", "late", "cancel", "NOT_FOUND", "UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "DATA_LOSS nothing"]
    tally: Counter[grpc.StatusCode] = Counter()
    with servers("v1") as (server,):
        services = {
            "echo": proxies.service(server.address, hosts=["echo.test"], retries={"attempts": 1}),
            "empty": proxies.service(hosts=["empty.test"]),
        }
        document = proxies.document(
            services, admin={"address": "127.0.0.1:0"}, access_log={"path": str(tmp_path / "access.log")}
        )
        with proxies.running(tmp_path, document) as proxy:
            before = counts(proxy.call("/stats"))
            with Channel(proxy.address) as channel, Channel(proxy.address, "empty.test") as empty:
                for _ in range(60):
                    tally[one_call(channel, server, choose.choice(whats))] += 1
                for _ in range(3):
                    assert one_call(empty, server, "ok") == grpc.StatusCode.UNAVAILABLE
            _look(proxy, tally)
            (row,) = [each for each in rows(before, counts(proxy.call("/stats")), 1.0, {}) if each.service == "echo"]
            answered = tally.total() - tally[grpc.StatusCode.CANCELLED]
            failed = sum(tally[code] for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL))
            assert row.errors == pytest.approx(100 * (failed + tally[grpc.StatusCode.DATA_LOSS]) / answered)
        lines = [orjson.loads(line) for line in (tmp_path / "access.log").read_bytes().splitlines()]
        logged = Counter(line.get("grpc_status") for line in lines if line["host"] == "echo.test")
        assert logged.pop(None) == tally.pop(grpc.StatusCode.CANCELLED)  # nobody was told anything
        assert logged == Counter({code.value[0]: count for code, count in tally.items()})
        assert {line["grpc_status"] for line in lines if line["host"] == "empty.test"} == {14}


def _look(proxy: Proxy, tally: Counter[grpc.StatusCode]) -> None:
    def counted(name: str, service: str) -> Counter[str]:
        found: Counter[Any] = Counter()
        for labels, value in scrape(proxy).get(name, Counter()).items():
            if dict(labels)["service"] == service:
                found[labels] += value
        return by(found, "grpc_code")

    expected = Counter({_grpc.CODE_NAMES[code.value[0]]: count for code, count in tally.items()})
    until(lambda: counted("graylb_grpc_requests_total", "echo") == expected, "every call to be counted")
    assert counted("graylb_route_grpc_requests_total", "echo") == expected
    assert counted("graylb_grpc_requests_total", "empty") == {"Unavailable": 3}
    told = scrape(proxy)["graylb_requests_total"]
    assert sum(value for labels, value in told.items() if dict(labels)["service"] == "echo") == tally.total()
    shown = {dict(labels)["grpc_code"] for labels in scrape(proxy)["graylb_grpc_requests_total"]}
    assert shown == {"OK", *GRPC_FAILURES, *expected}  # these from the first on, so that rates see the first failure
