"""Heads that follow each other on one HTTP/2 connection: what is known from one changes nothing of the next."""

from __future__ import annotations

import hpack
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from graylb._h2 import Probe
from tests.h2_frames import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    RST_STREAM,
    Coder,
    frames,
    of_kind,
    request,
    settings,
)

Lines = list[tuple[str, str]]

# few names and values, so that heads share some of their lines, in other places, with other values and in other case
NAMES = st.sampled_from(
    ["a", "x-user", "x-users", "content-type", "content-length", "cookie", "te", "host", "x-" + "n" * 40, "b!", "Big"]
)
VALUES = st.sampled_from(
    [
        "",
        "0",
        "7",
        "trailers",
        "a.test",
        "v" * 15,
        "v" * 16,
        "v" * 17,
        "w" * 40,
        "w" * 39 + "x",
        "un\x01lawful",
        "y" * 700,
    ]
)
HEADS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=8), min_size=1, max_size=8)
TEXT_NAMES = st.sampled_from(
    ["a", "x-user", "X-User", "content-type", "host", "te", "connection", "keep-alive", "x-" + "n" * 40]
)
TEXT_VALUES = st.sampled_from(["", "0", "trailers", "v" * 16, "w" * 40, "w" * 39 + "x", " spaced ", "y" * 700])
TEXTS = st.lists(st.lists(st.tuples(TEXT_NAMES, TEXT_VALUES), max_size=8), min_size=1, max_size=8)
SAME = [[("x-user", "7"), ("te", "trailers"), ("content-type", "v" * 17)]] * 3


def told(probe: Probe, stream: int) -> list[tuple[object, ...]]:
    """The events of one stream without its number."""
    return [(event[0], *event[2:]) for event in probe.events if event[0] != "rejected" and event[1] == stream]


def rejected(probe: Probe) -> int:
    return sum(event[0] == "rejected" for event in probe.events)


def number(i: int) -> int:
    return 2 * i + 1


def text(first: str, lines: Lines) -> bytes:
    return "".join([first, *(f"{name}: {value}\r\n" for name, value in lines), "\r\n"]).encode()


def asked(heads: list[Lines]) -> tuple[Probe, bytes]:
    """A server that these have come to, as heads of requests and as their trailers, and what it has said."""
    server, coder, out = Probe(True), Coder(), b""
    server.receive(PREFACE + settings())
    for i, lines in enumerate(heads):
        head = request(*lines, method="POST", path="/" + "p" * len(lines))
        server.receive(coder.headers(number(i), head, end=False))
        server.receive(coder.headers(number(i), lines))
        out += server.produce()
    return server, out


def answered(heads: list[Lines]) -> tuple[Probe, bytes]:
    """A client that these have come to, as heads of answers and as their trailers, and what it has said."""
    client, coder, out = Probe(False), Coder(), b""
    client.receive(settings())
    for i, lines in enumerate(heads):
        assert client.ask(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n", True) == number(i)
        out += client.produce()
        client.receive(coder.headers(number(i), [(":status", "200"), *lines], end=False))
        client.receive(coder.headers(number(i), lines))
        out += client.produce()
    return client, out


def resets(output: bytes) -> list[int]:
    return [each.stream for each in of_kind(output, RST_STREAM)]


@examples(max_examples=150, deadline=None)
@given(HEADS)
@example(SAME)
@example([[("cookie", "0"), ("cookie", "")]])  # once joined into a value that ended with a space
def test_what_comes_is_told_as_if_it_were_the_first(heads: list[Lines]) -> None:
    for came in asked, answered:
        together, out = came(heads)
        alone = [came([lines]) for lines in heads]
        for i, (each, _) in enumerate(alone):
            assert told(together, number(i)) == told(each, 1)
            assert "told otherwise" not in {event[0] for event in together.events}
        assert rejected(together) == sum(rejected(each) for each, _ in alone)
        assert resets(out) == [number(i) for i, (_, said) in enumerate(alone) for _ in resets(said)]


def sent(output: bytes, decoder: hpack.Decoder) -> list[tuple[int, Lines]]:
    """Header blocks by their streams, in order."""
    assert all(each.flags & END_HEADERS for each in of_kind(output, HEADERS))
    return [(each.stream, list(decoder.decode(each.payload))) for each in frames(output) if each.kind == HEADERS]


def answers(texts: list[Lines]) -> list[tuple[int, Lines]]:
    """What goes to a client for these, as heads of answers and as their trailers."""
    server, coder, decoder, out = Probe(True), Coder(), hpack.Decoder(), []
    server.receive(PREFACE + settings())
    for i, lines in enumerate(texts):
        server.receive(
            coder.headers(number(i), [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")])
        )
        assert server.respond(number(i), text("HTTP/1.1 200 OK\r\n", lines), False) == 0
        server.more(number(i), b"body", eof=True, trailers=text("", lines))
        out += sent(server.produce(), decoder)
    return out


def requests(texts: list[Lines]) -> list[tuple[int, Lines]]:
    """What goes to an instance for these."""
    client, decoder, out = Probe(False), hpack.Decoder(), []
    client.receive(settings())
    for i, lines in enumerate(texts):
        assert client.ask(text(f"GET /{i} HTTP/1.1\r\n", lines), True) == number(i)
        out += sent(client.produce(), decoder)
    return out


@examples(max_examples=150, deadline=None)
@given(TEXTS)
@example([[("connection", "0"), ("a", " spaced "), ("X-User", "0")]] * 3)
def test_what_goes_is_sent_as_if_it_were_the_first(texts: list[Lines]) -> None:
    assert answers(texts) == [(number(i), block) for i, each in enumerate(texts) for _, block in answers([each])]
    for i, (stream, block) in enumerate(requests(texts)):
        ((_, alone),) = requests([texts[i]])
        assert stream == number(i)
        assert [("/0" if name == ":path" else value) for name, value in block] == [value for _, value in alone]
        assert [name for name, _ in block] == [name for name, _ in alone]


def test_a_line_that_does_not_fit_any_more_is_not_looked_for() -> None:
    """A longer text went before: nothing behind the end of the next one is read."""
    long, short = [("a", "b"), ("x-user", "w" * 40)], [("a", "b"), ("x-user", "w")]
    assert answers([long, short])[2:] == [(3, block) for _, block in answers([short])]
