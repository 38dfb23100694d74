"""Attributes of spans: their bytes by protobuf's own reading, their texts as UTF-8 whatever comes."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from graylb import _spans, _trace
from tests.integration.spans import values

LONGEST = 4096


def clean(value: bytes) -> str:
    """UTF-8 with U+FFFD for what is none, of at most LONGEST bytes: the slow way."""
    whole = value.decode(errors="replace")
    if len(value) <= LONGEST and whole.encode() == value:
        return whole
    taken = ""
    size = 0
    for letter in whole:
        # there has to be room for the longest letter there is
        if LONGEST - size < 4:
            break
        taken += letter
        size += len(letter.encode())
    return taken


@given(st.text(st.characters(codec="ascii"), max_size=100).filter(bool), st.binary() | st.text().map(str.encode))
@example("key", b"")
@example("key", b"a" * LONGEST)
@example("key", b"a" * (LONGEST + 1))
@example("key", b"\xff" * LONGEST)
@example("key", b"a" + "é".encode() * LONGEST)
@example("key", b"a" * 127)
@example("key", b"a" * 128)
@example("key", b"\xf0\x9f\x98")
def test_a_text_is_an_attribute_of_utf_8(key: str, value: bytes) -> None:
    key = key.replace("\0", "0")
    found = Span.FromString(_spans.text_attribute(key, value))
    assert values(found.attributes) == {key: clean(value)}


def test_an_address_is_host_and_port() -> None:
    def of(text: str) -> dict[str, object]:
        return values(Span.FromString(_spans.server_attributes(text.encode())).attributes)

    assert of("a.example:80") == {"server.address": "a.example", "server.port": 80}
    assert of("[::1]:65535") == {"server.address": "::1", "server.port": 65535}
    for whole in ("a.example", "[::1]", "unix:/run/x", "x:", ":80000000", "80"):
        assert of(whole) == {"server.address": whole}


@given(st.integers(0, 2**64 - 1))
@example(0)
@example(0x0123456789ABCDEF)
@example(2**64 - 1)
def test_ids_are_sixteen_digits(number: int) -> None:
    assert _trace.hex_of(number) == f"{number:016x}"
