"""What is measured over HTTP/2, and what is promised of it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.load.cases import Law

MESSAGE = 16
"""Bytes of a gRPC request's body, the 5 of its prefix included."""


@dataclass(frozen=True, slots=True)
class Case:
    """`streams` requests are open on each of `connections` all the time. `grpc`: POST, answered with trailers."""

    name: str
    title: str
    streams: int
    size: int = 64  # bytes of the response body
    grpc: bool = True
    upstream: str = "h2"  # or h1
    connections: int = 8
    quick: bool = False

    @property
    def path(self) -> str:
        return f"/bench.Echo/{self.size}" if self.grpc else f"/{self.size}"


CASES = (
    Case("grpc-8x32", "gRPC POST, 8 connections × 32 streams", 32, quick=True),
    Case("grpc-8x1", "gRPC POST, 8 connections × 1 stream", 1, quick=True),
    Case("get-64k", "64 KiB GET, 8 × 4", 4, size=64 << 10, grpc=False),
    Case("to-h1-8x32", "128 B GET to an HTTP/1.1 upstream, 8 × 32", 32, size=128, grpc=False, upstream="h1"),
    Case("to-h1-8x1", "128 B GET to an HTTP/1.1 upstream, 8 × 1", 1, size=128, grpc=False, upstream="h1"),
)

LAWS = (
    Law("grpc-8x32", "nghttpx", 0.75),
    Law("grpc-8x32", "haproxy", 0.45),
    Law("grpc-8x32", "envoy", 0.20),
    Law("grpc-8x1", "nghttpx", 0.95),
    Law("grpc-8x1", "haproxy", 0.80),
)
