"""`python -m benchmarks.faults.client METHOD PORT CONNECTIONS SECONDS [PATH] [RATE]`: callers that count what they get.

Each asks again over its keep-alive connection once it has its answer; a new connection follows a broken one. Every
request has an id of its own, in x-id. In the end one line of JSON: `asked`; `answered` by status; `failed`: the
connection broke, was refused, or an answer stopped before its end, with the reasons in `why`; `origins`: answers by
x-origin; `p50_ms`, `p99_ms`, `max_ms` of whole answers; `good`: answers 200 within DEADLINE. With RATE so many requests
fall due a second, whatever becomes of those before, and times count from then on.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import Counter

import orjson
import uvloop

PAUSE = {"GET": 0.0005, "POST": 0.002}
TIMEOUT = 10.0
DEADLINE = 0.5
"""Seconds after which an answer is of no use any more."""


class Callers:
    def __init__(self, method: str, port: int, seconds: float, path: str = "/128", rate: float = 0.0) -> None:
        self.method, self.port, self.path, self.rate = method, port, path, rate
        self.end = time.monotonic() + seconds
        self.due = time.monotonic()  # of the next request, with a rate
        self.asked = self.failed = self.good = 0
        self.refused_took: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.origins: Counter[str] = Counter()
        self.took: list[float] = []
        self.why: Counter[str] = Counter()

    async def work(self, number: int) -> None:
        turn = 0
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while time.monotonic() < self.end:
            turn += 1
            began = await self.turn()
            if began >= self.end:
                break
            self.asked += 1
            try:
                async with asyncio.timeout(TIMEOUT):
                    if link is None:
                        link = await asyncio.open_connection("127.0.0.1", self.port)
                    status, keep = await self.ask(*link, f"{number}-{turn}")
                self.took.append(time.monotonic() - began)
                if status >= 500:
                    self.refused_took.append(self.took[-1])
                self.good += status == 200 and self.took[-1] <= DEADLINE
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                self.failed += 1
                self.why[type(error).__name__] += 1
                keep = False
                await asyncio.sleep(0.01)
            if not keep and link is not None:
                link[1].close()
                link = None
            if not self.rate:
                await asyncio.sleep(PAUSE[self.method])

    async def turn(self) -> float:
        """When the request that the caller is to make now fell due."""
        if not self.rate:
            return time.monotonic()
        due = self.due
        self.due += 1 / self.rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        return due

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> tuple[int, bool]:
        """The status, and whether the connection may be used again."""
        body = "content-length: 4\r\n\r\nbody" if self.method == "POST" else "\r\n"
        writer.write(f"{self.method} {self.path} HTTP/1.1\r\nhost: x\r\nx-id: {name}\r\n{body}".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        if "content-length" in fields:
            await reader.readexactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        else:
            await reader.read()
        status = int(head[0].split(" ")[1])
        self.statuses[status] += 1
        if "x-origin" in fields:
            self.origins[fields["x-origin"]] += 1
        return status, fields.get("connection") != "close"

    def figures(self) -> dict[str, object]:
        took, refused = sorted(self.took) or [0.0], sorted(self.refused_took) or [0.0]
        return {
            "good": self.good,
            "refused_p99_ms": refused[math.ceil(len(refused) * 0.99) - 1] * 1000,
            "asked": self.asked,
            "answered": {str(status): count for status, count in sorted(self.statuses.items())},
            "failed": self.failed,
            "why": self.why,
            "origins": self.origins,
            **{f"p{share}_ms": took[math.ceil(len(took) * share / 100) - 1] * 1000 for share in (50, 99)},
            "max_ms": took[-1] * 1000,
        }


async def main() -> None:
    method, port, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    path, rate = sys.argv[5:] or ("/128", "0")
    callers = Callers(method, port, seconds, path, float(rate))
    await asyncio.gather(*(callers.work(number) for number in range(count)))
    print(orjson.dumps(callers.figures()).decode())


if __name__ == "__main__":
    uvloop.run(main())
