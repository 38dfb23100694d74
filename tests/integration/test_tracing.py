"""Spans of requests: what instances are told, which are sampled, and what real OTLP receivers get."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import re
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from graylb import _fast, table
from graylb.model import snapshot
from graylb.model.snapshot import (
    Backoff,
    Condition,
    Forwarding,
    Hedge,
    Instance,
    Match,
    Retries,
    RetryBudget,
    Rule,
    Subset,
)
from graylb.model.snapshot_observe import AccessLog, OtlpExport, Tracing
from graylb.observe.slabs import Slabs
from tests.integration import engines, proxies
from tests.integration.engines import Ask, Rig, run, service, split
from tests.integration.proxies import until
from tests.integration.spans import CLIENT, SERVER, by_the_sdk, flat, values
from tests.integration.spans import split as split_pipe
from tests.integration.test_access_log import ALL, EVERYTHING, Pipe, told
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
            (span,), _ = await spans(events, 1)
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


async def spans(pipe: Pipe, requests: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of so many requests, and of their attempts."""

    def found() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        flattened = [flat(span) for span in split_pipe(pipe.read())[0]]
        return [span for span in flattened if span["kind"] == SERVER], [
            span for span in flattened if span["kind"] == CLIENT
        ]

    await engines.until(lambda: len(found()[0]) >= requests, lambda: pipe.data)
    return found()


def test_without_tracing_headers_pass_untouched() -> None:
    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        rig.swap(service(origin))
        await rig.ask("GET", "/", "traceparent: what ever", "tracestate: a=b", "x-request-id: r")
        (ask,) = origin.asks
        assert [ask.get(name) for name in ("traceparent", "tracestate", "x-request-id")] == ["what ever", "a=b", "r"]

    run(test)


def test_a_request_is_a_child_of_the_client_s_span_and_its_attempt_the_parent_of_the_instance_s() -> None:
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
            (span,), (attempt,) = await spans(events, 1)
            assert (attempt["trace_id"], attempt["parent_id"], attempt["span_id"]) == (TRACE, span["span_id"], span_id)
            assert (span["trace_id"], span["parent_id"]) == (TRACE, SPAN)
            assert len({SPAN, span["span_id"], span_id}) == 3
            assert (span["url.path"], span["http.response.status_code"], span["graylb.version"]) == ("/a", 200, "v1")
            (told_of, _), _ = split_pipe(events.data)
            assert told_of.trace_state == "congo=t61rcWkgMzE"

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
            (span,), (attempt,) = await spans(events, 1)
            assert (attempt["trace_id"], attempt["span_id"]) == (trace_id, span_id)
            assert (span["trace_id"], attempt["parent_id"]) == (trace_id, span["span_id"])
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
            (span,), (attempt,) = await spans(events, 1)
            assert (span["url.path"], span["http.response.status_code"]) == ("/fails", 503)
            assert (attempt["span_id"], attempt["parent_id"]) == (parts(origin.asks[2])[1], span["span_id"])
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


def told_twice(pipe: Pipe) -> Iterator[tuple[Any, Any]]:
    """(span, what the SDK makes of the same request) of all that are told."""
    found, lines = split_pipe(pipe.read())
    theirs = {line["span_id"]: by_the_sdk(line) for line in lines if "span_id" in line}
    for span in found:
        if span.kind == SERVER:
            expected = theirs[span.span_id.hex()]
            for each in (span, expected):
                each.attributes.sort(key=lambda attribute: attribute.key)
            yield span, expected


HEADS: list[tuple[str, ...]] = [
    ("GET", "/"),
    ("GET", "/a?b=c", PARENT, "tracestate: a=b,c=d", "user-agent: me"),
    ("GET", "/?", "user-agent:"),
    ("POST", "/%C3%A9", "user-agent: caf\xc3\xa9 \xff\xc3", "x-request-id: r-1", "x-user: u1"),
    ("GET", "/long", f"user-agent: {'a' * 200}"),
    ("GET", "/fails", "x-user: u1"),
    ("GET", "/nothing", UNSAMPLED),
    ("POST", "/pkg.Users/Get", "content-type: application/grpc-web"),
    ("POST", "//Get/", "content-type: application/grpc-web"),
]


