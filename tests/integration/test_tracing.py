"""Spans of requests: what instances are told, which are sampled, and what real OTLP receivers get."""

from __future__ import annotations

import gzip
import http.server
import re
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanKind

from graylb.model.snapshot import Forwarding
from graylb.model.snapshot_observe import OtlpExport, Tracing
from graylb.observe.slabs import Slabs
from tests.integration import proxies
from tests.integration.engines import Ask, Rig, run, service
from tests.integration.proxies import until
from tests.integration.test_access_log import Pipe, told
from tests.integration.upstream import Upstream

OTLP = OtlpExport("127.0.0.1:4317")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"traceparent: 00-{TRACE}-{SPAN}-00"


def parts(ask: Ask) -> tuple[str, str, str]:
    """(trace id, span id, flags) that an instance was told."""
    found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])", ask.get("traceparent") or "")
    assert found, ask.head
    return found[1], found[2], found[3]


def test_requests_that_are_sampled_are_exemplars_of_their_latency() -> None:
    """Of the span that is exported, and no other request is one."""

    async def test(rig: Rig, slabs: Slabs) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=0.0)
            origin = await rig.origin()
            rig.swap(service(origin))
            await rig.ask("GET", "/", UNSAMPLED)
            (times,) = [each for each in slabs.read() if each.name == "graylb_request_duration_seconds"]
            assert times.exemplars is None
            await rig.ask("GET", "/", PARENT)
            (span,) = await spans(events, 1)
            (times,) = [each for each in slabs.read() if each.name == "graylb_request_duration_seconds"]
            assert times.exemplars is not None
            ((us, at_us, trace_id, span_id),) = times.exemplars.exemplars()
            assert (trace_id, span_id) == (TRACE, span["span_id"])
            assert 0 < us < at_us <= time.monotonic() * 1e6

    slabs = Slabs(1)
    try:
        run(lambda rig: test(rig, slabs), slab=slabs.fds[0])
    finally:
        slabs.close()


async def spans(pipe: Pipe, count: int) -> list[dict[str, Any]]:
    from tests.integration.engines import until as soon

    await soon(lambda: pipe.read().count(b"\n") >= count, lambda: pipe.data.decode())
    assert all(line[:1] == b"S" for line in pipe.data.splitlines())
    return [orjson.loads(line[1:]) for line in pipe.data.splitlines()]


def test_without_tracing_headers_pass_untouched() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        await rig.ask("GET", "/", "traceparent: what ever", "tracestate: a=b", "x-request-id: r")
        (ask,) = origin.asks
        assert [ask.get(name) for name in ("traceparent", "tracestate", "x-request-id")] == ["what ever", "a=b", "r"]

    run(test)


def test_a_span_is_a_child_of_the_client_s_and_the_parent_of_the_instance_s() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=0.0)
            origin = await rig.origin()
            rig.swap(service(origin))
            await rig.ask("GET", "/a", PARENT, "tracestate: congo=t61rcWkgMzE")
            trace_id, span_id, flags = parts(origin.asks[0])
            assert (trace_id, flags) == (TRACE, "01")
            assert span_id != SPAN
            assert origin.asks[0].get("tracestate") == "congo=t61rcWkgMzE"
            (span,) = await spans(events, 1)
            assert (span["trace_id"], span["parent_id"], span["span_id"]) == (TRACE, SPAN, span_id)
            assert (span["path"], span["status"], span["version"]) == ("/a", 200, "v1")

    run(test)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (f"traceparent: 00-{'0' * 32}-{SPAN}-01",),
        (f"traceparent: ff-{TRACE}-{SPAN}-01",),
        ("traceparent: nonsense",),
        (PARENT, PARENT),
    ],
)
def test_what_is_no_parent_begins_a_new_trace_without_its_state(lines: tuple[str, ...]) -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=100.0)
            origin = await rig.origin()
            rig.swap(service(origin))
            await rig.ask("GET", "/", *lines, "tracestate: a=b")
            trace_id, span_id, flags = parts(origin.asks[0])
            assert trace_id != TRACE
            assert flags == "01"
            assert origin.asks[0].get("tracestate") is None
            (span,) = await spans(events, 1)
            assert (span["trace_id"], span["span_id"]) == (trace_id, span_id)
            assert "parent_id" not in span

    run(test)


def test_what_is_not_sampled_is_told_to_instances_and_exported_only_when_it_fails() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=0.0)
            origin = await rig.origin()

            async def fails(ask: Ask) -> None:
                ask.answer(status=503)

            origin.handlers["/fails"] = fails
            rig.swap(service(origin))
            await rig.ask("GET", "/a", UNSAMPLED)
            await rig.ask("GET", "/b")
            await rig.ask("GET", "/fails", UNSAMPLED)
            assert [parts(ask)[2] for ask in origin.asks] == ["00", "00", "00"]
            assert [(span["path"], span["status"]) for span in await spans(events, 1)] == [("/fails", 503)]
            rig.tracing = Tracing(OTLP, sample=100.0, parent_based=False, always_errors=False)
            rig.swap(service(origin))
            await rig.ask("GET", "/c", UNSAMPLED)
            assert parts(origin.asks[-1])[2] == "01"  # what the client says of it does not count

    run(test)


