"""The HTTP/2 and TLS benchmarks: what is read, what is refused, their upstream, their proxies, their pages."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import programs, report, stamp
from benchmarks.failure import BenchError
from benchmarks.h2 import cases, certificates, h2load, scene, spec, tls
from benchmarks.h2.cases import MESSAGE
from benchmarks.h2.client import Client
from benchmarks.h2.measured import measure
from benchmarks.h2.peers import KINDS, Side
from benchmarks.h2.run import load_of
from benchmarks.h2.verify import GRPC, counts_at, verify
from benchmarks.keep import PAGES, TITLES
from benchmarks.load import peers
from benchmarks.load.peers import Peer
from benchmarks.load.stage import Cores, drive

CORES = frozenset(os.sched_getaffinity(0))
GRPC_CASE = next(case for case in cases.CASES if case.name == "grpc-8x32")


needs_nghttp2 = pytest.mark.skipif(
    not programs.has_header("nghttp2/nghttp2.h"), reason="libnghttp2-dev is not installed"
)
needs_openssl = pytest.mark.skipif(not programs.has_header("openssl/ssl.h"), reason="libssl-dev is not installed")


# -- h2load -------------------------------------------------------------------------------------------------------


def said(done: int = 1000, good: int | None = None, failed: int = 0, other: int = 0, data: int = 64_000) -> str:
    return f"""
finished in 2.00s, 500.00 req/s, 1.00MB/s
requests: {done} total, {done} started, {done} done, {done - failed} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {done if good is None else good} 2xx, 0 3xx, 0 4xx, {other} 5xx
traffic: 1.00MB (1000000) total, 1.00KB (1000) headers (space savings 93.87%), 1.00KB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      368us      5.06ms      1.29ms       623us    71.46%
"""


def test_h2load_figures_are_read() -> None:
    assert h2load.parse(said(), 64, "x") == 1000
    assert h2load.parse(said(good=1010), 64, "x") == 1000  # heads of requests that were not done yet


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (said(failed=1), "1 failed"),
        (said(good=999), "999 got a 2xx"),
        (said(other=3), "3 another status"),
        (said(done=0, data=0), "no requests"),
        (said(data=63_999), "bytes for 1000 bodies of 64"),
        ("could not connect", "told no figures"),
    ],
)
def test_what_proves_nothing_fails_the_run(output: str, message: str) -> None:
    with pytest.raises(BenchError, match=f"round 1: .*{message}"):
        h2load.parse(output, 64, "round 1")


def test_a_message_is_one_of_grpc(tmp_path: Path) -> None:
    message = h2load.message()
    assert len(message) == MESSAGE
    assert message[:5] == bytes([0, 0, 0, 0, MESSAGE - 5])


# -- upstream and proxies -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on() -> Iterator[scene.Scene]:
    with scene.scene(Cores(CORES, CORES)) as ready:
        yield ready


@needs_nghttp2
def test_the_upstream_answers_sizes_trailers_and_counts(on: scene.Scene) -> None:
    port = on.to["h2"].v1
    before = counts_at(port, "h2")
    with Client(port) as client:
        for size in (0, 1, 64, 1 << 20):
            answer = client.ask(f"/{size}")
            assert (answer.status, answer.fields["x-version"], answer.trailers) == (200, "v1", {})
            assert answer.body == b"x" * size
        answer = client.ask("/bench.Echo/64", GRPC, "POST", b"b" * 16_000)
        assert (answer.fields["content-type"], len(answer.body)) == ("application/grpc", 64)
        assert answer.body[:5] == bytes([0, 0, 0, 0, 59])
        assert answer.trailers == {"grpc-status": "0", "x-trailer": "v1"}
        assert "x-probe: 1\n" in client.ask("/head", [("x-probe", "1")]).body.decode()
        assert client.ask("/64", method="HEAD").body == b""
    after = counts_at(port, "h2").since(before)
    assert (after.requests, after.bodies) == (7, 16_000)


@needs_nghttp2
@pytest.mark.parametrize("side", [Side("h2"), Side("h1", "ecdsa")], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["nghttpx", "haproxy", "nginx"])
def test_peers_do_the_job(on: scene.Scene, name: str, side: Side) -> None:
    if programs.look_up(KINDS[name].program) is None:
        pytest.skip(f"{name} is not installed")
    with KINDS[name].start(on.start(side)) as peer:
        verify(peer, side, on.to[side.upstream])


@needs_nghttp2
def test_a_proxy_that_does_not_do_the_job_is_refused(on: scene.Scene) -> None:
    with pytest.raises(BenchError, match="liar does not do the job: user-group: beta to bench went to"):
        verify(Peer("liar", on.to["h2"].v1, os.getpid()), Side("h2"), on.to["h2"])


@needs_nghttp2
def test_proxies_are_under_load_in_turns(on: scene.Scene) -> None:
    names, side = ("nghttpx", "haproxy"), Side("h2")
    if any(programs.look_up(name) is None for name in (*names, "h2load")):
        pytest.skip("nghttpx, haproxy or h2load is not installed")
    with scene.all_up(on, names, [side]) as up:
        load = load_of(GRPC_CASE, GRPC_CASE.name, side, on.work)
        found = measure([(load, side)], names, up, on, rounds=1, seconds=1)
    assert [(row["round"], row["case"]) for row in found] == [(1, "grpc-8x32")] * 2
    assert {row["peer"] for row in found} == set(names)
    assert all(row["requests"] > 0 and row["cpu_us"] > 0 and row["p50_us"] is None for row in found)


# -- handshakes ---------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(work: Path) -> Iterator[int]:
    """One request a connection, on the benchmark's own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(work / "ecdsa.crt", work / "ecdsa.key")

    def serve(listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            with client, context.wrap_socket(client, server_side=True) as secured:
                if not secured.recv(4096).startswith(b"GET /128 "):
                    return
                secured.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 128)
                with suppress(OSError):  # the client is content with our close_notify
                    secured.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        plain = socket.create_connection(listener.getsockname())
        with certificates.trusting("http/1.1").wrap_socket(plain) as last:
            last.sendall(b"enough")
        thread.join(20)


