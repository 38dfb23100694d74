"""Spans as workers write them, and as the OpenTelemetry SDK would have encoded them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

SERVER, CLIENT = SpanKind.SERVER.value + 1, SpanKind.CLIENT.value + 1
_NAMES = {
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
}
_OURS = (
    *("request_id", "listener", "service", "route", "version", "rule", "slot", "draw", "fallback", "instance"),
    *("revision", "attempts", "error_source", "aborted", "first_byte", "connect", "worker"),
)


def split(data: bytes) -> tuple[list[Any], list[dict[str, Any]]]:
    """What came down a worker's second pipe: spans, and lines for viewers."""
    scope, lines = ScopeSpans(), []
    while data:
        if data[:1] == b"S":
            size = int.from_bytes(data[1:5], "little")
            assert len(data) >= 5 + size
            scope.MergeFromString(data[5 : 5 + size])
            data = data[5 + size :]
        else:
            line, end, data = data.partition(b"\n")
            assert end
            lines.append(orjson.loads(line))
    return list(scope.spans), lines


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def flat(span: Any) -> dict[str, Any]:
    """Ids in hexadecimal, name, kind and attributes."""
    found = {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex(), "name": span.name, "kind": span.kind}
    if span.parent_span_id:
        found["parent_id"] = span.parent_span_id.hex()
    return found | values(span.attributes)


def by_the_sdk(line: dict[str, Any]) -> Any:
    """The span of a request, from the line of all fields that a viewer gets, encoded by the SDK."""
    trace_id = int(line["trace_id"], 16)
    parent = state = None
    if "parent_id" in line:
        state = TraceState.from_header([line["tracestate"]]) if "tracestate" in line else None
        parent = SpanContext(trace_id, int(line["parent_id"], 16), True, TraceFlags(TraceFlags.SAMPLED), state)
    context = SpanContext(trace_id, int(line["span_id"], 16), False, TraceFlags(TraceFlags.SAMPLED), state)
    began = datetime.fromisoformat(line["time"])
    start = (int(began.timestamp()) * 1_000_000 + began.microsecond) * 1000
    error, status = line.get("error"), line["status"]
    failed = error or (str(status) if status >= 500 else None)
    called = _called(line)
    span = ReadableSpan(
        name="/".join(called) if called else " ".join(filter(None, (line["method"], line.get("route")))),
        context=context,
        parent=parent,
        attributes=_attributes(line, called, failed),
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, error) if failed and status != 499 else Status(),
        start_time=start,
        end_time=start + round(line["duration"] * 1e6) * 1000,
    )
    return encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]


def _called(line: dict[str, Any]) -> tuple[str, str] | None:
    if not line.get("http_content_type", "").startswith("application/grpc"):
        return None
    service, _, method = line.get("path", "").strip("/").rpartition("/")
    return (service, method) if service and method else None


def _attributes(line: dict[str, Any], called: tuple[str, str] | None, failed: str | None) -> dict[str, Any]:
    told = {name: line[field] for field, name in _NAMES.items() if field in line}
    told |= {f"graylb.{field}": line[field] for field in _OURS if field in line}
    host, colon, port = line.get("host", "").rpartition(":")
    if colon and port.isdecimal():
        told |= {"server.address": host.strip("[]"), "server.port": int(port)}
    name, _, version = line["protocol"].partition("/")
    told |= {"network.protocol.name": name.lower(), "network.protocol.version": version}
    if called:
        told |= {"rpc.system": "grpc", "rpc.service": called[0], "rpc.method": called[1]}
    if failed:
        told["error.type"] = failed
    return told
