"""Laws of what is read outside of the data plane, of bytes that others write: logs, probes, baggage, answers, frames.

Oracles: protobuf, the engine's own reading of heads, the same bytes cut otherwise, and what was written read again.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest

from graylb import _http1, grpc_health, sdk
from graylb.proxy import channel
from graylb.release import access_log, answer_diff, trails
from graylb.sdk import context, trail
from tests.fuzz import tables

READERS = (
    access_log.reader("json", access_log.Fields.of(("header.x=deep.down",))),
    access_log.reader("combined", access_log.Fields.of(("header.x=extra1", "host=extra2"))),
)


def line(data: bytes) -> None:
    """A line of any log is a head that the engine decides, or a bad line; a value makes no header of its own."""
    for read in READERS:
        try:
            logged = read(data)
        except access_log.BadLine:
            continue
        head = logged.head
        assert head.endswith(b"\r\n\r\n")
        assert head.count(b"\r\n\r\n") == 1
        assert head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n")
        found = _http1.parse_request(head, 256)
        assert found is not None, "not a whole head"
        (decided,) = tables.tables()[0].decide_many([head], [logged.client_ip], [0])
        assert isinstance(found, dict) or decided is None


LINES = (
    b'{"method":"GET","host":"a.test","path":"/x","query":"a=1","headers":{"cookie":["a=1","b"]},"client_ip":"::1"}',
    b'{"request":{"uri":"/?a","remote_ip":"1.2.3.4:5"},"http_user_agent":"x","deep":{"down":"y"},"listener":"edge"}',
    b'192.0.2.1 - ann [22/Nov/2026:00:00:00 +0000] "GET /a?b HTTP/1.1" 200 5 "http://a/" "x \\x22y\\"" "e" "f.test"',
    b'a.test:80 [::1]:80 - - [x] "POST / HTTP/2.0" - - "-" "-"',
)


def health(data: bytes) -> None:
    """A request for a service's health is read as protobuf reads it; what protobuf refuses is malformed."""
    try:
        service = grpc_health.asked(data)
    except grpc_health.Malformed:
        service = None
    if service is not None:
        theirs, error = parsed(data[5:])
        # it looks into what we step over: fields' numbers, bits of a number beyond the 64th, a service named before
        assert theirs == service or "UTF-8" in error or (error and tags_are_odd(data[5:]))
    head, trailers = grpc_health.reply(True, data, lambda name: True if name == "" else None)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert bool(trailers) == (service == "")
    assert isinstance(_http1.parse_response(head), dict)


def parsed(message: bytes) -> tuple[str | None, str]:
    """(the service, why there is none), as protobuf reads it."""
    try:
        return HealthCheckRequest.FromString(message).service, ""
    except DecodeError as error:
        return None, str(error)


