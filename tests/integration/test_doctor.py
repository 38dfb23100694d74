"""`graylb doctor` along chains of real services behind a real proxy; each service is a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from graylb import sdk
from graylb.cli.app import app
from tests.integration import chains, hops, proxies

SECRET = "a secret for signatures of marks"
HOPS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "users": ((), {}),
    "orders": ((), {}),
    "stock": ((), {}),
    "nohook": (("--no-hook",), {}),
    "bare": (("--no-middleware",), {}),
    "off": ((), {"GRAYLB_PROBES": "off"}),
    "lane": ((), {"GRAYLB_MARK_HEADERS": "x-lane", "GRAYLB_MARK_BAGGAGE": "off"}),
}


@dataclass(frozen=True)
class Setup:
    edge: str
    secret: Path

    def doctor(
        self, path: str, *options: str, of: str = "users.test", scheme: str = "http"
    ) -> tuple[int, dict[str, Any]]:
        """Its exit status and JSON, with a signed mark v2."""
        signed = ["--mark", "v2", "--secret", str(self.secret)]
        status, text = self.run(path, *signed, "--json", *options, of=of, scheme=scheme)
        return status, json.loads(text)

    def run(self, path: str, *options: str, of: str = "users.test", scheme: str = "http") -> tuple[int, str]:
        arguments = [f"{scheme}://{self.edge}{path}", "-H", f"host: {of}", "--timeout", "30s", *options]
        result = CliRunner().invoke(app, ["doctor", *arguments])
        return result.exit_code, result.output


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """The services of HOPS, and a chain of gRPC services; there is no v2, and the mark stays."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "secret").write_text(SECRET)
    outbound = str(folder / "out")
    with hops.running(outbound, HOPS) as addresses, chains.grpc_chain(outbound) as calls:
        services: dict[str, Any] = {
            name: proxies.service((address, "v1"), hosts=[f"{name}.test"]) for name, address in addresses.items()
        } | chains.services(calls)
        document = proxies.document(
            services,
            listeners=[{"address": "127.0.0.1:0"}, {"address": f"unix:{outbound}", "role": "outbound"}],
            mark={"signed": {"secret": str(folder / "secret")}},
        )
        with proxies.running(folder, document) as proxy:
            yield Setup(proxy.address, folder / "secret")


def findings(found: dict[str, Any]) -> list[tuple[str, str | None, str | None]]:
    return [(each["kind"], each["before"], each["at"]) for each in found["findings"]]


def names(found: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(each["name"], each["mark"]) for each in found["hops"]]


def test_a_whole_chain_is_fine(setup: Setup) -> None:
    status, found = setup.doctor("/orders.test/stock.test", "--expect", "users,orders,stock")
    assert (status, found["fine"], findings(found)) == (0, True, [])
    assert names(found) == [("users", "v2"), ("orders", "v2"), ("stock", "v2")]
    assert [each["passed"] for each in found["hops"]] == [["v2"], ["v2"], []]
    signed = ["--mark", "v2", "--secret", str(setup.secret)]
    status, text = setup.run("/orders.test/stock.test", *signed, "--expect", "users,orders,stock")
    assert (status, text) == (
        0,
        "users: got v2, passed on v2\n  orders: got v2, passed on v2\n    stock: got v2\n\n"
        "answer: HTTP 200\nfine: all 3 hops had the mark v2\n",
    )


def test_a_client_without_its_hook_is_named(setup: Setup) -> None:
    status, found = setup.doctor("/nohook.test/stock.test", "--expect", "users,nohook,stock")
    assert (status, findings(found)) == (1, [("missing", "nohook", "stock")])
    assert names(found) == [("users", "v2"), ("nohook", "v2")]


def test_a_service_without_middleware_is_named(setup: Setup) -> None:
    for path, options in (("/orders.test/bare.test", ()), ("/orders.test/bare.test", ("--expect", "users,bare"))):
        status, found = setup.doctor(path, *options)
        name = "bare" if options else "bare.test/"
        assert (status, findings(found)) == (1, [("silent", "orders", name)])
    assert setup.doctor("/orders.test/bare.test", "--ignore", "bare.*")[0] == 0


def test_probes_that_are_off_look_like_no_middleware(setup: Setup) -> None:
    status, found = setup.doctor("/off.test/stock.test", "--expect", "users,off,stock")
    assert (status, findings(found)) == (1, [("silent", "users", "off"), ("missing", None, "stock")])
    status, found = setup.doctor("/", of="off.test")
    assert (status, findings(found), found["status"]) == (1, [("no-trail", None, None)], "HTTP 200")


def test_between_whom_a_mark_is_lost(setup: Setup) -> None:
    status, text = setup.run("/orders.test/lane.test/stock.test", "--mark", "v2", "--secret", str(setup.secret))
    assert status == 1
    assert "orders: got v2, passed on none" in text
    assert "problem: lost between orders and lane: orders got v2, lane got none; " in text


def test_the_edge_takes_the_probe_of_a_stranger_off(setup: Setup) -> None:
    """Trails tell of services: whoever is not believed is not told."""
    for options in (("--mark", "v2"), ()):
        status, text = setup.run("/orders.test", *options)
        assert status == 1
        assert "problem: who was called answered no probe" in text
        assert "an edge listener took the probe off" in text
        assert "users" not in text


def test_an_answer_of_graylbs_own_says_so(setup: Setup) -> None:
    status, text = setup.run("/", of="nobody.test")
    assert status == 1
    assert "answer: HTTP 404, no-route of graylb's own\nproblem: who was called answered no probe" in text


def test_grpc(setup: Setup) -> None:
    """Services in the test's process, which is one service to the SDK."""
    name = sdk.settings().service
    status, found = setup.doctor("/test.Chain/Tell", "--expect", name, of="a.test", scheme="grpc")
    assert (status, found["fine"], found["status"]) == (0, True, "gRPC OK")
    assert names(found) == [(name, "v2")] * 3
    status, found = setup.doctor("/test.Chain/Nothing", of="a.test", scheme="grpc")
    assert (status, found["status"], findings(found)) == (1, "gRPC UNIMPLEMENTED", [("no-trail", None, None)])
    status, found = setup.doctor("/test.Chain/Tell", of="nobody.test", scheme="grpc")
    assert (status, found["error"]) == (1, "no-route")
