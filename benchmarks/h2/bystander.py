"""`python -m benchmarks.h2.bystander PORT REQUESTS RATE`: someone who asks politely, in a process of their own.

Requests go out at a constant rate on one connection; latency counts from when each was due. Prints one JSON line.
"""

from __future__ import annotations

import sys
import time

import orjson

from benchmarks.failure import BenchError
from benchmarks.h2.client import Client


def ask(port: int, requests: int, rate: float) -> tuple[list[float], int]:
    """(seconds that each request took, how many failed). After a failure it goes on with a new connection."""
    taken: list[float] = []
    failed = 0
    begin = time.monotonic()
    while len(taken) + failed < requests:
        try:
            with Client(port) as client:
                while (number := len(taken) + failed) < requests:
                    due = begin + number / rate
                    time.sleep(max(0.0, due - time.monotonic()))
                    if client.ask("/64").status != 200:
                        raise BenchError("another status than 200")
                    taken.append(time.monotonic() - due)
        except (BenchError, OSError):
            failed += 1
    return taken, failed


def main() -> None:
    port, requests, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    taken, failed = ask(port, requests, rate)
    taken.sort()
    at = {name: taken[int(len(taken) * share)] * 1e6 for name, share in (("p50_us", 0.5), ("p99_us", 0.99))}
    print(orjson.dumps({"requests": len(taken), "failed": failed, **at, "max_us": taken[-1] * 1e6}).decode())


if __name__ == "__main__":
    main()
