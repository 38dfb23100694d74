"""One run of h2load, and what it says."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.h2.cases import MESSAGE, Case


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


def parse(output: str, size: int, what: str) -> int:
    """Requests that were answered; of its times it tells mean and extremes only, which hold what it was stopped for.

    Raises BenchError for any error, any status but 2xx, no answers, or too few bytes for `size`-byte bodies.
    """
    counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", output)
    statuses = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    traffic = re.search(r"\((\d+)\) data", output)
    if not (counts and statuses and traffic):
        raise BenchError(f"{what}: h2load told no figures: {output[-300:]!r}")
    done, succeeded, failed = (int(each) for each in counts.groups())
    good, *others = (int(each) for each in statuses.groups())
    if failed or succeeded != done or good < done or any(others):  # the heads of some that are not done are in `good`
        raise BenchError(f"{what}: of {done} requests {failed} failed, {good} got a 2xx, {sum(others)} another status")
    if not done:
        raise BenchError(f"{what}: no requests were answered")
    if int(traffic.group(1)) < done * size:
        raise BenchError(f"{what}: {traffic.group(1)} bytes for {done} bodies of {size}")
    return done


def finish(process: subprocess.Popen[str], case: Case, seconds: float, what: str) -> int:
    """Waits for h2load and reads its figures: requests."""
    try:
        output, said = process.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchError(f"{what}: h2load did not end within {seconds + 20:.0f} s") from None
    if process.returncode:
        raise BenchError(f"{what}: h2load ended with status {process.returncode}: {said[-300:]}")
    return parse(output, case.size, what)