def test_a_request_s_span_is_what_the_sdk_would_encode() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, AccessLog("stdout", True, ALL)) as (_, events):
            rig.tracing = Tracing(OTLP, sample=100.0)
            v1, v2 = await rig.origin(), await rig.origin()

            async def fails(ask: Ask) -> None:
                ask.answer(status=503)

            v2.handlers["/fails"] = fails
            rules = (Rule("testers", Match((Condition("header", "exact", ("u1",), "x-user"),)), Subset("v2")),)
            nowhere = service(Instance(rig.refusing(), "v1"), name="nowhere")
            rig.swap(
                service((v1, "v1"), (v2, "v2"), rules=rules, split=split(v1=90, v2=10)),
                nowhere,
            )
            rig.engine.watch([EVERYTHING])
            for method, target, *lines in HEADS:
                await rig.ask(method, target, *lines, body=b"12345" if method == "POST" else None)
            await rig.ask("GET", "/", host="nowhere")
            await rig.ask("GET", "/", host="nobody:8080")
            await rig.ask("GET", "/", host="[::1]:80")
            count = len(HEADS) + 2  # one goes on unsampled
            await engines.until(lambda: len(list(told_twice(events))) >= count, lambda: events.data)
            compared = list(told_twice(events))
            assert len(compared) == count
            for span, expected in compared:
                assert span == expected

    run(test)


def policy(*on: str, **more: Any) -> Retries:
    return Retries(on=on, backoff=Backoff(0, 0), budget=RetryBudget(100, 1000), **more)


async def bad_and_good(rig: Rig, **more: Any) -> tuple[engines.Origin, engines.Origin]:
    """Two origins of one version; one of them answers with 503."""
    bad, good = await rig.origin(), await rig.origin()

    async def fails(ask: Ask) -> None:
        await ask.read_body()
        ask.answer(status=503)

    bad.handlers["/a"] = fails
    rig.swap(service(bad, good, **more))
    return bad, good


def test_each_attempt_is_a_span_that_its_instance_is_told_of() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=100.0)
            bad, good = await bad_and_good(rig, retries=policy("5xx"))
            count = 0
            while not bad.asks:
                await rig.ask("GET", "/a", PARENT)
                count += 1
                assert count < 100
            requests, attempts = await spans(events, count)
            assert len(attempts) == count + 1
            request, (first, second) = requests[-1], attempts[-2:]
            assert (request["http.response.status_code"], request["graylb.attempts"]) == (200, 2)
            assert "error.type" not in request
            assert first["parent_id"] == second["parent_id"] == request["span_id"]
            for ask, attempt in ((bad.asks[0], first), (good.asks[-1], second)):
                assert parts(ask)[:2] == (TRACE, attempt["span_id"])
            host, _, port = bad.address.rpartition(":")
            assert {
                "name": "GET", "http.request.method": "GET", "server.address": host, "server.port": int(port),
                "url.full": "http://up/a", "http.response.status_code": 503, "error.type": "503",
                "network.protocol.version": "1.1", "graylb.service": "up", "graylb.version": "v1",
                "graylb.instance": bad.address, "graylb.attempt": 1,
            }.items() <= first.items()  # fmt: skip
            assert first["graylb.connect"] > 0
            assert "http.request.resend_count" not in first
            assert {
                "http.request.resend_count": 1, "http.response.status_code": 200, "graylb.instance": good.address,
                "graylb.attempt": 2,
            }.items() <= second.items()  # fmt: skip
            assert "error.type" not in second
            found, _ = split_pipe(events.data)
            request_, (first_, second_) = found[-1], found[-3:-1]
            assert request_.start_time_unix_nano <= first_.start_time_unix_nano < first_.end_time_unix_nano
            assert first_.end_time_unix_nano <= second_.start_time_unix_nano < second_.end_time_unix_nano
            assert second_.end_time_unix_nano == request_.end_time_unix_nano
            assert (first_.status.code, second_.status.code, request_.status.code) == (2, 0, 0)

    run(test)


