"""Spans on their way to a collector: lines of workers become spans of the OpenTelemetry SDK, whose exporters send them.

In a thread of its own, in batches; bounded: what comes while the queue is full is dropped and counted. The SDK is
loaded when a document first asks for tracing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from graylb import __version__
from graylb.control.logs import log
from graylb.model.snapshot_observe import OtlpExport, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

BATCH: Final = 512
EVERY: Final = 1.0
"""Seconds that a span waits for others, at most."""
LAST: Final = 3.0
"""Seconds for the rest at the end."""

ATTRIBUTES: Final = {
    "method": "http.request.method",
    "scheme": "url.scheme",
    "path": "url.path",
    "query": "url.query",
    "host": "server.address",
    "client_ip": "client.address",
    "client_port": "client.port",
    "http_user_agent": "user_agent.original",
    "status": "http.response.status_code",
    "bytes_in": "http.request.body.size",
    "bytes_out": "http.response.body.size",
    "request_id": "graylb.request_id",
    "listener": "graylb.listener",
    "service": "graylb.service",
    "route": "graylb.route",
    "version": "graylb.version",
    "rule": "graylb.rule",
    "slot": "graylb.slot",
    "draw": "graylb.draw",
    "fallback": "graylb.fallback",
    "instance": "graylb.instance",
    "revision": "graylb.revision",
    "attempts": "graylb.attempts",
    "error_source": "graylb.error_source",
    "aborted": "graylb.aborted",
    "first_byte": "graylb.first_byte",
    "connect": "graylb.connect",
    "worker": "graylb.worker",
}
"""Field of a line -> attribute of a span: OpenTelemetry's semantic conventions for HTTP, and ours."""


@dataclass
class Figures:
    """Spans. problem: why the last batch was not taken, empty when it was."""

    exported: int = 0
    dropped: int = 0  # for the queue was full
    failed: int = 0  # for the collector did not take them
    problem: str = ""


class Spans:
    """folder: of the document, which paths are relative to. Call `close` from where it may wait."""

    def __init__(self, folder: Path) -> None:
        self.figures = Figures()
        self._folder = folder
        self._wanted: Tracing | None = None
        self._lines: deque[bytes] = deque()
        self._news = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    def follow(self, wanted: Tracing | None) -> None:
        """Spans go there from now on; None: nowhere."""
        self._wanted = wanted
        if wanted is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
            self._thread.start()

    def add(self, line: bytes) -> None:
        """`S` and a JSON object, as workers write it."""
        if self._wanted is None:
            return
        if len(self._lines) >= self._wanted.queue:
            self.figures.dropped += 1
            return
        self._lines.append(line)
        if len(self._lines) >= BATCH:
            self._news.set()

    def close(self) -> None:
        """Sends what is there, and ends."""
        self._ending = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(LAST)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        logging.getLogger("opentelemetry").propagate = False  # what it says there, `problem` says
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        made: tuple[Tracing, SpanExporter, Resource] | None = None
        while not (self._ending and not self._lines):
            self._news.wait(EVERY)
            self._news.clear()
            wanted = self._wanted
            if wanted is None:
                self._lines.clear()
                if self._ending:
                    break
                continue
            try:
                if made is None or made[0] != wanted:
                    if made is not None:
                        made[1].shutdown()
                    made = wanted, _exporter(wanted.otlp, self._folder), _resource(wanted)
                self._send(made[1], made[2])
            except Exception as error:  # the exporter's affair, and no reason to end
                self._failed(len(self._lines), f"{wanted.otlp.endpoint}: {error}")
                self._lines.clear()
        if made is not None:
            made[1].shutdown()

    def _send(self, exporter: SpanExporter, resource: Resource) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        while self._lines:
            batch = [self._lines.popleft() for _ in range(min(BATCH, len(self._lines)))]
            if exporter.export([span_of(line, resource) for line in batch]) is SpanExportResult.SUCCESS:
                self.figures.exported += len(batch)
                if self.figures.problem:
                    log.info("spans are exported again; %d were lost", self.figures.failed)
                self.figures.problem = ""
            else:
                assert self._wanted is not None
                self._failed(len(batch), f"{self._wanted.otlp.endpoint} does not take them")
            if self._ending and self.figures.problem:
                return  # nobody waits for a collector that is not there

    def _failed(self, count: int, why: str) -> None:
        self.figures.failed += count
        if self.figures.problem != why:
            log.warning("spans cannot be exported: %s", why)
            self.figures.problem = why


