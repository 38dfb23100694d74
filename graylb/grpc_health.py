"""The gRPC health checking protocol (grpc.health.v1), as a server that answers `Check` for itself. Pure.

Heads are HTTP/1.1 text, as everywhere between sessions and engine. `Watch` is left unimplemented, which
clients take for a server that need not be watched (gRPC's "Health Checking Protocol").
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from graylb.errors import SHOWN

SERVING, NOT_SERVING = 1, 2
OK, INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED = 0, 3, 5, 12
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n"


class Malformed(ValueError):
    """It is no HealthCheckRequest."""


def reply(check: bool, body: bytes, serving: Callable[[str], bool | None]) -> tuple[bytes, bytes]:
    """(head and message, trailers) for the whole body of a call; no trailers: the head is all.

    check: the method is `Check`. serving: whether a service, or "" for the server, is; None where it is not known.
    """
    if not check:
        return _failure(UNIMPLEMENTED, "only Check is served here"), b""
    try:
        service = asked(body)
    except Malformed as error:
        return _failure(INVALID_ARGUMENT, f"not a HealthCheckRequest: {error}"), b""
    found = serving(service)
    if found is None:
        return _failure(NOT_FOUND, f"no service is called {service}"), b""
    message = bytes([8, SERVING if found else NOT_SERVING])
    return HEAD + b"\r\n" + _framed(message), b"grpc-status: 0\r\n\r\n"


def asked(body: bytes) -> str:
    """The service that a HealthCheckRequest names: field 1, a string. Raises Malformed."""
    if len(body) < 5 or int.from_bytes(body[1:5]) != len(body) - 5:
        raise Malformed("expected one message")
    if body[0]:
        raise Malformed("it is compressed")
    at, service = 5, ""
    while at < len(body):
        began = at
        tag, at = _varint(body, at)
        number, wire = tag >> 3, tag & 7
        if at - began > 5 or not 0 < number < 1 << 29:
            raise Malformed(f"field {number}")
        if wire == 2:
            size, at = _varint(body, at)
        elif wire == 0:
            _, at = _varint(body, at)
            size = 0
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise Malformed(f"wire type {wire}")
        if at + size > len(body):
            raise Malformed("it is cut short")
        if number == 1 and wire == 2:
            service = _text(body[at : at + size])
        at += size
    return service


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed("the service is not UTF-8") from None


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """(value, where the next one begins); of protobuf's encoding, ten bytes at most."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(body):
            raise Malformed("it is cut short")
        value |= (body[at] & 127) << shift
        at += 1
        if body[at - 1] < 128:
            return value, at
    raise Malformed("a number is too long")


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message


def _failure(code: int, text: str) -> bytes:
    return HEAD + f"grpc-status: {code}\r\ngrpc-message: {quote('graylb: ' + text, safe=SHOWN)}\r\n\r\n".encode()