def tags_are_odd(message: bytes) -> bool:
    """Whether a field's number is none that protobuf allows, or a number has bits beyond the 64th."""
    at = 0
    while at < len(message):
        tag, at = grpc_health._varint(message, at)
        if not 0 < tag >> 3 < 1 << 29 or tag >> 32:
            return True
        size = {1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 in (0, 2):
            value, at = grpc_health._varint(message, at)
            if value >> 64 or (tag & 7 == 2 and value >> 31):
                return True
            size = value if tag & 7 == 2 else 0
        at += size
    return False


CHECKS = tuple(
    b"\0" + len(message).to_bytes(4) + message
    for message in (b"", b"\x0a\x01a", b"\x0a\x01a\x0a\x02\xc3\xa4\x10\x05", b"\x19" + bytes(8) + b"\x25" + bytes(4))
)


def trails_of(data: bytes) -> None:
    """A trail of any service is judged, and told on: of bounded size, and no header of another kind."""
    text = data.decode("latin-1")
    hops = trails.parse(text)
    assert len(hops) <= trails.MAX_ENTRIES
    assert all(hop.name.isprintable() and (hop.mark or "").isprintable() for hop in hops)
    assert all(hop.caller is None or hop.caller < number for number, hop in enumerate(hops))
    verdict = trails.judge(text, "v2", ("stock", "users"), ("*.internal",))
    assert verdict.to_data()["fine"] == verdict.fine
    assert verdict.fine == (not verdict.findings)
    own = trail.Trail("1", "cart", "v2")
    own.add("stock.test", text)
    own.add("other.test", None)
    made = own.text()
    assert len(made) <= trail.MAX_BYTES
    assert made.count(",") < trail.MAX_ENTRIES
    (first, *rest) = trails.parse(made)
    assert (first.name, first.mark, first.caller) == ("cart", "v2", None)
    assert all(hop.caller is not None for hop in rest)


TRAILS = (
    b"0;users;v2,1;stock;v2,2;!db.internal:80/x;-,1;cart;-",
    b"0;a%20b;-, 3;c;v1,1;;x,999;d;v2,1000;e;v,x;f;v",
)


def carried(data: bytes) -> None:
    """What an SDK has read off headers it writes so that the next one reads the same, and the engine the same mark."""
    lines = [each.partition(":") for each in data.decode("latin-1").split("\n")]
    found = context.extract([(name, value) for name, _, value in lines])
    assert found.mark is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}", found.mark)
    assert len(found.baggage or "") <= context.MAX_BAGGAGE
    written = context.lines(found)
    expected = found if found.traceparent is not None else replace(found, tracestate=None)
    assert context.extract(written) == expected
    headers: dict[str, str] = {"Baggage": "own=1"}
    sdk.inject(headers, found)
    assert context.extract(headers).mark == found.mark


CARRIED = (
    b"X-Service-Version:v2\ntraceparent:00-x\ntracestate:a=b\nbaggage:a=1,x-service-version=v1;p, b\nBaggage: c",
    b"baggage: x-service-version = %762 \nx-graylb-probe:1",
)


def answers(data: bytes) -> None:
    """Any two bodies are compared: each equals itself, both ways find the same, and a report stays small."""
    one, _, two = data.partition(b"\n\n")
    masks = (answer_diff.Mask.parse("$..id"), answer_diff.Mask.parse("$.a[*]..b.c"))
    settings = answer_diff.Settings(("content-type",), masks)
    pair = [answer_diff.answer(200, body[:40], body, len(body), b"", True) for body in (one, two)]
    for each in pair:
        assert answer_diff.compare(each, each, settings) == {}
    found = answer_diff.compare(*pair, settings)
    back = answer_diff.compare(*reversed(pair), settings)
    if len(found) < answer_diff.MAX_FOUND:
        assert {key: (b, a) for key, (a, b) in back.items()} == found or len({key.where for key in found}) < len(found)
    for difference, values in found.items():
        for text in (difference.where, *values):
            assert text.isprintable()
            assert len(text) <= 12 * answer_diff.MAX_SHOWN


PAIRS = (
    b'{"a":[{"id":1,"b":{"c":2}},null],"x":1.0}\n\n{"a":[{"id":2,"b":{"c":3}},false],"x":true,"\\u001b":1}',
    b"[" * 300 + b"1" + b"]" * 300 + b"\n\n" + b"[" * 300 + b"2" + b"]" * 300,
    b"\x1f\x8b\x08\x00\n\nplain",
)


def frames(data: bytes) -> None:
    """However they are cut, the same frames; after an error there are none."""
    whole, single = channel.Decoder(limit=1000), channel.Decoder(limit=1000)
    seen: list[channel.Frame] = []
    broken = False
    for at in range(len(data)):
        try:
            seen += single.feed(data[at : at + 1])
        except channel.ChannelError:
            broken = True
            break
    try:
        assert whole.feed(data) == seen
        assert not broken
    except channel.ChannelError:
        assert broken
    if broken:
        for decoder in (whole, single):
            with contextlib.suppress(channel.ChannelError):
                decoder.feed(b"")
                raise AssertionError("it goes on after an error")
    assert b"".join(channel.encode(*frame) for frame in seen) == data[: sum(5 + len(frame.payload) for frame in seen)]


FRAMES = (
    channel.encode("R", b'{"pid":1}') + channel.encode("P"),
    channel.encode("A", b"x" * 300) + b"\0\0\0\1",
    b"\0\0\0\0?",
)
