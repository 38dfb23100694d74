"""When an instance is taken for ill, by a plain reading of the rules; and how each check asks, of real servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import grpc
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from graylb.control import health, probes
from graylb.model.snapshot import Check, Health, Instance, Origination, Pem, Service, Snapshot
from tests.integration.engines import until

# ---- opinions --------------------------------------------------------------------------------------------------------


def oracle(results: list[bool], unhealthy: int, healthy: int) -> list[bool]:
    """Whether the instance is down after each result, by looking back each time."""
    states: list[bool] = []
    down, since = False, 0
    for n, well in enumerate(results, 1):
        window = healthy if down else unhealthy
        last = results[max(since, n - window) : n]
        turned = len(last) == window and all(each == down for each in last)
        if turned or (n == 1 and not well):
            down, since = not down, n
        states.append(down)
    return states


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_an_opinion_changes_as_the_rules_say(results: list[bool], unhealthy: int, healthy: int) -> None:
    opinion = health.Opinion(Check("tcp", unhealthy=unhealthy, healthy=healthy))
    found, changes = [], []
    for well in results:
        changes.append(opinion.take("" if well else "broken"))
        found.append(opinion.down)
    assert found == oracle(results, unhealthy, healthy)
    assert changes == [now != before for before, now in zip([False, *found], found, strict=False)]


# ---- probes ----------------------------------------------------------------------------------------------------------


def service(check: Check, *addresses: str) -> Service:
    instances = tuple(Instance(address, "v1") for address in addresses)
    return Service("users", "v1", None, instances=instances, health=Health(check))


async def asked(check: Check, address: str, seconds: float = 5.0) -> str:
    probe = probes.probe_for(service(check, address), check, address)
    try:
        return await health.ask(probe, seconds)
    finally:
        await probe.close()


def refusing() -> tuple[socket.socket, str]:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made, f"127.0.0.1:{made.getsockname()[1]}"


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(status: int, seen: list[bytes]) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok" % status)
            await writer.drain()
        writer.close()

    return serve


HTTP = Check("http", path="/healthz")


@pytest.mark.parametrize(
    ("status", "statuses", "failure"),
    [
        (200, ((200, 399),), ""),
        (302, ((200, 399),), ""),
        (404, ((200, 399),), "GET /healthz: status 404"),
        (503, ((200, 399),), "GET /healthz: status 503"),
        (418, ((200, 200), (418, 418)), ""),
    ],
)
def test_http_is_well_by_its_status(status: int, statuses: tuple[tuple[int, int], ...], failure: str) -> None:
    async def test() -> None:
        seen: list[bytes] = []
        server = await asyncio.start_server(answering(status, seen), "127.0.0.1", 0)
        async with server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            assert await asked(replace(HTTP, statuses=statuses), address) == failure
            assert seen[0].startswith(b"GET /healthz HTTP/1.1\r\n")
            assert f"host: {address}".encode() in seen[0].lower()

    asyncio.run(test())


def test_http_asks_over_a_unix_socket_and_for_the_host_that_it_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        seen: list[bytes] = []
        server = await asyncio.start_unix_server(answering(200, seen), str(tmp_path / "app"))
        async with server:
            assert await asked(replace(HTTP, host="users.test"), f"unix:{tmp_path / 'app'}") == ""
            assert b"host: users.test\r\n" in seen[0].lower()

    asyncio.run(test())


@pytest.mark.parametrize("check", [HTTP, Check("tcp"), Check("grpc")], ids=lambda check: check.kind)
def test_nobody_there_is_a_failure_that_says_so(check: Check) -> None:
    made, address = refusing()
    with made:
        assert asyncio.run(asked(check, address))


@pytest.mark.parametrize("check", [HTTP, Check("grpc")], ids=lambda check: check.kind)
def test_who_takes_connections_and_never_answers_is_ill_after_its_time(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        failure = asyncio.run(asked(check, f"127.0.0.1:{deaf.getsockname()[1]}", 0.2))
    assert failure == "no answer within 0.2 s"


def test_tcp_is_well_when_the_port_takes_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert asyncio.run(asked(Check("tcp"), f"127.0.0.1:{server.getsockname()[1]}")) == ""


class _HealthService(grpc.GenericRpcHandler):
    """grpc.health.v1.Health over raw bytes: the service that is asked for names its answer."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self.check)

    def check(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        name = request[2:].decode() if request else ""
        assert not request or request[:2] == bytes((0x0A, len(name)))
        answers = {"": b"\x08\x01", "users.Users": b"\x08\x01", "ill": b"\x08\x02", "blank": b""}
        if name not in answers:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return answers[name]


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("", ""),
        ("users.Users", ""),
        ("ill", "gRPC health: NOT_SERVING"),
        ("blank", "gRPC health: UNKNOWN"),
        ("nobody", "gRPC health: NOT_FOUND: unknown service"),
    ],
)
def test_grpc_is_well_when_it_serves(name: str, failure: str) -> None:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_HealthService()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert asyncio.run(asked(Check("grpc", service=name), f"127.0.0.1:{port}")) == failure
    finally:
        server.stop(0).wait()


