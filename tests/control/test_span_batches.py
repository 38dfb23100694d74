"""Spans on their way through the control process: whole ones out of pieces, batches as the SDK would encode them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from graylb import __version__
from graylb.control.live_view import Views
from graylb.control.spans import Frame, Spans
from graylb.model.snapshot_observe import OtlpExport, Tracing


@given(st.lists(st.text(max_size=300), min_size=1, max_size=20))
def test_a_batch_is_what_the_sdk_would_encode(names: list[str]) -> None:
    resource = Resource.create({"service.name": "graylb", "long": "x" * 200})
    spans = [
        ReadableSpan(
            name,
            SpanContext(1, number + 1, is_remote=False),
            resource=resource,
            instrumentation_scope=InstrumentationScope("graylb", __version__),
        )
        for number, name in enumerate(names)
    ]
    expected = encode_spans(spans)
    written = [ScopeSpans(spans=[each]).SerializeToString() for each in expected.resource_spans[0].scope_spans[0].spans]
    batch = Frame(resource).around(written)
    assert len(batch) == len(names)
    assert ExportTraceServiceRequest.FromString(batch.SerializePartialToString()) == expected


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"S", b"{}\n"]), max_size=10), st.data())
def test_spans_and_lines_come_whole_whatever_the_pieces(spans: list[bytes], data: st.DataObject) -> None:
    async def main() -> None:
        found: list[bytes] = []
        views = Views(lambda wanted: None, found.extend)
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        views.add(ours)
        sent = b"".join(b'{"a":1}\n' + b"S" + len(each).to_bytes(4, "little") + each for each in spans)
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            os.write(theirs, sent[:size])
            sent = sent[size:]
            while views._read(ours):
                pass
        os.close(theirs)
        views.close()
        assert found == spans

    asyncio.run(main())


def test_what_finds_no_room_in_the_queue_is_counted(tmp_path: Path) -> None:
    """Nobody takes what is exported here, so all the rest waits."""
    spans = Spans(tmp_path)
    spans.add([b"before anybody wants them"])
    spans._wanted = Tracing(OtlpExport("127.0.0.1:1"), queue=16)
    for count in (0, 1, 14, 3, 2):  # the last but one finds room for one of its three
        spans.add([b"span"] * count)
    assert len(spans._waiting) == 16
    assert spans.figures.dropped == 4