@needs_openssl
@pytest.mark.parametrize("mode", ["full", "resumed"])
def test_each_request_is_a_handshake_of_its_kind(tmp_path: Path, mode: str) -> None:
    certificates.write_certificates(tmp_path)
    peers.compile_native(tmp_path, ["handshakes"])
    with tls_server(tmp_path) as port:
        found = drive([str(tmp_path / "handshakes"), str(port), "/128", "1", "0.3", mode], CORES, 50, "handshakes")
    assert found["requests"] >= 1
    assert found["resumed"] == (found["requests"] - 1 if mode == "resumed" else 0)
    assert found["bytes"] >= 128 * found["requests"]


def test_handshakes_of_the_other_kind_fail_the_run() -> None:
    full, resumed = (next(case for case in tls.CASES if case.mode == mode) for mode in ("full", "resumed"))
    good = {"requests": 100, "bytes": 20_000}
    tls.check_handshakes({**good, "resumed": 0}, full, "x")
    tls.check_handshakes({**good, "resumed": 100 - tls.HANDSHAKES}, resumed, "x")
    with pytest.raises(BenchError, match="x: 1 of 100 handshakes were resumed, expected full ones"):
        tls.check_handshakes({**good, "resumed": 1}, full, "x")
    with pytest.raises(BenchError, match="x: 0 of 100 handshakes were resumed, expected resumed ones"):
        tls.check_handshakes({**good, "resumed": 0}, resumed, "x")
    with pytest.raises(BenchError, match="x: 12799 bytes for 100 answers of 128"):
        tls.check_handshakes({"requests": 100, "bytes": 12_799, "resumed": 0}, full, "x")


# -- h2spec -------------------------------------------------------------------------------------------------------

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="a">
<testcase package="http2/5.1" classname="good"/>
<testcase package="http2/5.1.1" classname="bad"><failure>GOAWAY \x01 expected</failure></testcase>
<testcase package="hpack/4.2" classname="left out"><skipped/></testcase>
</testsuite></testsuites>"""


def test_what_h2spec_found_is_read_whatever_bytes_it_quotes() -> None:
    assert spec.parse(JUNIT) == {"tests": 3, "passed": 1, "failed": ["http2/5.1.1: bad", "hpack/4.2: left out"]}


# -- pages --------------------------------------------------------------------------------------------------------


def page(kind: str, runs: list[dict[str, Any]], names: list[str], shown: list[str]) -> str:
    settings = {
        "rounds": 2, "seconds": 1, "peers": names, "cases": shown, "proxy_cores": [1], "load_cores": [0],
    }  # fmt: skip
    return report.page({kind: {"stamp": stamp.environment(()), "settings": settings, "runs": runs}}, PAGES, TITLES)


def rows(case: str, **cpu: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "round": number, "case": case, "peer": name, "cpu_us": value, "rps": 1e6 / value,
            "pss_kib": 2048, "rss_kib": 4096, "disturbance": 0.0,
        }
        for name, values in cpu.items()
        for number, value in enumerate(values, 1)
    ]  # fmt: skip


def test_the_page_of_http2_judges_what_is_promised() -> None:
    text = page(
        "h2", rows("grpc-8x32", graylb=[7.0, 7.0], nghttpx=[10.0, 10.0], haproxy=[14.0, 14.0]),
        ["graylb", "nghttpx", "haproxy"], ["grpc-8x32"],
    )  # fmt: skip
    title = GRPC_CASE.title
    assert f"| {title} | graylb / nghttpx | **0.70** (0.70–0.70) | ≤ 0.75 | holds |" in text
    assert f"| {title} | graylb / HAProxy | **0.50** (0.50–0.50) | ≤ 0.45 | **broken** |" in text


def test_the_page_of_tls_judges_what_is_promised() -> None:
    text = page("tls", rows("tls-resumed", graylb=[10.0, 12.0], nginx=[10.0, 10.0]), ["graylb", "nginx"],
                ["tls-resumed"])  # fmt: skip
    assert "| resumed handshakes | graylb / nginx | **1.10** (1.00–1.20) | ≤ 1.20 | holds |" in text


def test_the_page_of_conformance_names_what_graylb_fails() -> None:
    found = [
        {"round": 1, "case": "h2spec", "peer": "graylb", "tests": 146, "passed": 145, "failed": ["http2/5.1: x"]},
        {"round": 1, "case": "h2spec", "peer": "nginx", "tests": 146, "passed": 120, "failed": ["http2/5.1: y"]},
    ]
    text = page("h2spec", found, ["graylb", "nginx"], ["h2spec"])
    assert "| graylb | 145 / 146 | none fails | **broken** |" in text
    assert "- http2/5.1: x\n" in text
    assert "http2/5.1: y" not in text


def test_a_peer_without_a_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["h2", "--peers", "graylb,caddy", "--out", str(tmp_path)]) == 1
    assert "h2: caddy has no part in it, expected some of graylb, nghttpx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
