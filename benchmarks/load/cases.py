"""What is measured: one case is one kind of request at one number of connections."""

from __future__ import annotations

from dataclasses import dataclass

SPLIT = 0.05
"""Share of v2 in the split that every proxy serves; the rest is v1's."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    title: str
    size: int  # bytes of the response body
    connections: int = 64
    method: str = "GET"
    body: int = 0  # bytes of the request body
    headers: tuple[tuple[str, str], ...] = ()
    v2_share: float = SPLIT
    floor: bool = True  # the floor pools nothing, so it is none when every request brings its own connection
    quick: bool = False


CASES = (
    Case("get-128", "128 B, 64 connections", 128, quick=True),
    Case("get-128-c512", "128 B, 512 connections", 128, connections=512, quick=True),
    Case("rule-128", "128 B, header rule", 128, headers=(("user-group", "beta"),), v2_share=1.0),
    Case("get-10k", "10 KiB", 10 << 10),
    Case("post-10k", "POST 10 KiB", 128, method="POST", body=10 << 10, quick=True),
    Case("get-100k", "100 KiB", 100 << 10),
    Case("get-1m", "1 MiB", 1 << 20),
    Case("close-128", "128 B, new connection per request", 128, headers=(("Connection", "close"),), floor=False),
)
