"""Deadlines that graylb itself keeps, calls that are silent, calls that another instance is asked for, health."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from graylb import builds
from tests.integration import proxies
from tests.integration.grpcs import PATIENCE, Channel, Server, servers
from tests.integration.h2_ends import Answer, H2Client, H2Upstream, fields
from tests.integration.proxies import until

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")

CANCEL = 8
EMPTY = b"\0\0\0\0\0"
"""A message of no bytes, as gRPC frames it."""


@dataclass
class Scene:
    proxy: proxies.Proxy
    good: Server
    bad: Server
    deaf: H2Upstream  # reads no deadlines

    def channel(self, host: str) -> Channel:
        return Channel(self.proxy.address, host)

    def raw(self) -> H2Client:
        """A client that leaves its deadlines to others."""
        return H2Client(self.proxy.address)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    deaf = H2Upstream()
    with contextlib.closing(deaf), servers("good", "bad") as (good, bad):
        one, both = good.address, (good.address, bad.address)
        retries = {"grpc_status": ["unavailable"]}
        services = {
            "plain": proxies.service(one, hosts=["plain.test"], timeouts={"response": "200ms"}),
            "queued": proxies.service(
                one, hosts=["queued.test"], connections={"max": 1, "streams": 1, "queue_timeout": "1m"}
            ),
            "retried": proxies.service(*both, hosts=["retried.test"], retries=retries),
            "alone": proxies.service(bad.address, hosts=["alone.test"], retries=retries),
            "empty": proxies.service(hosts=["empty.test"]),
            "out": proxies.service(one, hosts=["out.test"]),
            "deaf": proxies.service(deaf.address, hosts=["deaf.test"]),
            "unretried": proxies.service(*both, hosts=["unretried.test"]),
        }
        listeners = [{"address": "127.0.0.1:0", "grpc_health": True}]
        services["out"]["instances"][0]["weight"] = 0
        doc = proxies.document(services, limits={"body_timeout": "300ms"}, listeners=listeners)
        with proxies.running(tmp_path_factory.mktemp("deadlines"), doc) as proxy:
            yield Scene(proxy, good, bad, deaf)


def call(client: H2Client, host: str, method: str, timeout: str) -> int:
    head = fields(("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", timeout),
                  method="POST", path=f"/test.Echo/{method}", host=host)  # fmt: skip
    return client.begin(head)


def is_late(answer: Answer) -> bool:
    assert answer.get("grpc-message") == "graylb: the deadline of the call has passed"
    return (answer.status, answer.get("grpc-status"), answer.ended, answer.get("x-graylb-error")) == (
        200, "4", True, "deadline-exceeded",
    )  # fmt: skip


def test_a_call_that_takes_too_long_is_answered_by_graylb_and_given_up_at_the_instance(scene: Scene) -> None:
    before = len(scene.deaf.resets)
    with scene.raw() as client:
        stream = call(client, "deaf.test", "Hang", "300m")
        client.send(stream, EMPTY, end=True)
        assert is_late(client.answer(stream))
    until(lambda: scene.deaf.resets[before:] == [CANCEL], "the reset")


def test_a_call_whose_answer_has_begun_is_reset(scene: Scene) -> None:
    before = len(scene.deaf.resets)
    with scene.raw() as client:
        stream = call(client, "deaf.test", "Begin", "300m")
        client.send(stream, EMPTY, end=True)
        answer = client.answer(stream)
        assert (answer.status, answer.body, answer.reset) == (200, EMPTY, CANCEL)
    until(lambda: scene.deaf.resets[before:] == [CANCEL], "the reset")


def test_a_call_that_waits_for_a_connection_has_no_more_time_for_that(scene: Scene) -> None:
    with scene.raw() as client:
        before = len(scene.good.calls)
        first = call(client, "queued.test", "Hang", "1M")
        client.send(first, EMPTY, end=True)
        until(lambda: len(scene.good.calls) > before, "the first call")
        second = call(client, "queued.test", "Echo", "200m")
        client.send(second, EMPTY, end=True)
        assert is_late(client.answer(second))
        client.h2.reset_stream(first, CANCEL)
        client.flush()
        assert scene.good.wait_end(before) == "cancelled"


def test_an_instance_is_told_what_is_left_after_the_waiting(scene: Scene) -> None:
    with scene.raw() as client:
        before = len(scene.good.calls)
        first = call(client, "queued.test", "Hang", "1M")
        client.send(first, EMPTY, end=True)
        until(lambda: len(scene.good.calls) > before, "the first call")
        second = call(client, "queued.test", "Echo", "60S")
        client.send(second, EMPTY, end=True)
        threading.Event().wait(0.5)
        client.h2.reset_stream(first, CANCEL)
        client.flush()
        answer = client.answer(second)
        assert (answer.body, dict(answer.trailers)["grpc-status"]) == (EMPTY, "0")
        remaining = scene.good.calls[before + 1].remaining
        assert remaining is not None
        assert remaining < 59.6


def test_a_client_may_be_silent_for_longer_than_bodies_may(scene: Scene) -> None:
    """`limits.body_timeout` is for uploads; a stream of messages pauses as it likes."""
    messages: queue.Queue[bytes | None] = queue.Queue()
    with scene.channel("plain.test") as channel:
        stream = channel.talk(iter(messages.get, None))
        for _ in range(2):
            messages.put(b"x")
            assert next(stream) == b"x"
            threading.Event().wait(0.6)
        messages.put(None)
        assert list(stream) == []


def test_another_instance_is_asked_after_the_statuses_that_the_service_names(scene: Scene) -> None:
    before = len(scene.bad.calls)
    with scene.channel("retried.test") as channel:
        assert {channel.unary("Pick", b"%d" % n)[0] for n in range(12)} == {b"good"}
        assert len(scene.bad.calls) > before
        error = channel.failure("Fail", b"ABORTED no")  # not one of these
        assert error.details() == "no"


def test_the_failure_arrives_where_no_other_instance_is_left(scene: Scene) -> None:
    before = len(scene.bad.calls)
    with scene.channel("alone.test") as channel:
        error = channel.failure("Pick", timeout=PATIENCE)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "bad")
    assert len(scene.bad.calls) == before + 1


def test_nothing_is_asked_for_again_unless_the_service_says_so(scene: Scene) -> None:
    with scene.channel("unretried.test") as channel:
        found = [_outcome(channel, number) for number in range(12)]
    assert set(found) == {"good", "bad"}


def _outcome(channel: Channel, number: int) -> str:
    try:
        return str(channel.unary("Pick", b"%d" % number)[0].decode())
    except grpc.RpcError as error:
        return str(error.details())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("service", "status"), [("", "SERVING"), ("plain", "SERVING"), ("empty", "NOT_SERVING"), ("out", "NOT_SERVING")]
)
def test_graylb_answers_for_its_own_health_and_that_of_its_services(scene: Scene, service: str, status: str) -> None:
    with scene.channel("whatever.test") as channel:
        health = health_pb2_grpc.HealthStub(channel.channel)
        for _ in range(2):
            found = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(found.status) == status


def test_health_of_what_is_not_there(scene: Scene) -> None:
    with scene.channel("whatever.test") as channel:
        health = health_pb2_grpc.HealthStub(channel.channel)
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="no%ne"), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert caught.value.details() == "graylb: no service is called no%ne"  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as caught:
            list(health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
