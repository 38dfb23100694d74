"""gRPC's part of heads: deadlines as a caller writes and an instance reads them, statuses, answers of our own."""

from __future__ import annotations

import re
from fractions import Fraction
from urllib.parse import unquote_to_bytes

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _grpc, errors
from graylb._http1 import parse_request, parse_response

SECONDS = {"H": 3600, "M": 60, "S": 1, "m": Fraction(1, 1000), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9)}
"""Units of the protocol."""
TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
HEAD = b"POST /a.B/C HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\n%s\r\n"


def microseconds(text: bytes) -> Fraction | None:
    """The protocol's grammar, slowly."""
    found = TIMEOUT.fullmatch(text)
    return int(found[1]) * Fraction(SECONDS[found[2].decode()]) * 10**6 if found else None


def sent(head: bytes) -> list[bytes]:
    return [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"grpc-timeout:")]


@given(st.from_regex(TIMEOUT, fullmatch=True) | st.binary(max_size=12) | st.from_regex(rb"[0-9]{7,10}[HMSmunx]"))
def test_a_timeout_is_read_as_the_protocol_says(text: bytes) -> None:
    exact = microseconds(text)
    # less than a microsecond counts as one
    assert _grpc.timeout_us(text) == (None if exact is None else -(-exact // 1))


@given(st.integers(1, 99_999_999 * 3600 * 10**6))
def test_a_timeout_that_is_written_is_never_longer_and_hardly_shorter(us: int) -> None:
    text = _grpc.timeout_text(us)
    assert len(text) == 9
    found = microseconds(text)
    assert found is not None
    assert found <= us
    assert us - found < max(1, us // 10**5)


@pytest.mark.parametrize("spent", [0, -5])
def test_a_deadline_that_has_passed_is_written_as_the_shortest_there_is(spent: int) -> None:
    assert _grpc.timeout_text(spent) == b"00000001u"


@given(st.integers(0, 99_999_999), st.sampled_from("HMSmu"), st.integers(0, 10**7), st.integers(0, 10**7))
def test_what_is_forwarded_is_shortened_by_the_time_spent_here(value: int, unit: str, spent: int, more: int) -> None:
    head = HEAD % f"grpc-timeout: {value}{unit}\r\nx-last: 1\r\n".encode()
    whole = microseconds(f"{value}{unit}".encode())
    assert whole is not None
    (first,) = sent(_grpc.forwarded(head, spent))
    assert first == _grpc.timeout_text(int(whole) - spent)
    again = _grpc.forwarded(head, spent, spent + more)
    assert sent(again) == [_grpc.timeout_text(int(whole) - spent - more)]
    read = parse_request(again)
    assert isinstance(read, dict)
    assert [name for name, _, _ in read["headers"]] == [b"host", b"content-type", b"x-last", b"grpc-timeout"]


def test_a_malformed_timeout_is_left_to_whoever_serves_the_call() -> None:
    assert sent(_grpc.forwarded(HEAD % b"grpc-timeout: soon\r\n", 10)) == [b"soon"]
    assert sent(_grpc.forwarded(HEAD % b"", 10)) == []


def test_of_several_timeouts_the_first_counts_and_one_is_forwarded() -> None:
    assert sent(_grpc.forwarded(HEAD % b"grpc-timeout: 2m\r\nGrpc-Timeout: 9S\r\n", 500)) == [b"00001500u"]


@pytest.mark.parametrize(
    ("value", "code"),
    [(str(n).encode(), n) for n in range(17)] + [(text, -2) for text in (b"17", b"-1", b"x", b"", b"001", b"1 0")],
)
def test_the_status_of_a_call_that_failed_at_once(value: bytes, code: int) -> None:
    assert _grpc.status_of(b"HTTP/1.1 200 \r\nGrpc-Status: %s\r\n\r\n" % value) == code
    assert _grpc.status_of(b"HTTP/1.1 200 \r\nx-grpc-status: %s\r\n\r\n" % value) == -1


@pytest.mark.parametrize("kind", errors.KINDS, ids=lambda kind: kind.reason)
def test_our_errors_are_answers_without_a_body(kind: errors.ErrorKind) -> None:
    read = parse_response(kind.grpc_response())
    assert isinstance(read, dict)
    assert read["status"] == 200
    fields = {name: value for name, value, _ in read["headers"]}
    assert fields[b"content-type"] == b"application/grpc"
    assert fields[b"x-graylb-error"] == kind.reason.encode()
    (code,) = (code for code in grpc.StatusCode if code.name == errors.GRPC[kind.grpc])
    assert fields[b"grpc-status"] == str(code.value[0]).encode()
    message = fields[b"grpc-message"]
    assert all(0x20 <= each <= 0x7E for each in message)
    assert unquote_to_bytes(message).decode() == f"graylb: {kind.text}"


def test_messages_are_percent_encoded() -> None:
    kind = errors.ErrorKind(0, "x", "graylb", 500, 13, "100 % é\n", False)
    assert b"grpc-message: graylb: 100 %25 %C3%A9%0A\r\n" in kind.grpc_response()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", 1), (b"application/grpc+proto", 1), (b"Application/GRPC; x=1", 1),
        (b"application/grpc-web", 2), (b"application/grpc-web-text+proto", 2), (b"application/json", 0),
    ],
)  # fmt: skip
def test_grpc_web_is_told_from_grpc(content_type: bytes, expected: int) -> None:
    read = parse_request(b"POST /a.B/C HTTP/1.1\r\nhost: x\r\ncontent-type: %s\r\n\r\n" % content_type)
    assert isinstance(read, dict)
    assert read["grpc"] + read["grpc_web"] == expected
