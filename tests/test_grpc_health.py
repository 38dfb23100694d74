"""The gRPC health checking protocol against its own messages, as protobuf writes and reads them."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from graylb import grpc_health
from graylb.grpc_health import Malformed, asked, reply

NAMES = st.text(max_size=300)


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message


def request(service: str) -> bytes:
    return framed(health_pb2.HealthCheckRequest(service=service).SerializeToString())


@given(NAMES)
def test_the_service_that_is_asked_for(service: str) -> None:
    assert asked(request(service)) == service


@given(NAMES, st.binary(max_size=20))
def test_fields_of_other_versions_are_skipped(service: str, rest: bytes) -> None:
    more = b"\x12" + bytes([len(rest)]) + rest + b"\x18\x96\x01" + b"\x21" + bytes(8) + b"\x2d" + bytes(4)
    body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    assert asked(framed(more + body + more)) == service


@given(st.binary(max_size=40))
@example(bytes(16))  # field 0, which there is not
@example(b"\x80\x80\x80\x80\x10\0")  # nor one beyond 29 bits
@example(b"\x98\x80\x80\x80\x80\0\0")  # nor one in six bytes
@example(b"\x18" + b"\xff" * 9 + b"\1")
@example(b"\x0a\1\xff\x0a\1a")  # named twice, once in no UTF-8
def test_what_is_no_request_is_told_apart(body: bytes) -> None:
    """Where protobuf reads a message, so does this; what it refuses is refused, but for groups, which nobody sends."""
    try:
        found = asked(framed(body))
    except Malformed:
        return
    message = health_pb2.HealthCheckRequest()
    message.ParseFromString(body)
    assert message.service == found


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0\0\0", request("a")[:-1], request("a") + b"x", b"\1" + request("a")[1:], framed(b"\x0a\x05ab"),
     framed(b"\x0a\x01\xff"), framed(b"\x0b"), framed(b"\xff" * 11)],
)  # fmt: skip
def test_malformed_requests(body: bytes) -> None:
    with pytest.raises(Malformed):
        asked(body)
    head, trailers = reply(True, body, lambda service: True)
    assert (b"grpc-status: 3\r\n" in head, trailers) == (True, b"")


@pytest.mark.parametrize("serving", [True, False])
def test_the_answer_is_a_message_of_the_protocol(serving: bool) -> None:
    text, trailers = reply(True, request("a"), {"a": serving}.get)
    head, _, body = text.partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc"
    assert trailers == b"grpc-status: 0\r\n\r\n"
    assert body[:5] == b"\0\0\0\0" + bytes([len(body) - 5])
    found = health_pb2.HealthCheckResponse.FromString(body[5:]).status
    assert found == (grpc_health.SERVING if serving else grpc_health.NOT_SERVING)
