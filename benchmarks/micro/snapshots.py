"""Configurations and request heads of the sizes that micro benchmarks ask for."""

from __future__ import annotations

from graylb.model.snapshot import Condition, Instance, Listener, Match, Route, Rule, Service, Snapshot, Split, StickyKey
from graylb.model.snapshot import Subset as To
from graylb.release.slots import allocate

SERVICE = "bench"
WEIGHTS = {"v1": 95.0, "v2": 5.0}
BARE = b"GET /128 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 128\r\n"
    b"Cache-Control: no-store\r\nX-Version: v1\r\n\r\n"
)


def exact_rules(count: int) -> tuple[Rule, ...]:
    """Rules that each ask one header for one value: user `u0`, `u1`, …"""
    return tuple(
        Rule(f"r{each}", Match(all=(Condition("header", "exact", (f"u{each}",), "x-user-id"),)), to=To(version="v2"))
        for each in range(count)
    )


def address(number: int) -> str:
    """A distinct address of 10.0.0.0/8 for each number below 2^24."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:80"


def snapshot(rules: tuple[Rule, ...] = (), instances: int = 2, sticky: tuple[StickyKey, ...] = ()) -> Snapshot:
    """One service with a 95/5 split; the instances alternate between v1 and v2, with differing weights."""
    service = Service(
        name=SERVICE,
        stable="v1",
        split=Split(tuple(WEIGHTS.items()), salt="bench", slots=str(allocate(None, WEIGHTS, "v1"))),
        sticky=sticky,
        rules=rules,
        instances=tuple(Instance(address(each), f"v{each % 2 + 1}", 50 + each % 100) for each in range(instances)),
    )
    return Snapshot(
        revision=1,
        listeners=(Listener("127.0.0.1:0"),),
        routes=(Route("all", "*", "prefix", "/", service=SERVICE),),
        services=(service,),
    )


def head(user: str | None) -> bytes:
    """A request head as browsers send it, 9 fields and about 500 bytes; with `user` the header that rules ask."""
    lines = [
        "GET /api/v1/users/42?fields=name,mail HTTP/1.1",
        "Host: users.example.com",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "Accept: application/json, text/plain;q=0.9, */*;q=0.8",
        "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Referer: https://users.example.com/start",
        "Cookie: session=0123456789abcdef0123456789abcdef; theme=dark",
        "Connection: keep-alive",
    ]
    if user is not None:
        lines.append(f"X-User-Id: {user}")
    return "\r\n".join([*lines, "", ""]).encode()