def test_a_share_of_traces_is_the_one_that_opentelemetry_takes() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None):
            rig.tracing = Tracing(OTLP, sample=30.0, parent_based=False, always_errors=False)
            origin = await rig.origin()
            rig.swap(service(origin))
            caller = await rig.caller()
            for _ in range(300):
                await caller.ask("GET", "/")
            bound = TraceIdRatioBased(0.3).bound
            taken = 0
            for ask in origin.asks:
                trace_id, _, flags = parts(ask)
                assert (int(trace_id, 16) & (1 << 64) - 1 < bound) == (flags == "01")
                taken += flags == "01"
            assert 40 < taken < 150  # 8 standard deviations
            assert len({parts(ask)[0] for ask in origin.asks} | {parts(ask)[1] for ask in origin.asks}) == 600

    run(test)


@pytest.mark.parametrize("mode", ["generate", "replace"])
def test_requests_get_an_id(mode: Any) -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        await rig.ask("GET", "/")
        await rig.ask("GET", "/", "x-request-id: mine")
        await rig.ask("GET", "/", "x-request-id:")
        made, kept, empty = (ask.get("x-request-id") or "" for ask in origin.asks)
        uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
        assert uuid.fullmatch(made)
        assert uuid.fullmatch(empty)
        assert made != empty
        assert (kept == "mine") == (mode == "generate")

    run(test, forwarding=Forwarding(request_id=mode))


# ---- receivers -------------------------------------------------------------------------------------------------------


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes OTLP by gRPC and by HTTP. refuse: what it gets it does not take."""

    def __init__(self) -> None:
        self.spans: list[tuple[Any, dict[str, Any]]] = []  # (span, resource)
        self.headers: list[dict[str, str]] = []
        self.refuse = False
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                coding = self.headers.get("content-encoding")
                body = gzip.decompress(body) if coding == "gzip" else zlib.decompress(body) if coding else body
                assert self.path == "/v1/traces"
                receiver.take(trace_service_pb2.ExportTraceServiceRequest.FromString(body), dict(self.headers))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        self.grpc = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.grpc)
        self.grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()

    def take(self, message: Any, headers: dict[str, str]) -> None:
        self.headers.append({name.lower(): value for name, value in headers.items()})
        for each in message.resource_spans:
            resource = values(each.resource.attributes)
            self.spans += [(span, resource) for scope in each.scope_spans for span in scope.spans]

    def Export(self, request: Any, context: Any) -> Any:
        if self.refuse:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        self.take(request, dict(context.invocation_metadata()))
        return trace_service_pb2.ExportTraceServiceResponse()

    def close(self) -> None:
        self.grpc.stop(None)
        self.http.shutdown()
        self.http.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream("v1").start()
    yield made
    made.stop()


def document(upstream: Upstream, otlp: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "listeners": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "services": {"users": {"instances": [{"address": upstream.address, "version": "v1"}]}},
        "tracing": {"otlp": otlp, "sample": 100, **more},
    }


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_real_receiver_gets_the_spans(tmp_path: Path, receiver: Receiver, upstream: Upstream, protocol: str) -> None:
    port = receiver.grpc_port if protocol == "grpc" else receiver.http.server_port
    otlp = {"endpoint": f"127.0.0.1:{port}", "protocol": protocol, "headers": {"x-key": "k"}}
    doc = document(upstream, otlp, service_name="front", attributes={"deployment.environment.name": "test"})
    with proxies.running(tmp_path, doc) as proxy:
        with proxy.client() as client:
            head = f"GET /a/b?c=d HTTP/1.1\r\nhost: x:81\r\n{PARENT}\r\nuser-agent: me\r\nconnection: close\r\n\r\n"
            assert client.send(head.encode()).response().status == 200
        until(lambda: receiver.spans, "a span")
        assert proxy.status()["tracing"]["exported"] == 1
    ((span, resource),) = receiver.spans
    assert receiver.headers[0]["x-key"] == "k"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert (span.name, span.kind) == ("GET users", SpanKind.SERVER.value + 1)
    assert span.start_time_unix_nano < span.end_time_unix_nano
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("front", "test")
    found = values(span.attributes)
    assert {
        "http.request.method": "GET", "url.path": "/a/b", "url.query": "c=d", "url.scheme": "http",
        "server.address": "x", "server.port": 81, "client.address": "127.0.0.1", "user_agent.original": "me",
        "http.response.status_code": 200, "network.protocol.name": "http", "network.protocol.version": "1.1",
        "graylb.service": "users", "graylb.version": "v1", "graylb.instance": upstream.address, "graylb.revision": 1,
        "graylb.attempts": 1,
    }.items() <= found.items()  # fmt: skip
    assert "error.type" not in found


def test_a_receiver_that_refuses_is_told_of_and_spans_are_dropped(
    tmp_path: Path, receiver: Receiver, upstream: Upstream
) -> None:
    receiver.refuse = True
    otlp = {"endpoint": f"127.0.0.1:{receiver.grpc_port}", "timeout": "500ms"}

    def ask(proxy: proxies.Proxy) -> None:
        with proxy.client() as client:
            assert client.send(b"GET /none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").response().status == 200

    with proxies.running(tmp_path, document(upstream, otlp)) as proxy:
        ask(proxy)
        until(lambda: proxy.status()["tracing"]["failed"], "a span to be lost")
        assert "does not take them" in proxy.status()["tracing"]["problem"]
        receiver.refuse = False
        ask(proxy)
        until(lambda: receiver.spans, "a span")
        until(lambda: proxy.status()["tracing"]["problem"] == "", "the problem to be over")