@pytest.mark.parametrize("winner", ["first", "second"])
def test_both_attempts_of_a_hedged_request_are_spans(winner: str) -> None:
    """The second begins while the first goes on; the one that lost ends where it was called off, without an error."""

    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=100.0)
            both = await rig.origin(), await rig.origin()
            go = asyncio.Event()

            async def handle(ask: Ask) -> None:
                second = ask.get("x-graylb-attempts") == "2"
                if second:
                    go.set()
                if second == (winner == "second"):
                    await go.wait()
                    ask.answer(b"x")
                else:
                    await asyncio.Event().wait()

            for each in both:
                each.handle = handle  # type: ignore[method-assign]
            rig.swap(service(*both, retries=replace(policy("5xx"), hedge=Hedge(0.02))))
            assert (await rig.ask("GET", "/a", PARENT)).status == 200
            (request,), attempts = await spans(events, 1)
            first, second = sorted(attempts, key=lambda each: each["graylb.attempt"])
            assert [each["graylb.attempt"] for each in (first, second)] == [1, 2]
            assert first["parent_id"] == second["parent_id"] == request["span_id"]
            assert request["graylb.attempts"] == 2
            for attempt in (first, second):
                origin = next(each for each in both if each.address == attempt["graylb.instance"])
                assert parts(origin.asks[0])[:2] == (TRACE, attempt["span_id"])
                assert "error.type" not in attempt
            won = first if winner == "first" else second
            assert request["graylb.instance"] == won["graylb.instance"]
            assert [each.get("http.response.status_code") for each in (first, second)] == [
                200 if each is won else None for each in (first, second)
            ]

    run(test)


def test_an_attempt_that_met_nobody_is_told_of_with_its_reason() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=0.0)
            rig.swap(service(Instance(rig.refusing(), "v1")))
            assert (await rig.ask("GET", "/")).status == 502
            (request,), attempts = await spans(events, 1)
            assert request["graylb.attempts"] == len(attempts) == 1
            assert (attempts[0]["error.type"], request["error.type"]) == ("connect-failed", "connect-failed")
            assert "http.response.status_code" not in attempts[0]

    run(test)


def test_an_answer_that_is_cut_short_is_an_attempt_that_failed() -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            rig.tracing = Tracing(OTLP, sample=100.0)
            origin = await rig.origin()

            async def cut(ask: Ask) -> None:
                ask.link.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                ask.link.transport.abort()

            origin.handlers["/cut"] = cut
            rig.swap(service(origin))
            await (await rig.send(b"GET /cut HTTP/1.1\r\nhost: up\r\n\r\n")).ended()
            (request,), (attempt,) = await spans(events, 1)
            assert (attempt["http.response.status_code"], attempt["error.type"]) == (200, "upstream-reset")
            assert attempt["graylb.aborted"] == request["graylb.aborted"] == "instance"

    run(test)


@pytest.mark.parametrize("rewrite", [None, "/", "/new", "/new/"])
def test_an_attempt_s_url_is_what_the_instance_is_asked_for(rewrite: str | None) -> None:
    async def test(rig: Rig) -> None:
        with told(rig, None) as (_, events):
            origin = await rig.origin()
            up = service(origin)
            route = snapshot.Route("old", "*", "prefix", "/old", service="up", rewrite_prefix=rewrite)
            made = snapshot.Snapshot(1, (), (route,), (up,), tracing=Tracing(OTLP, sample=100.0))
            rig.engine.swap(_fast.Table(table.compile(made)))
            for target in ("/old", "/old/", "/old/a?b=c", "/old?d"):
                await rig.ask("GET", target)
            _, attempts = await spans(events, 4)
            assert [f"http://up{ask.target}" for ask in origin.asks] == [each["url.full"] for each in attempts]

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
        until(lambda: len(receiver.spans) >= 2, "a request's span, and its attempt's")
        assert proxy.status()["tracing"]["exported"] == 2
    ((attempt, _), (span, resource)) = receiver.spans
    assert (attempt.name, attempt.kind, attempt.parent_span_id) == ("GET", CLIENT, span.span_id)
    assert receiver.headers[0]["x-key"] == "k"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert (span.name, span.kind) == ("GET users", SERVER)
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
