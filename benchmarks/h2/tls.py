"""TLS: keep-alive, handshakes full and resumed, HTTP/2 over it; the same certificate, suite and tickets for all.

Every client speaks TLS 1.3 with TLS_AES_128_GCM_SHA256 over X25519 and nothing else, so that all proxies do the same
arithmetic. Handshakes are those of `native/handshakes.c`, a connection for each request.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.h2.cases import CASES as H2_CASES
from benchmarks.h2.measured import measure
from benchmarks.h2.peers import KINDS, Side
from benchmarks.h2.run import load_of as over_h2
from benchmarks.h2.scene import Scene, all_up, scene
from benchmarks.load import wrk
from benchmarks.load.cases import Case as WrkCase
from benchmarks.load.cases import Law
from benchmarks.load.peers import Peer
from benchmarks.load.stage import finish, my_cores
from benchmarks.load.turns import Load, Told

PEERS = ("graylb", "nghttpx", "haproxy", "nginx")
HANDSHAKES = 16
"""At a time."""
KEEPALIVE = WrkCase("tls-get-128", "HTTP/1.1 keep-alive, 128 B, 64 connections", 128)
OVER_TLS = {case.name: case for case in H2_CASES if case.name in ("grpc-8x32", "grpc-8x1")}


@dataclass(frozen=True, slots=True)
class Case:
    """`tool`: wrk, handshakes or h2load; `mode`: of handshakes full or resumed, of h2load the name of its case."""

    name: str
    title: str
    tool: str
    side: Side
    mode: str = ""
    quick: bool = False


CASES = (
    Case("tls-get-128", KEEPALIVE.title, "wrk", Side("h1", "ecdsa"), quick=True),
    Case("tls-full-ecdsa", "full handshakes, ECDSA P-256", "handshakes", Side("h1", "ecdsa"), "full", quick=True),
    Case("tls-full-rsa", "full handshakes, RSA 2048", "handshakes", Side("h1", "rsa"), "full"),
    Case("tls-resumed", "resumed handshakes", "handshakes", Side("h1", "ecdsa"), "resumed"),
    Case("tls-grpc-8x32", "gRPC POST over TLS, 8 × 32", "h2load", Side("h2", "ecdsa"), "grpc-8x32"),
    Case("tls-grpc-8x1", "gRPC POST over TLS, 8 × 1", "h2load", Side("h2", "ecdsa"), "grpc-8x1"),
)
LAWS = (
    Law("tls-get-128", "nginx", 0.80),
    Law("tls-full-ecdsa", "nginx", 1.20),
    Law("tls-full-rsa", "nginx", 1.20),
    Law("tls-resumed", "nginx", 1.20),
)


def wrk_command(on: Scene, port: int, seconds: int) -> list[str]:
    """wrk over TLS, its OpenSSL told to know one suite only."""
    plain = wrk.command(KEEPALIVE, port, seconds)
    return [
        "env", f"OPENSSL_CONF={on.work / 'client.cnf'}", *(each.replace("http://", "https://") for each in plain)
    ]  # fmt: skip


def load_of(case: Case, on: Scene) -> Load:
    """A case as a load that takes turns."""
    if case.tool == "h2load":
        return over_h2(OVER_TLS[case.mode], case.name, case.side, on.work)
    if case.tool == "wrk":
        plain = wrk.load_of(KEEPALIVE)
        return replace(plain, command=lambda peer, seconds: wrk_command(on, peer.port, seconds))

    def shakes(peer: Peer, seconds: int) -> list[str]:
        return on.native("handshakes", peer.port, "/128", HANDSHAKES, seconds, case.mode)

    def shaken(process: subprocess.Popen[str], seconds: int, what: str) -> Told:
        found = finish(process, seconds + 20, what)
        check_handshakes(found, case, what)
        return Told(found["requests"])

    return Load(case.name, shakes, shaken, HANDSHAKES)


def check_handshakes(found: Mapping[str, Any], case: Case, what: str) -> None:
    """Full means none resumed, resumed means all but the first of each place."""
    requests, resumed = found["requests"], found["resumed"]
    if requests < 2 * HANDSHAKES:
        raise BenchError(f"{what}: {requests} handshakes only")
    if resumed != (0 if case.mode == "full" else requests - HANDSHAKES):
        raise BenchError(f"{what}: {resumed} of {requests} handshakes were resumed, expected {case.mode} ones")
    if found["bytes"] < requests * 128:
        raise BenchError(f"{what}: {found['bytes']} bytes for {requests} answers of 128")


def run(names: Sequence[str], cases: Sequence[Case], rounds: int, seconds: int) -> dict[str, Any]:
    """All rounds: the raw result, ready for JSON. Raises BenchError."""
    cores = my_cores()
    programs = ("wrk", "h2load", "cc", *(KINDS[name].program for name in names if KINDS[name].program))
    environment = stamp.environment(programs)
    sides = sorted({case.side for case in cases}, key=lambda side: side.name)
    with scene(cores, ["handshakes"]) as on, all_up(on, names, sides) as up:
        rows = measure([(load_of(case, on), case.side) for case in cases], names, up, on, rounds, seconds)
    settings = {
        "rounds": rounds, "seconds": seconds, "peers": list(names), "cases": [case.name for case in cases],
        "proxy_cores": sorted(cores.proxy), "load_cores": sorted(cores.load),
    }  # fmt: skip
    return {"kind": "tls", "stamp": environment, "settings": settings, "runs": rows}


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    titles = {**titles, **{case.name: case.title for case in CASES}, **{n: k.title for n, k in KINDS.items()}}
    return report.sections(
        "TLS",
        result,
        [
            ("Laws", report.laws(result, titles, LAWS)),
            ("CPU µs per request (whole process tree)", report.figures(result, titles, "cpu_us", compare=True)),
            ("Requests per second", report.figures(result, titles, "rps", compare=True)),
        ],
        titles,
    )