@given(st.text(max_size=300))
def test_a_health_request_is_what_protobuf_makes_of_it(name: str) -> None:
    from google.protobuf import wrappers_pb2

    try:
        same = wrappers_pb2.StringValue(value=name)  # one string, field 1, as in HealthCheckRequest
    except (UnicodeEncodeError, ValueError):
        return  # lone surrogates are no text to anybody
    assert probes.request(name) == same.SerializeToString()


# ---- over TLS --------------------------------------------------------------------------------------------------------


def pem(text: bytes) -> Pem:
    return Pem.of("", text.decode())


@pytest.mark.parametrize("kind", ["http", "tcp", "grpc"])
@pytest.mark.parametrize("known", [True, False])
def test_a_check_is_made_as_calls_are_over_tls_with_our_certificate(
    kind: Literal["http", "tcp", "grpc"], known: bool
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    theirs, ours = authority.issue_cert("users.test"), authority.issue_cert("graylb.test")
    chain = b"".join(each.bytes() for each in theirs.cert_chain_pems)
    root = authority.cert_pem.bytes()
    tls = Origination(
        ca=pem(root if known else other.cert_pem.bytes()),
        server_name="users.test",
        cert=pem(ours.cert_chain_pems[0].bytes()),
        key=pem(ours.private_key_pem.bytes()),
    )
    check = Check(kind, path="/healthz" if kind == "http" else "")

    async def test() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        theirs.configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        server = await asyncio.start_server(answering(200, []), "127.0.0.1", 0, ssl=context)
        async with server:
            await judge(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")

    async def judge(address: str) -> None:
        made = service(check, address)
        made = replace(made, connections=replace(made.connections, tls=tls))
        probe = probes.probe_for(made, check, address)
        try:
            assert bool(await health.ask(probe, 5.0)) != known
        finally:
            await probe.close()

    if kind != "grpc":
        asyncio.run(test())
        return
    pair = ((theirs.private_key_pem.bytes(), chain),)
    credentials = grpc.ssl_server_credentials(pair, root_certificates=root, require_client_auth=True)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_HealthService()])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        asyncio.run(judge(f"127.0.0.1:{port}"))
    finally:
        server.stop(0).wait()


# ---- following -------------------------------------------------------------------------------------------------------


def snapshot(*services: Service) -> Snapshot:
    return Snapshot(1, (), (), services)


QUICK = Check("tcp", interval=0.02, timeout=1.0, unhealthy=2, healthy=2)


def test_an_instance_falls_ill_and_gets_well_and_each_is_told() -> None:
    async def test() -> None:
        made, address = refusing()
        told: list[list[tuple[str, str]]] = []
        checks = health.Health(lambda: told.append(checks.down()))
        checks.follow(snapshot(service(QUICK, address)))
        with made:
            await until(lambda: checks.down() == [("users", address)], "down")
            assert checks.of("users")[address]["last_failure"]
            made.listen()
            await until(lambda: not checks.down(), "up")
        await until(lambda: bool(checks.down()), "down again")
        assert told == [[("users", address)], [], [("users", address)]]
        await checks.close()

    asyncio.run(test())


def test_who_is_not_asked_any_more_is_well_again_and_a_check_that_stays_keeps_what_it_knows() -> None:
    async def test() -> None:
        made, address = refusing()
        other, there = refusing()
        checks = health.Health(lambda: None)
        with made, other:
            checks.follow(snapshot(service(QUICK, address, there)))
            await until(lambda: len(checks.down()) == 2, "both down")
            checks.follow(snapshot(service(QUICK, address)))
            assert checks.down() == [("users", address)]  # not asked anew
            checks.follow(snapshot(replace(service(QUICK, address), health=Health())))
            assert checks.down() == []
        await checks.close()

    asyncio.run(test())
