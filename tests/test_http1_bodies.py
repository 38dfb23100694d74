"""The body decoder and the chunk encoder: what they take, where a body ends, and that no split of the input shows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _http1
from tests.fuzz import grammar, peers

Kind = Literal["length", "chunked", "close"]
LINE_LIMIT = 8192


@dataclass
class Result:
    """What a decoder made of pieces. `used`: bytes of all of them that belong to the body. `bad`: it refused."""

    data: bytes = b""
    used: int = 0
    done: bool = False
    bad: bool = False


def decode(kind: Kind, pieces: list[bytes], length: int = 0) -> Result:
    decoder = _http1.BodyDecoder(kind, length)
    result = Result(done=decoder.done)
    for piece in pieces:
        if result.done:
            break
        try:
            result.data += decoder.feed(piece)
        except ValueError:
            result.bad = True
            break
        assert decoder.used <= len(piece)
        assert decoder.done or decoder.used == len(piece), "bytes were left, and the body goes on"
        result.used += decoder.used
        result.done = decoder.done
    return result


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


def single(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# ---- bodies by length, and to the end --------------------------------------------------------------------------------


@given(st.integers(0, 60), st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=5))
def test_a_body_by_length(length: int, data: bytes, cuts: list[int]) -> None:
    for pieces in ([data], single(data), split(data, cuts)):
        done = len(data) >= length
        assert decode("length", pieces, length) == Result(data[:length], min(length, len(data)), done)


def test_a_finished_decoder_takes_nothing() -> None:
    decoder = _http1.BodyDecoder("length", 2)
    assert (decoder.feed(b"abc"), decoder.done, decoder.used) == (b"ab", True, 2)
    assert (decoder.feed(b"def"), decoder.done, decoder.used) == (b"", True, 0)
    empty = _http1.BodyDecoder("length", 0)
    assert (empty.done, empty.feed(b"x"), empty.used) == (True, b"", 0)


@given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=5))
def test_a_body_to_the_end(data: bytes, cuts: list[int]) -> None:
    assert decode("close", split(data, cuts)) == Result(data, len(data), False)


def test_a_length_below_zero_is_none() -> None:
    with pytest.raises(ValueError, match="length"):
        _http1.BodyDecoder("length", -1)


# ---- chunked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"0000005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b'5;a="b c";\xe4\r\nhello\r\n0;x\r\n\r\n', b"hello"),
        (b"5;\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n", b"\r\n"),
        (b"3\r\n0\r\n\r\n0\r\nContent-Length: 50\r\nHost:\r\n\r\n", b"0\r\n"),
    ],
)
def test_good_chunks(raw: bytes, data: bytes) -> None:
    then = b"GET / HTTP/1.1\r\n"
    assert decode("chunked", [raw + then]) == Result(data, len(raw), True)
    for end in range(len(raw)):
        part = decode("chunked", [raw[:end]])
        assert (part.bad, part.done, part.used) == (False, False, end), "a part of a good body is never refused or done"
        assert data.startswith(part.data)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n", b" 5\r\n", b"5 \r\n", b"5\t\r\n", b"+5\r\n", b"-5\r\n", b"0x5\r\n", b"g\r\n", b"5g\r\n", b"5,\r\n",
        b"5\0\r\n", b"\xff\r\n",
        b"5\r\r", b"5\n", b"5_0\r\n", b"5 ;a\r\n", b";a\r\n", b"G\r\n", b"@\r\n", b"`\r\n", b"/\r\n", b":\r\n",
        b"10000000000000005\r\n", b"fffffffffffffffff\r\n", b"5;a\n", b"5;a\rb", b"5;\0\r\n", b"5;\x7f\r\n",
        b"5;a\r\r",
        b"2\r\nab\n", b"2\r\nab\rx", b"2\r\nabc", b"2\r\nab0", b"0\r\n\n", b"0\r\n\rx", b"0\n", b"0\r\nx\r\n",
        b"0\r\n: y\r\n",
        b"0\r\nx : y\r\n", b"0\r\n x: y\r\n", b"0\r\nx: y\n", b"0\r\nx: y\rz", b"0\r\nx: \0\r\n",
        b"0\r\nx: y\r\n z\r\n",
        b"0\r\nx\xe4: y\r\n",
    ],
)  # fmt: skip
def test_bad_chunks(raw: bytes) -> None:
    for pieces in ([raw], [raw + b"hello\r\n0\r\n\r\n"], single(raw)):
        assert decode("chunked", pieces).bad, raw


def test_the_largest_size() -> None:
    assert not decode("chunked", [b"fffffffffffffff\r\nx"]).bad
    assert decode("chunked", [b"1000000000000000\r\n"]).bad


@pytest.mark.parametrize("start", [b"5;", b"0\r\nx:", b"0\r\n" + b"x:y\r\n" * 1000, b"0" * 5000])
def test_lines_between_data_are_bounded(start: bytes) -> None:
    """Hazard 2: extensions, trailers and zeros without an end."""
    fill = b"0" if start.startswith(b"00") else b"y"
    lawful = start + fill * (LINE_LIMIT - len(start))
    for pieces in ([lawful], single(lawful)):
        assert not decode("chunked", pieces).bad
        assert decode("chunked", [*pieces, fill]).bad


def test_the_bound_begins_anew_with_data() -> None:
    raw = (b"1;" + b"x" * 8000 + b"\r\ny\r\n") * 5 + b"0\r\n\r\n"
    assert decode("chunked", [raw]) == Result(b"yyyyy", len(raw), True)


@settings(max_examples=150, deadline=None)
@given(grammar.chunked(), st.binary(max_size=20), st.lists(st.integers(0, 500), max_size=6))
def test_no_split_shows_in_a_good_body(body: tuple[bytes, bytes], then: bytes, cuts: list[int]) -> None:
    raw, data = body
    for pieces in ([raw + then], single(raw + then), split(raw + then, cuts)):
        assert decode("chunked", pieces) == Result(data, len(raw), True)


@settings(max_examples=200, deadline=None)
@given(grammar.damaged(grammar.chunked().map(lambda body: body[0])), st.lists(st.integers(0, 500), max_size=6))
def test_no_split_shows_in_any_body(raw: bytes, cuts: list[int]) -> None:
    """Refused or not, the data before and the end are the same; a refusal in one piece hides the data before it."""
    slow = decode("chunked", single(raw))
    for pieces in ([raw], split(raw, cuts)):
        result = decode("chunked", pieces)
        assert (result.bad, result.done) == (slow.bad, slow.done)
        if slow.bad:
            assert slow.data.startswith(result.data)
        else:
            assert result == slow


@settings(max_examples=200, deadline=None)
@given(grammar.damaged(grammar.chunked().map(lambda body: body[0])))
def test_peers_agree_on_what_we_accept(raw: bytes) -> None:
    """h11 always does; llhttp may refuse bytes of an extension or a trailer, else it reads the same body."""
    ours = decode("chunked", [raw])
    if ours.bad:
        return
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    readings = {"h11": peers.h11_request(head + raw[: ours.used]), "llhttp": peers.llhttp(head + raw[: ours.used])}
    for name, reading in readings.items():
        if reading is None:
            assert name == "llhttp" or b";" in raw or b"\r\n0" in b"\r\n" + raw, (name, raw)
            continue
        assert (reading.body, reading.ended) == (ours.data, ours.done), name


# ---- encoding --------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_round_trip(pieces: list[bytes]) -> None:
    raw = b"".join(map(_http1.encode_chunk, pieces)) + b"0\r\n\r\n"
    assert decode("chunked", [raw]) == Result(b"".join(pieces), len(raw), True)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for reading in (peers.h11_request(head + raw), peers.llhttp(head + raw)):
        assert reading is not None
        assert (reading.body, reading.ended) == (b"".join(pieces), True)


@pytest.mark.parametrize("size", [1, 9, 15, 16, 255, 256, 65535, 65536, 1 << 20])
def test_chunk_sizes(size: int) -> None:
    assert _http1.encode_chunk(b"x" * size) == b"%x\r\n%b\r\n" % (size, b"x" * size)


def test_nothing_is_no_chunk() -> None:
    """A chunk of size 0 would end the body."""
    with pytest.raises(ValueError, match="empty"):
        _http1.encode_chunk(b"")
