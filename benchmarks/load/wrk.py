"""One run of wrk, and what it says."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.load.cases import Case
from benchmarks.load.peers import NATIVE
from benchmarks.load.turns import Load, Told

ERRORS = ("connect", "read", "write", "status", "timeout")


@dataclass(frozen=True, slots=True)
class Wrk:
    """Latencies in microseconds, exact to one."""

    requests: int
    seconds: float
    bytes: int
    p50_us: int
    p99_us: int
    p999_us: int
    max_us: int


def command(case: Case, port: int, seconds: float) -> list[str]:
    """The command line that measures `case` for `seconds` (whole ones: wrk knows no others) on one thread."""
    headers = [part for name, value in case.headers for part in ("-H", f"{name}: {value}")]
    return [
        programs.find("wrk"), "-t1", f"-c{case.connections}", f"-d{seconds:.0f}s", *headers,
        "-s", str(NATIVE / "wrk.lua"), f"http://127.0.0.1:{port}/{case.size}", "--",
        case.method, str(case.body), str(case.users),
    ]  # fmt: skip


def figures(output: str, what: str) -> Mapping[str, Any]:
    """wrk.lua's line. Raises BenchError unless there is one."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if len(lines) != 1:
        raise BenchError(f"{what}: wrk printed {len(lines)} lines of figures, expected 1: {output[-300:]!r}")
    found: Mapping[str, Any] = orjson.loads(lines[0])
    return found


def count(output: str, what: str) -> tuple[int, int]:
    """(requests answered, failures of any kind). Raises BenchError when wrk told nothing."""
    found = figures(output, what)
    return int(found["requests"]), sum(int(found["errors"][kind]) for kind in ERRORS)


def parse(output: str, size: int, what: str) -> Wrk:
    """Reads wrk.lua's line. Raises BenchError for any error, no answers, or too few bytes for `size`-byte bodies."""
    found = figures(output, what)
    failed = {kind: found["errors"][kind] for kind in ERRORS if found["errors"][kind]}
    if failed:
        raise BenchError(f"{what}: errors {failed} among {found['requests']} requests")
    if found["requests"] < 1 or found["duration_us"] < 1 or found["p50_us"] < 1:
        raise BenchError(f"{what}: no requests were answered")
    if found["bytes"] < found["requests"] * size:
        raise BenchError(f"{what}: {found['bytes']} bytes for {found['requests']} bodies of {size}")
    return Wrk(
        found["requests"], found["duration_us"] / 1e6, found["bytes"],
        found["p50_us"], found["p99_us"], found["p999_us"], found["max_us"],
    )  # fmt: skip


def finish(process: subprocess.Popen[str], case: Case, seconds: float, what: str) -> Wrk:
    """Waits for wrk and reads its figures."""
    try:
        output, said = process.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchError(f"{what}: wrk did not end within {seconds + 20:.0f} s") from None
    if process.returncode:
        raise BenchError(f"{what}: wrk ended with status {process.returncode}: {said[-300:]}")
    return parse(output, case.size, what)


def load_of(case: Case) -> Load:
    """A case as a load that takes turns."""

    def told(process: subprocess.Popen[str], seconds: int, what: str) -> Told:
        found = finish(process, case, seconds, what)
        return Told(found.requests, found.p50_us)

    return Load(
        case.name, lambda peer, seconds: command(case, peer.port, seconds), told, case.connections, case.v2_share
    )
