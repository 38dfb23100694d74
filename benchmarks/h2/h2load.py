"""One run of h2load, and what it says."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.h2.cases import MESSAGE, Case

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True, slots=True)
class H2load:
    """Times in microseconds."""

    requests: int
    seconds: float
    bytes: int  # of bodies
    mean_us: float
    max_us: float


def message() -> bytes:
    """One gRPC message, uncompressed."""
    length = MESSAGE - 5
    return struct.pack(">BI", 0, length) + b"m" * length


def command(case: Case, port: int, seconds: float, work: Path, *, tls: bool = False) -> list[str]:
    """The command line that measures `case` for `seconds` (whole ones) on one thread; a body's file goes to `work`."""
    found = [
        programs.find("h2load"), "-t1", f"-c{case.connections}", f"-m{case.streams}", f"-D{seconds:.0f}",
        "-w20", "-W24",  # windows that nobody waits for
    ]  # fmt: skip
    if case.grpc:
        body = work / "message"
        if not body.exists():
            body.write_bytes(message())
        found += ["-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    if tls:
        found += ["--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"]
    return [*found, f"http{'s' if tls else ''}://127.0.0.1:{port}{case.path}"]


def microseconds(text: str) -> float:
    """Reads `1.29ms`, `623us` or `2.00s`."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    if found is None:
        raise BenchError(f"h2load told a time that is none: {text!r}")
    return float(found.group(1)) * UNITS[found.group(2)]


def parse(output: str, size: int, what: str) -> H2load:
    """Raises BenchError for any error, any status but 2xx, no answers, or too few bytes for `size`-byte bodies."""
    counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", output)
    statuses = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    length = re.search(r"finished in ([\d.]+m?s)", output)
    traffic = re.search(r"\((\d+)\) data", output)
    times = re.search(r"time for request: +(\S+) +(\S+) +(\S+)", output)
    if not (counts and statuses and length and traffic and times):
        raise BenchError(f"{what}: h2load told no figures: {output[-300:]!r}")
    done, succeeded, failed = (int(each) for each in counts.groups())
    good, *others = (int(each) for each in statuses.groups())
    if failed or succeeded != done or good < done or any(others):  # the heads of some that are not done are in `good`
        raise BenchError(f"{what}: of {done} requests {failed} failed, {good} got a 2xx, {sum(others)} another status")
    if not done:
        raise BenchError(f"{what}: no requests were answered")
    if int(traffic.group(1)) < done * size:
        raise BenchError(f"{what}: {traffic.group(1)} bytes for {done} bodies of {size}")
    _, most, mean = times.groups()
    return H2load(
        done, microseconds(length.group(1)) / 1e6, int(traffic.group(1)), microseconds(mean), microseconds(most)
    )


def finish(process: subprocess.Popen[str], case: Case, seconds: float, what: str) -> H2load:
    """Waits for h2load and reads its figures."""
    try:
        output, said = process.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchError(f"{what}: h2load did not end within {seconds + 20:.0f} s") from None
    if process.returncode:
        raise BenchError(f"{what}: h2load ended with status {process.returncode}: {said[-300:]}")
    return parse(output, case.size, what)