def span_of(line: bytes, resource: Resource) -> ReadableSpan:
    """The span of one request: SERVER, as a proxy's is for whoever called it; what it calls names it as parent."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

    found: dict[str, Any] = orjson.loads(line[1:])
    trace_id = int(found["trace_id"], 16)
    parent = None
    state = None
    if "parent_id" in found:
        state = TraceState.from_header([found["tracestate"]]) if "tracestate" in found else None
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(trace_id, int(found["parent_id"], 16), True, flags, state)
    context = SpanContext(trace_id, int(found["span_id"], 16), False, TraceFlags(TraceFlags.SAMPLED), state)
    # Unix time in nanoseconds, exactly: a float has not the digits
    began = datetime.fromisoformat(found["time"])
    start = (int(began.timestamp()) * 1_000_000 + began.microsecond) * 1000
    failed = found.get("error") or (str(found["status"]) if found["status"] >= 500 else None)
    return ReadableSpan(
        name=_name(found),
        context=context,
        parent=parent,
        resource=resource,
        attributes=_attributes(found, failed),
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, found.get("error")) if failed and found["status"] != 499 else Status(),
        start_time=start,
        end_time=start + round(found["duration"] * 1e9),
        instrumentation_scope=InstrumentationScope("graylb", __version__),
    )


def _grpc(found: dict[str, Any]) -> tuple[str, str] | None:
    """(service, method) of a gRPC call."""
    if not found.get("http_content_type", "").startswith("application/grpc"):
        return None
    service, _, method = found.get("path", "").strip("/").rpartition("/")
    return (service, method) if service and method else None


def _name(found: dict[str, Any]) -> str:
    """Of few different ones: no path is in it."""
    if called := _grpc(found):
        return "/".join(called)
    return " ".join(filter(None, (found.get("method", "HTTP"), found.get("route"))))


def _attributes(found: dict[str, Any], failed: str | None) -> dict[str, Any]:
    told = {name: found[field] for field, name in ATTRIBUTES.items() if field in found}
    host, colon, port = found.get("host", "").rpartition(":")
    if colon and port.isdecimal():
        told |= {"server.address": host.strip("[]"), "server.port": int(port)}
    name, _, version = found.get("protocol", "HTTP/").partition("/")
    told |= {"network.protocol.name": name.lower(), "network.protocol.version": version}
    if called := _grpc(found):
        told |= {"rpc.system": "grpc", "rpc.service": called[0], "rpc.method": called[1]}
    if failed:
        told["error.type"] = failed
    return told


def _resource(wanted: Tracing) -> Resource:
    from opentelemetry.sdk.resources import Resource

    return Resource.create(
        {**dict(wanted.attributes), "service.name": wanted.service_name, "service.version": __version__}
    )


def _exporter(otlp: OtlpExport, folder: Path) -> SpanExporter:
    """Raises OSError for files that cannot be read, and what the SDK raises."""
    paths = [None if each is None else folder / each for each in (otlp.ca, otlp.cert, otlp.key)]
    if otlp.protocol == "http":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        names = [None if path is None else str(path) for path in paths]
        return OverHttp(
            otlp.endpoint,
            certificate_file=names[0],
            client_certificate_file=names[1],
            client_key_file=names[2],
            headers=dict(otlp.headers),
            timeout=otlp.timeout,
        )
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

    ca, cert, key = (None if path is None else path.read_bytes() for path in paths)
    secure = otlp.endpoint.startswith("https://") or ca is not None
    return OverGrpc(
        otlp.endpoint,
        insecure=not secure,
        credentials=grpc.ssl_channel_credentials(ca, key, cert) if secure else None,
        headers=otlp.headers or None,
        timeout=otlp.timeout,
    )
