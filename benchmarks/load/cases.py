"""What is measured: one case is one kind of request at one number of connections."""

from __future__ import annotations

from dataclasses import dataclass

SPLIT = 0.05
"""Share of v2 in the split that every proxy serves; the rest is v1's."""
GIB = 1 << 30

BROWSER = (
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
    ("Accept-Language", "en-GB,en;q=0.7,de;q=0.3"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Referer", "https://shop.example.com/catalogue?page=3&sort=price"),
    ("Cookie", "session=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b; theme=dark; consent=1; cart=4711-0815"),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Site", "same-origin"),
    ("Upgrade-Insecure-Requests", "1"),
    ("Priority", "u=0, i"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
)
"""A browser's head behind a tracing front end: with request line and Host some 700 bytes."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    title: str
    size: int  # bytes of the response body
    connections: int = 64
    method: str = "GET"
    body: int = 0  # bytes of the request body
    headers: tuple[tuple[str, str], ...] = ()
    users: int = 0  # each request names one of so many users in turn, in x-user-id
    v2_share: float = SPLIT
    floor: bool = True  # the floor pools nothing, so it is none when every request brings its own connection
    slow: bool = False  # on the slow peers, too
    many: bool = False  # on graylb alone: with three rules and with many
    quick: bool = False


MANY_RULES = 10_000
MANY_INSTANCES = 1_000

CASES = (
    Case("get-128", "128 B, 64 connections", 128, slow=True, quick=True),
    Case("get-128-c512", "128 B, 512 connections", 128, connections=512, quick=True),
    Case("browser-128", "128 B, browser's head", 128, headers=BROWSER, slow=True),
    Case("rule-128", "128 B, header rule", 128, headers=(("user-group", "beta"),), v2_share=1.0),
    Case("users-128", "128 B, 10,000 users in turn", 128, users=MANY_RULES, many=True),
    Case("get-10k", "10 KiB", 10 << 10),
    Case("post-10k", "POST 10 KiB", 128, method="POST", body=10 << 10, quick=True),
    Case("get-100k", "100 KiB", 100 << 10),
    Case("get-1m", "1 MiB", 1 << 20),
    Case("close-128", "128 B, new connection per request", 128, headers=(("Connection", "close"),), floor=False),
)


@dataclass(frozen=True, slots=True)
class Law:
    """A promise: in `case` the CPU per request of `ours` is at most `bound` times that of `other`."""

    case: str
    other: str
    bound: float
    ours: str = "graylb"


LAWS = (
    Law("get-128", "nginx", 0.80),
    Law("get-128", "haproxy", 0.85),
    Law("get-128", "envoy", 0.35),
    Law("get-128", "floor", 1.30),
    Law("get-128-c512", "nginx", 0.65),
    Law("get-128-c512", "haproxy", 0.70),
    *(Law(case, other, 0.85) for case in ("get-10k", "post-10k") for other in ("nginx", "haproxy")),
    *(Law(case, other, 1.0) for case in ("get-100k", "get-1m", "close-128") for other in ("nginx", "haproxy")),
    Law("users-128", "graylb", 1.05, ours="graylb-10k"),
)
