"""Spans on their way to a collector: workers write them (`_spans`), the exporters of the OpenTelemetry SDK send them.

In a thread of its own, in batches; bounded: what comes while the queue is full is dropped and counted. The SDK is
loaded when a document first asks for tracing. Resource, scope, endpoints, TLS, retries and compression are the SDK's;
spans themselves are joined as they come, for the SDK's making and encoding of one takes as long as ten requests.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from graylb import __version__
from graylb.control.logs import log
from graylb.model.snapshot_observe import OtlpExport, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

BATCH: Final = 1024
EVERY: Final = 1.0
"""Seconds that a span waits for others, at most."""
LAST: Final = 3.0
"""Seconds for the rest at the end."""


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
        self._waiting: deque[bytes] = deque()
        self._news = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    def follow(self, wanted: Tracing | None) -> None:
        """Spans go there from now on; None: nowhere."""
        self._wanted = wanted
        if wanted is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
            self._thread.start()

    def add(self, spans: Sequence[bytes]) -> None:
        """As workers write them."""
        if self._wanted is None:
            return
        room = max(0, self._wanted.queue - len(self._waiting))
        self._waiting.extend(spans[:room])
        self.figures.dropped += max(0, len(spans) - room)
        if len(self._waiting) >= min(BATCH, (self._wanted.queue + 1) // 2):  # some come while it wakes up
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
        made: tuple[Tracing, SpanExporter, Frame] | None = None
        while not (self._ending and not self._waiting):
            self._news.wait(EVERY)
            self._news.clear()
            wanted = self._wanted
            if wanted is None:
                self._waiting.clear()
                if self._ending:
                    break
                continue
            try:
                if made is None or made[0] != wanted:
                    if made is not None:
                        made[1].shutdown()
                    made = wanted, _exporter(wanted.otlp, self._folder), Frame(_resource(wanted))
                self._send(made[1], made[2])
            except Exception as error:  # the exporter's affair, and no reason to end
                self._failed(len(self._waiting), f"{wanted.otlp.endpoint}: {error}")
                self._waiting.clear()
        if made is not None:
            made[1].shutdown()

    def _send(self, exporter: SpanExporter, frame: Frame) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        while self._waiting:
            spans = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            batch: Any = frame.around(spans)
            if exporter.export(batch) is SpanExportResult.SUCCESS:
                self.figures.exported += len(spans)
                if self.figures.problem:
                    log.info("spans are exported again; %d were lost", self.figures.failed)
                self.figures.problem = ""
            else:
                assert self._wanted is not None
                self._failed(len(spans), f"{self._wanted.otlp.endpoint} does not take them")
            if self._ending and self.figures.problem:
                return  # nobody waits for a collector that is not there

    def _failed(self, count: int, why: str) -> None:
        self.figures.failed += count
        if self.figures.problem != why:
            log.warning("spans cannot be exported: %s", why)
            self.figures.problem = why


@dataclass(frozen=True, slots=True)
class Batch:
    """Spans on their way through an exporter, which asks how many they are. data: an ExportTraceServiceRequest."""

    data: bytes
    count: int

    def __len__(self) -> int:
        return self.count

    def SerializePartialToString(self) -> bytes:
        """As messages have it: all that the exporter over HTTP wants of one."""
        return self.data


class Frame:
    """What is around the spans of a batch: resource and scope, as the SDK encodes them, once."""

    def __init__(self, resource: Resource) -> None:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext

        scope = InstrumentationScope("graylb", __version__)
        context = SpanContext(1, 1, is_remote=False)
        any_span = ReadableSpan("", context, resource=resource, instrumentation_scope=scope)
        of_resource = encode_spans([any_span]).resource_spans[0]
        of_scope = of_resource.scope_spans[0]
        del of_scope.spans[:]
        self._scope = of_scope.SerializeToString()
        del of_resource.scope_spans[:]
        self._resource = of_resource.SerializeToString()

    def around(self, spans: list[bytes]) -> Batch:
        """spans: each as field 2 of ScopeSpans (opentelemetry/proto/trace/v1/trace.proto)."""
        size = len(self._scope) + sum(map(len, spans))
        of_scope = _head(2, size)
        of_resource = _head(1, len(self._resource) + len(of_scope) + size)
        return Batch(b"".join((of_resource, self._resource, of_scope, self._scope, *spans)), len(spans))


def _head(number: int, size: int) -> bytes:
    """What is before a message of that many bytes that is a field of another."""
    head = bytearray([number << 3 | 2])
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head)


def _resource(wanted: Tracing) -> Resource:
    from opentelemetry.sdk.resources import Resource

    return Resource.create(
        {**dict(wanted.attributes), "service.name": wanted.service_name, "service.version": __version__}
    )


def _exporter(otlp: OtlpExport, folder: Path) -> SpanExporter:
    """Raises OSError for files that cannot be read, and what the SDK raises."""
    paths = [None if each is None else folder / each for each in (otlp.ca, otlp.cert, otlp.key)]
    if otlp.protocol == "http":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http

        _take_batches(over_http, lambda batch: batch)
        names = [None if path is None else str(path) for path in paths]
        return over_http.OTLPSpanExporter(
            otlp.endpoint,
            certificate_file=names[0],
            client_certificate_file=names[1],
            client_key_file=names[2],
            headers=dict(otlp.headers),
            timeout=otlp.timeout,
        )
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    _take_batches(over_grpc, lambda batch: ExportTraceServiceRequest.FromString(batch.data))
    ca, cert, key = (None if path is None else path.read_bytes() for path in paths)
    secure = otlp.endpoint.startswith("https://") or ca is not None
    return over_grpc.OTLPSpanExporter(
        otlp.endpoint,
        insecure=not secure,
        credentials=grpc.ssl_channel_credentials(ca, key, cert) if secure else None,
        headers=otlp.headers or None,
        timeout=otlp.timeout,
    )


def _take_batches(module: ModuleType, turned: Callable[[Batch], Any]) -> None:
    """The exporter of that module takes a `Batch`, turned into what it sends. Both exporters look up by this public
    name what encodes, whatever their version; behind it neither has anything that both have, or that is public."""
    theirs = module.encode_spans
    if not hasattr(theirs, "theirs"):

        def encode(spans: Any) -> Any:
            return turned(spans) if isinstance(spans, Batch) else theirs(spans)

        encode.theirs = theirs  # type: ignore[attr-defined]
        module.encode_spans = encode  # type: ignore[attr-defined]
