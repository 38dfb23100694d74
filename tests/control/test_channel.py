"""Frames survive any cutting of the byte stream, and nothing but frames is accepted."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.proxy import channel

frames = st.lists(st.tuples(st.sampled_from(sorted(channel.TYPES)), st.binary(max_size=300)), max_size=8)


@given(frames, st.data())
def test_any_cutting_gives_the_same_frames(sent: list[tuple[str, bytes]], data: st.DataObject) -> None:
    stream = b"".join(channel.encode(kind, payload) for kind, payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = channel.Decoder()
    got: list[channel.Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert [tuple(frame) for frame in got] == sent
    decoder.eof()


@given(frames)
def test_byte_at_a_time_delivers_each_frame_with_its_last_byte(sent: list[tuple[str, bytes]]) -> None:
    decoder = channel.Decoder()
    for kind, payload in sent:
        encoded = channel.encode(kind, payload)
        for byte in encoded[:-1]:
            assert decoder.feed(bytes([byte])) == []
        assert decoder.feed(encoded[-1:]) == [(kind, payload)]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_frames_or_a_channel_error(noise: bytes) -> None:
    decoder = channel.Decoder(limit=64)
    try:
        got = decoder.feed(noise)
    except channel.ChannelError:
        with pytest.raises(channel.ChannelError):
            decoder.feed(channel.encode(channel.STATS))
    else:
        assert noise.startswith(b"".join(channel.encode(*frame) for frame in got))


def test_a_frame_is_framed_as_the_architecture_says() -> None:
    assert channel.encode(channel.TABLE, b"abc") == b"\0\0\0\x03Tabc"


def test_a_length_over_the_limit_is_refused_before_its_payload_arrives() -> None:
    decoder = channel.Decoder(limit=10)
    with pytest.raises(channel.ChannelError, match="length of 11 bytes is over the limit of 10"):
        decoder.feed(struct.pack(">IB", 11, ord("T")))


def test_encode_refuses_what_decode_would() -> None:
    with pytest.raises(channel.ChannelError, match="over the limit of 3"):
        channel.encode(channel.TABLE, b"abcd", limit=3)
    with pytest.raises(channel.ChannelError, match="unknown frame type 'X'"):
        channel.encode("X")


def test_end_of_stream_within_a_frame_is_an_error() -> None:
    decoder = channel.Decoder()
    decoder.feed(channel.encode(channel.READY, b"{}")[:-1])
    with pytest.raises(channel.ChannelError, match="closed within a frame"):
        decoder.eof()


def test_json_payloads() -> None:
    (frame,) = channel.Decoder().feed(channel.encode_json(channel.DRAIN, {"seconds": 30.0}))
    assert frame.json() == {"seconds": 30.0}
    with pytest.raises(channel.ChannelError, match="not JSON"):
        channel.Frame(channel.ACK, b"{").json()
