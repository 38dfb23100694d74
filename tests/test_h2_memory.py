"""What HTTP/2 connections keep: blocks for libnghttp2's next streams, and heads that it has not packed yet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graylb._h2 import Probe, blocks
from tests.h2_frames import CANCEL
from tests.test_h2_bodies import GET, opened, pair

sizes = st.sampled_from([0, 1, 63, 64, 65, 128, 1000, 2047, 2048, 2049, 5000, 20000])


@given(st.lists(st.tuples(st.integers(1, 4), sizes), max_size=60))
def test_blocks_keep_what_is_in_them_whatever_their_sizes(steps: list[tuple[int, int]]) -> None:
    assert blocks(steps)[0]


def test_blocks_that_are_kept_for_later_are_bounded() -> None:
    kept, parked = blocks([(number, 512 - 16) for number in range(2000)])  # 16: what stands before each
    assert kept
    assert parked[512 // 64] == 256 << 10
    assert max(parked) <= 256 << 10


# ---- heads on loan


def test_heads_stay_until_they_are_in_the_output_whatever_becomes_of_their_streams() -> None:
    client, server = pair()
    asked = [client.ask(b"GET /%d HTTP/1.1\r\nhost: a.test\r\n\r\n" % number, True) for number in range(5)]
    assert client.lent == 5
    client.reset(asked[1], CANCEL)  # nobody will have heard of it
    server.receive(client.produce())
    assert client.lent == 0
    seen = {event[1]: event[2] for event in server.events if event[0] == "request"}
    assert seen == {
        stream: b"GET /%d HTTP/1.1\r\nhost: a.test\r\n\r\n" % number
        for number, stream in enumerate(asked)
        if number != 1
    }
    for stream in seen:
        assert server.respond(stream, b"HTTP/1.1 200 \r\nx-stream: %d\r\n\r\n" % stream, True) == 0
    server.reset(asked[0], CANCEL)  # its head is in the queue already
    assert server.lent == 4
    client.receive(server.produce())
    assert server.lent == 0
    heads = {event[1]: event[2] for event in client.events if event[0] == "response"}
    assert heads == {stream: b"HTTP/1.1 200 \r\nx-stream: %d\r\n\r\n" % stream for stream in seen if stream != asked[0]}


def test_a_head_that_is_not_taken_is_given_back_at_once() -> None:
    server = opened(end=True)[1]
    assert server.respond(1, b"HTTP/1.1 200 \r\nno colon\r\n\r\n", True) == -1
    assert server.lent == 0
    other = Probe(False)
    other.use_up_ids()
    assert other.ask(GET, True) > 0
    assert other.ask(GET, True) == -1
    assert other.lent == 1  # goes with its session
