"""What a snapshot says of logs and traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Otlp = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True)
class AccessLog:
    """path: `stdout`, `stderr` or a file, relative to the document."""

    path: str = "stdout"
    json: bool = True
    parts: tuple[tuple[str, str], ...] = ()  # (literal text, field behind it), see model.log_fields
    sample: tuple[float, ...] = (100.0,) * 5  # percent of 1xx … 5xx that is written
    buffer: int = 1 << 22  # bytes, in each worker


@dataclass(frozen=True, slots=True)
class OtlpExport:
    """Where spans go. Paths of files are relative to the document; times in seconds."""

    endpoint: str
    protocol: Otlp = "grpc"
    headers: tuple[tuple[str, str], ...] = ()
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Tracing:
    otlp: OtlpExport
    sample: float = 1.0  # percent of the traces that begin here
    parent_based: bool = True
    always_errors: bool = True
    service_name: str = "graylb"
    attributes: tuple[tuple[str, str], ...] = field(default=())  # of the resource
    queue: int = 2048  # spans
