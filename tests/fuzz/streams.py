"""Laws of HTTP/2 sessions that hold for any bytes: what a session tells is lawful, in order, and little is held."""

from __future__ import annotations

from collections.abc import Iterator

from graylb import _http1
from graylb._h2 import Probe, stop_clock
from tests import h2_frames as h2

GET = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 3\r\n\r\n"
STATUSES = (b"200", b"204", b"404")
OUT_OF_STREAM = ("rejected", "leaving")


def server(data: bytes) -> None:
    """Any bytes behind a client's opening."""
    probe = Probe(True, streams=10, head_bytes=4096, headers=20, resets=50, control=50)
    probe.react = answering(probe)
    run(probe, h2.PREFACE + h2.settings() + data)


def client(data: bytes) -> None:
    """Any bytes as the answer to three requests."""
    probe = Probe(False, head_bytes=4096, headers=20, resets=50, control=50)
    for text, end in ((GET, True), (POST, False), (b"HEAD" + GET[3:], True)):
        stream = probe.ask(text, end=end)
        if not end:
            probe.more(stream, b"abc", eof=True)
    probe.produce()
    run(probe, h2.settings() + data)


def cut(data: bytes) -> None:
    """A client's bytes are the same requests whole, one by one and in pieces; a session that is refused stays so."""
    opened = h2.PREFACE + h2.settings() + data
    stop_clock(True)  # what is allowed in a second must not depend on how long each of them takes
    try:
        whole = heard([opened])
        assert heard([opened[at : at + 1] for at in range(len(opened))]) == whole
        assert heard(list(pieces(opened))) == whole
    finally:
        stop_clock(False)


def heard(arriving: list[bytes]) -> tuple[bool, list[tuple[object, ...]]]:
    """(refused, what was told, data of one stream that arrived in a row as one)."""
    probe = Probe(True, streams=10, head_bytes=4096, headers=20, resets=50, control=50)
    refused = False
    for piece in arriving:
        before, refused = refused, probe.receive(piece) < 0
        assert refused or not before
    events: list[tuple[object, ...]] = []
    for event in probe.events:
        if event[0] == "data" and events and events[-1][:2] == event[:2]:
            events[-1] = (*event[:2], events[-1][2] + event[2])  # type: ignore[operator]
        else:
            events.append(tuple(event))
    return refused, events


def answering(probe: Probe):  # type: ignore[no-untyped-def]
    """An engine in small: answers each request when it ends, of some of them earlier, and resets some."""

    def react(event: tuple) -> None:  # type: ignore[type-arg]
        name, *rest = event
        if name == "request" and rest[0] % 8 == 5:
            probe.reset(rest[0], h2.CANCEL)
        elif (name == "request" and (rest[2] or rest[0] % 8 == 3)) or (name == "end" and rest[0] % 8 != 3):
            probe.respond(rest[0], b"HTTP/1.1 %s \r\n\r\n" % STATUSES[rest[0] % 3])
            probe.more(rest[0], b"x" * rest[0], eof=True, trailers=b"a: b\r\n\r\n" if rest[0] % 4 == 1 else b"")

    return react


def run(probe: Probe, data: bytes) -> None:
    out = b""
    for piece in pieces(data):
        if probe.receive(piece) < 0:
            break
        out += probe.produce(17408)
    out += probe.produce(17408)
    h2.frames(out)  # are whole
    assert probe.produce() == b""
    assert probe.held <= 5 * 4096 * 2
    assert len(out) <= 65536 + 40 * len(data)
    lawful(probe.events)
    assert probe.n_streams == len(probe.bound)


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut by what is in it, so that each input is cut the same way each time."""
    while data:
        size = 1 + data[-1] * (1 + len(data) // 64)
        yield data[:size]
        data = data[size:]


def lawful(events: list[tuple]) -> None:  # type: ignore[type-arg]
    state: dict[int, str] = {}
    for name, *rest in events:
        if name in OUT_OF_STREAM:
            continue
        assert name != "told otherwise"
        stream = rest[0]
        before = state.get(stream, "")
        assert before != "closed" or name == "request", (name, stream)
        if name in ("request", "response"):
            head(rest[1], name == "request")
            assert before in ("", "interim"), (name, stream, before)
        elif name in ("data", "end"):
            assert before in ("head", "body"), (name, stream, before)
        if name == "end" and rest[1]:
            assert rest[1].endswith(b"\r\n\r\n")
            assert rest[1].count(b"\r\n\r\n") == 1
        interim = name == "response" and rest[1][9:10] == b"1"
        after = {"request": "head", "response": "interim" if interim else "head", "data": "body", "drained": before}
        state[stream] = "ended" if name in ("request", "response") and rest[2] else after.get(name, name)


def head(text: bytes, asked: bool) -> None:
    assert text.endswith(b"\r\n\r\n")
    assert text.count(b"\r\n\r\n") == 1
    assert text.count(b"\r") == text.count(b"\n") == text.count(b"\r\n")
    assert b"\0" not in text
    found = (_http1.parse_request if asked else _http1.parse_response)(text, 256)
    assert found is not None, "not a whole head"
    if isinstance(found, dict):
        assert found["used"] == len(text)


def from_client() -> list[bytes]:
    out = [h2.Coder().headers(1, [(":path", "")])]  # no bytes, which once went nowhere
    for end, method in ((True, "GET"), (False, "POST")):
        coder = h2.Coder()
        out.append(coder.headers(1, h2.request(("cookie", "a"), ("te", "trailers"), method=method), end=end, pieces=2))
        if not end:
            trailed = h2.frame(h2.DATA, 0, 1, b"hello") + coder.headers(1, [("t", "1")])
            out += [out[-1] + h2.frame(h2.DATA, 1, 1, b"hello"), out[-1] + trailed]
    coder = h2.Coder()
    many = b"".join(coder.headers(n, h2.request(("host", "a.test"))) + h2.reset(n) for n in range(1, 20, 2))
    small = (
        h2.frame(h2.PING, payload=bytes(8))
        + h2.settings((4, 0), (1, 0))
        + h2.frame(h2.WINDOW_UPDATE, payload=b"\0\0\0\1")
    )
    out += [many, small, h2.frame(0xBE) + h2.frame(h2.PRIORITY, 0, 3, bytes(5)), h2.frame(h2.GOAWAY, payload=bytes(8))]
    return out


def from_server() -> list[bytes]:
    coder = h2.Coder()
    early = coder.headers(1, [(":status", "103"), ("link", "x")], end=False)
    answer = coder.headers(1, [(":status", "200"), ("content-length", "3")], end=False) + h2.frame(
        h2.DATA, 1, 1, b"abc"
    )
    trailed = coder.headers(3, [(":status", "200")], end=False) + coder.headers(3, [("grpc-status", "0")])
    plain = coder.headers(5, [(":status", "200"), ("content-length", "9")])
    leaving = h2.frame(h2.GOAWAY, payload=(1).to_bytes(4) + bytes(4))
    return [
        early + answer,
        early + answer + trailed + plain,
        leaving + early + answer,
        h2.settings((3, 1)) + h2.reset(3),
    ]
