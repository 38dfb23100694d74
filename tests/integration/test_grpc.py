"""gRPC through a real graylb, by grpcio on both sides: calls of every kind, what they carry, and how they end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from graylb import builds
from tests.integration import proxies
from tests.integration.grpcs import PATIENCE, Channel, Server, page, servers, told
from tests.integration.proxies import until

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")

MIB = 1 << 20


@dataclass
class Scene:
    proxy: proxies.Proxy
    one: Server
    two: Server

    def channel(self, host: str = "plain.test", **options: Any) -> Channel:
        return Channel(self.proxy.address, host, **options)

    def served(self) -> int:
        return len(self.one.calls) + len(self.two.calls)


def services(one: str, two: str) -> dict[str, Any]:
    both = ((one, "v1"), (two, "v2"))
    rules = [
        {"name": "method", "match": {"grpc": {"service": "test.Echo", "method": {"in": ["Talk", "Hang"]}}}, "to": "v2"},
        {"name": "other", "match": {"grpc": {"service": {"suffix": ".Other"}}}, "to": "v2"},
        {"name": "beta", "match": {"metadata": {"x-group": "beta"}}, "to": "v2"},
        {"name": "tagged", "match": {"metadata": {"x-tag-bin": "AAE"}}, "to": "v2"},
    ]
    return {
        "plain": proxies.service(one, hosts=["plain.test"]),
        "even": proxies.service(*both, hosts=["even.test"], split={"v1": 50, "v2": 50}),
        "sticky": proxies.service(
            *both, hosts=["sticky.test"], split={"v1": 50, "v2": 50}, sticky=[{"metadata": "x-user-id"}]
        ),
        "ruled": proxies.service(*both, hosts=["ruled.test"], rules=rules),
        "empty": proxies.service(hosts=["empty.test"]),
        "closed": proxies.service("127.0.0.1:1", hosts=["closed.test"]),
        "narrow": proxies.service(
            one, hosts=["narrow.test"], connections={"max": 1, "streams": 1, "queue": 0, "queue_timeout": "100ms"}
        ),
        "impatient": proxies.service(one, hosts=["impatient.test"], timeouts={"response": "200ms"}),
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with servers("v1", "v2") as (one, two):
        doc = proxies.document(services(one.address, two.address))
        with proxies.running(tmp_path_factory.mktemp("grpc"), doc) as proxy:
            yield Scene(proxy, one, two)


def said(call: Any) -> list[tuple[str, str | bytes]]:
    """What the instance said at the end, without what graylb says of its decision and of the client."""
    return [each for each in told(call.trailing_metadata()) if not each[0].startswith(("x-graylb-", "x-forwarded-"))]


# ---- the four kinds of calls -----------------------------------------------------------------------------------------


def test_a_unary_call(scene: Scene) -> None:
    with scene.channel() as channel:
        assert channel.echo(b"hello") == "v1"
        assert channel.echo(b"") == "v1"
    assert scene.one.wait_end() == "ok"


def test_a_client_stream(scene: Scene) -> None:
    with scene.channel() as channel:
        assert channel.collect(iter([b"%d," % n for n in range(100)])) == b"".join(b"%d," % n for n in range(100))
        assert channel.collect(iter([])) == b""


def test_a_server_stream(scene: Scene) -> None:
    with scene.channel() as channel:
        call = channel.stream("Repeat", page(100, 1000))
        answers = list(call)
        assert [int.from_bytes(each[:4], "big") for each in answers] == list(range(100))
        assert told(call.trailing_metadata()) == (("x-count", "100"),)
        assert list(channel.stream("Repeat", page(0, 0))) == []


def test_both_sides_stream_and_each_message_is_there_before_the_next(scene: Scene) -> None:
    messages: queue.Queue[bytes | None] = queue.Queue()
    with scene.channel() as channel:
        call = channel.talk(iter(messages.get, None))
        for number in range(50):
            messages.put(b"%d" % number)
            assert next(call) == b"%d" % number
        messages.put(None)
        with pytest.raises(StopIteration):
            next(call)
        assert call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("size", [1 * MIB, 20 * MIB])
def test_large_messages_in_both_directions(scene: Scene, size: int) -> None:
    message = bytes(range(256)) * (size // 256)
    with scene.channel() as channel:
        answer, _ = channel.unary("Echo", message)
        assert answer == message
        (answer,) = channel.talk(iter([message]))
        assert answer == message


# ---- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_goes_both_ways_as_it_is(scene: Scene) -> None:
    given = (("x-text", "a, b"), ("x-raw-bin", bytes(range(256))), ("x-twice", "1"), ("x-twice", "2"), ("x-empty", ""))
    with scene.channel() as channel:
        _, call = channel.unary("Echo", b"", metadata=given)
    assert sorted(scene.one.last().metadata) == sorted((*given, ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"), ("x-forwarded-host", "plain.test")))  # fmt: skip
    assert sorted(said(call)) == sorted(given)
    begun = dict(told(call.initial_metadata()))
    assert begun["x-initial-bin"] == b"\0\xff"
    assert begun["x-graylb-version"] == "v1"


def test_the_instance_is_asked_as_the_protocol_wants_it(scene: Scene) -> None:
    """`te: trailers` is what tells servers that nobody between them loses the trailers."""
    with scene.channel() as channel:
        channel.echo()
    found = scene.one.last().forwarded
    assert "user-agent" in found
    assert scene.one.last().method == "/test.Echo/Echo"


# ---- how calls fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each is not grpc.StatusCode.OK])
def test_a_failure_of_the_instance_arrives_whole(scene: Scene, code: grpc.StatusCode) -> None:
    details = "100 % wröng\n" if code is grpc.StatusCode.INTERNAL else "wrong"
    with scene.channel() as channel:
        error = channel.failure("Fail", f"{code.name} {details}".encode())
    assert (error.code(), error.details()) == (code, details)
    assert said(error) == [("x-why", "asked"), ("x-why-bin", b"\1\2")]


def test_a_stream_that_fails_in_the_middle(scene: Scene) -> None:
    with scene.channel() as channel:
        call = channel.stream("FailLate", b"")
        assert [next(call), next(call)] == [b"one", b"two"]
        with pytest.raises(grpc.RpcError):
            next(call)
        assert (call.code(), call.details()) == (grpc.StatusCode.ABORTED, "after two")


def test_a_method_that_the_instance_has_not(scene: Scene) -> None:
    with scene.channel() as channel:
        error = channel.failure("Nothing")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "graylb" not in error.details()


@pytest.mark.parametrize(
    ("host", "code", "reason"),
    [
        ("nowhere.test", grpc.StatusCode.UNIMPLEMENTED, "no-route"),
        ("empty.test", grpc.StatusCode.UNAVAILABLE, "no-instance"),
        ("closed.test", grpc.StatusCode.UNAVAILABLE, "connect-failed"),
    ],
)
def test_errors_of_graylb_are_statuses_with_a_message(
    scene: Scene, host: str, code: grpc.StatusCode, reason: str
) -> None:
    with scene.channel(host) as channel:
        error = channel.failure("Echo")
        assert error.code() is code
        assert error.details().startswith("graylb: ")
        assert dict(error.trailing_metadata())["x-graylb-error"] == reason
        # a stream of requests is refused in the same way
        call = channel.talk(iter([b"x"] * 3))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is code  # type: ignore[attr-defined]


def test_a_full_instance_is_a_resource_exhausted(scene: Scene) -> None:
    with scene.channel("narrow.test") as channel:
        before = len(scene.one.calls)
        hanging = channel.channel.unary_unary("/test.Echo/Hang").future(b"", timeout=PATIENCE)
        until(lambda: len(scene.one.calls) > before, "the first call")
        error = channel.failure("Echo")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details().startswith("graylb: ")
        hanging.cancel()
        assert scene.one.wait_end(before) == "cancelled"


# ---- deadlines and cancellation --------------------------------------------------------------------------------------


def test_a_deadline_is_told_to_the_instance_shortened(scene: Scene) -> None:
    with scene.channel() as channel:
        channel.unary("Echo", timeout=9.0)
        remaining = scene.one.last().remaining
        assert remaining is not None
        assert 0 < remaining < 9.0 + 0.01  # gRPC rounds up to hundredths what it sends; test_grpc_deadlines is exact
        channel.unary("Echo", timeout=None)
        assert scene.one.last().remaining is None


def test_a_deadline_that_passes(scene: Scene) -> None:
    with scene.channel() as channel:
        before = len(scene.one.calls)
        error = channel.failure("Hang", timeout=0.3)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert scene.one.wait_end(before) == "cancelled"


def test_a_call_that_the_client_cancels_is_cancelled_at_the_instance(scene: Scene) -> None:
    with scene.channel() as channel:
        before = len(scene.one.calls)
        call = channel.channel.unary_unary("/test.Echo/Hang").future(b"", timeout=PATIENCE)
        until(lambda: len(scene.one.calls) > before, "the call")
        call.cancel()
        assert scene.one.wait_end(before) == "cancelled"
        stream = channel.stream("Repeat", page(1_000_000, 1000))
        next(stream)
        stream.cancel()
        assert scene.one.wait_end() == "cancelled"
        assert channel.echo() == "v1"  # on the same connection


def test_a_client_that_goes_away_has_its_calls_cancelled(scene: Scene) -> None:
    before = len(scene.one.calls)
    channel = scene.channel()
    call = channel.channel.unary_unary("/test.Echo/Hang").future(b"", timeout=PATIENCE)
    until(lambda: len(scene.one.calls) > before, "the call")
    channel.channel.close()
    assert scene.one.wait_end(before) == "cancelled"
    assert call.code() is grpc.StatusCode.CANCELLED


def test_a_quiet_call_is_not_ended_by_the_time_for_answers(scene: Scene) -> None:
    """A gRPC call says itself how long it waits: `timeouts.response` is not for it."""
    with scene.channel("impatient.test") as channel:
        assert list(channel.stream("Quiet", b"0.6")) == [b"done"]
        messages: queue.Queue[bytes | None] = queue.Queue()
        call = channel.talk(iter(messages.get, None))
        messages.put(b"one")
        assert next(call) == b"one"
        threading.Event().wait(0.4)
        messages.put(b"two")
        assert next(call) == b"two"
        messages.put(None)
        assert list(call) == []


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_calls_of_one_connection_are_split_one_by_one(scene: Scene) -> None:
    with scene.channel("even.test") as channel:
        versions = [channel.echo() for _ in range(100)]
    assert 48 <= versions.count("v1") <= 52


def test_a_callers_calls_stick_by_metadata(scene: Scene) -> None:
    with scene.channel("sticky.test") as channel:
        users = {user: channel.echo(b"", ("x-user-id", str(user))) for user in range(40)}
        assert set(users.values()) == {"v1", "v2"}
        for user, version in users.items():
            assert channel.echo(b"", ("x-user-id", str(user))) == version
    with scene.channel("sticky.test") as channel:
        assert {user: channel.echo(b"", ("x-user-id", str(user))) for user in range(40)} == users


def test_rules_by_service_method_and_metadata(scene: Scene) -> None:
    with scene.channel("ruled.test") as channel:
        assert channel.echo() == "v1"
        assert channel.echo(b"", ("x-group", "beta")) == "v2"
        assert channel.echo(b"", ("x-group", "gamma")) == "v1"
        assert channel.echo(b"", ("x-tag-bin", b"\0\1")) == "v2"
        assert channel.echo(b"", ("x-tag-bin", b"\0\2")) == "v1"
        call = channel.talk(iter([b"x"]))
        assert dict(call.initial_metadata())["x-version"] == "v2"
        _, other = channel.unary("/shop.Other/Echo")
        assert dict(other.initial_metadata())["x-version"] == "v2"
        assert dict(other.initial_metadata())["x-graylb-rule"] == "other"


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_many_callers_at_once(scene: Scene) -> None:
    def one(number: int) -> int:
        with scene.channel("even.test") as channel:
            return sum(channel.echo(b"%d %d" % (number, each)) in ("v1", "v2") for each in range(20))

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(16))) == 320
