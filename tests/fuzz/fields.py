"""Laws of what is read off single fields of heads, and of what a log line tells of them: marks, deadlines, traces.

Oracles: the law of marks in Python, the texts of gRPC and W3C Trace Context as regular expressions, json and orjson.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import orjson

from graylb import _accesslog, _grpc, _http1, _mark, _trace
from graylb._fast import pack_address
from graylb.model import log_fields
from graylb.model.snapshot import Marks, Pem
from graylb.release import access_log
from graylb.release import marks as law

# ---- marks

SECRET = Pem.of("secret", "correct horse battery staple")
MARKS = (
    Marks(),
    Marks(trusted=("10.0.0.0/8", "2001:db8::/32"), key=SECRET, signature="x-service-version-signature"),
    Marks(headers=("x-lane", "x-service-version"), baggage="lane"),
    Marks(baggage=None),
)
ARRIVALS = (("edge", "10.1.2.3"), ("edge", "192.0.2.1"), ("edge", ""), ("inbound", "192.0.2.1"))
LATER, NOW = 4_000_000_000, 1_700_000_000
MEMBERS_FIT = 8000
"""Bytes of baggage; more members may be left behind."""
KEPT, TOO_MANY = 2, 16

Headers = list[tuple[str, str]]


def marks(data: bytes) -> None:
    """The mark and the headers that are seen are those that the law in Python finds, by each of several settings."""
    found = _http1.parse_request(data)
    if not isinstance(found, dict):
        return
    headers = [(name.decode(), value.decode("latin-1")) for name, value, _ in found["headers"]]
    few = sum(len(value) for name, value in headers if name.lower() == "baggage") < MEMBERS_FIT
    for settings in MARKS:
        for role, client_ip in ARRIVALS:
            bits, mark, seen = arriving(settings, role, client_ip, data)
            wanted, wanted_seen = law.arriving(settings, role, client_ip, headers, SECRET.text, NOW)
            assert bool(bits & KEPT) == (mark is not None)
            assert mark == wanted, (settings, role, client_ip)
            if few and not bits & TOO_MANY:
                assert told(seen) == told(wanted_seen), (settings, role, client_ip)
            if mark is not None and not bits & TOO_MANY:
                again = b"GET / HTTP/1.1\r\nhost: a\r\n" + b"".join(
                    f"{name}: {value}\r\n".encode("latin-1") for name, value in seen if name != "host"
                )
                assert arriving(settings, "inbound", "", again + b"\r\n")[1] == mark, "the next hop reads another mark"


def arriving(settings: Marks, role: str, client_ip: str, head: bytes) -> tuple[int, str | None, Headers]:
    address = pack_address(client_ip) if client_ip else b""
    files = {str(SECRET): SECRET.text.encode()}
    bits, mark, seen = _mark.arriving(asdict(settings), files, role, address, head)
    read = [(name.decode().lower(), value.decode("latin-1")) for name, value in seen]
    return bits, None if mark is None else mark.decode(), read


def told(headers: Headers) -> tuple[Headers, list[str]]:
    """(all but baggage, in order of their names, the members of baggage)."""
    members = [each.strip(" \t") for name, value in headers if name.lower() == "baggage" for each in value.split(",")]
    rest = sorted((name.lower(), value.strip(" \t")) for name, value in headers if name.lower() != "baggage")
    return rest, [each for each in members if each]


def marked() -> list[bytes]:
    fields = [
        "x-service-version: v2", "X-Service-Version: v1\r\nx-service-version: v2",
        "x-lane: gray\r\nx-service-version: v2", "baggage: a=1,x-service-version=v2;p=1,b=2",
        "baggage: lane=%762 , c", "x-service-version: v2\r\nbaggage: x-service-version=v2",
        f"x-service-version: v2\r\nx-service-version-signature: {law.sign('v2', SECRET.text, LATER)}",
        f"x-service-version: v2\r\nx-service-version-signature: {law.sign('v2', SECRET.text, 1)}",
        "x-service-version: " + "v" * 130 + "\r\nbaggage: x-service-version=" + "v" * 130,
        "baggage: a=" + "b" * 9000 + ",x-service-version=v2",
    ]  # fmt: skip
    return [f"GET / HTTP/1.1\r\nhost: a\r\n{each}\r\n\r\n".encode() for each in fields]


# ---- trace context


def parent(data: bytes) -> None:
    """A traceparent is read as the text of W3C Trace Context says."""
    assert _trace.parent_of(data) == by_the_text(data.decode("latin-1"))


def by_the_text(value: str) -> tuple[str, str, bool] | None:
    """Section 3.2.2, and 4.3 of later versions."""
    found = re.fullmatch(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", value, re.DOTALL)
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5] is not None):
        return None
    if set(found[2]) == {"0"} or set(found[3]) == {"0"}:
        return None
    return found[2], found[3], bool(int(found[4], 16) & 1)


PARENTS = (
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more",
    b"ff-00000000000000000000000000000000-0000000000000000-01",
)

# ---- gRPC

UNITS = {b"H": 3600, b"M": 60, b"S": 1, b"m": Fraction(1, 1000), b"u": Fraction(1, 10**6), b"n": Fraction(1, 10**9)}
TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
STATUS = re.compile(rb"[0-9]|1[0-6]")
HTTP = dict(enumerate((200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)))
SPENT = 1500


def microseconds(text: bytes) -> int | None:
    """By the grammar of "gRPC over HTTP2"; a part of one counts as one."""
    found = TIMEOUT.fullmatch(text)
    return None if found is None else -(-(int(found[1]) * Fraction(UNITS[found[2]]) * 10**6) // 1)


def grpc(data: bytes) -> None:
    """Deadlines and statuses: of a field, of trailers, of heads of requests and answers."""
    assert _grpc.timeout_us(data) == microseconds(data)
    lines = data.split(b"\n")
    trailers = b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    status = next((line[12:].lstrip(b" ") for line in lines if line.startswith(b"grpc-status:")), None)
    wanted = None if status is None else HTTP[int(status)] if STATUS.fullmatch(status) else 500
    assert _grpc.http_status_of(trailers) == wanted
    answer = _http1.parse_response(data)
    if isinstance(answer, dict):
        values = [value for name, value, _ in answer["headers"] if name.lower() == b"grpc-status"]
        odd = -1 if not values else -2
        assert _grpc.status_of(data) == (int(values[0]) if values and STATUS.fullmatch(values[0]) else odd)
    asked = _http1.parse_request(data)
    if isinstance(asked, dict) and asked["host"]:
        forwarded(data, [value for name, value, _ in asked["headers"] if name.lower() == b"grpc-timeout"])


def forwarded(data: bytes, values: list[bytes]) -> None:
    """The first deadline goes on, shorter by the time spent; where it is none, all go on as they came."""
    out = _http1.parse_request(_grpc.forwarded(data, SPENT), 256)
    assert isinstance(out, dict)
    sent = [value for name, value, _ in out["headers"] if name.lower() == b"grpc-timeout"]
    us = microseconds(values[0]) if values else None
    if us is not None:
        assert sent == [_grpc.timeout_text(us - SPENT)]
        found = microseconds(sent[0])
        assert found is not None
        assert found <= max(1, us - SPENT)
    else:
        assert all(value in values for value in sent)


CALLS = (
    b"100m", b"99999999H", b"00000000n",
    b"grpc-status: 14\r\ngrpc-message: x", b"a: b\ngrpc-status:5", b"grpc-status: 17",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\nGrpc-Status: 16\r\n\r\n",
    b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ngrpc-timeout: 2S\r\nGrpc-Timeout: 3S\r\n\r\n",
    b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ngrpc-timeout: soon\r\n\r\n",
)  # fmt: skip

# ---- the access log

NAMES = (
    "time",
    "client_ip",
    "method",
    "host",
    "path",
    "query",
    "target",
    "protocol",
    "http_x",
    "request_id",
    "trace_id",
)
JSON = _accesslog.Format(True, log_fields.json_parts(NAMES))
TEXT = _accesslog.Format(
    False, log_fields.split('$client_ip [$time_local] "$method $target $protocol" "$http_x" $host')
)
LONG = _accesslog.Format(False, log_fields.split("$target" * 64 + "$method$status" * 200))
LINE_MAX = 131072
READ = access_log.reader("json", access_log.Fields.of(()))


def log(data: bytes) -> None:
    """Whatever clients send, a line is one line: JSON that parsers read back, or printable ASCII."""
    said = _accesslog.escaped(data, True)
    assert orjson.loads(said) == json.loads(said) == data.decode("utf-8", "replace")
    plain = _accesslog.escaped(data, False)
    assert plain == b"".join(b"%c" % x if 0x20 <= x < 0x7F and x not in b'"\\' else b"\\x%02X" % x for x in data)
    for room in (8, 9 + len(data) % 40):
        part = _accesslog.escaped(data, True, room)
        assert len(part) <= room + 2
        assert data.decode("utf-8", "replace").startswith(orjson.loads(part).rstrip("�"))
    found = _http1.parse_request(data)
    if isinstance(found, dict):
        head(data, found)


def head(data: bytes, found: dict[str, Any]) -> None:
    record = orjson.loads(_accesslog.line_of(JSON, data, "192.0.2.1"))
    first: dict[bytes, bytes] = {}
    for name, value, _ in found["headers"]:
        first.setdefault(name.lower(), value)
    target = data.split(b" ")[1]
    query = found["query"]
    trace = first.get(b"traceparent", b"")
    wanted = {
        "time": b"1970-01-01T00:00:00.000000Z", "client_ip": b"192.0.2.1", "method": found["method"],
        "host": found["host"] or None, "path": found["path"], "query": query, "target": target,
        "protocol": b"HTTP/1.%d" % found["minor"], "http_x": first.get(b"x"), "request_id": first.get(b"x-request-id"),
        "trace_id": trace[3:35] if len(trace) >= 55 else None,
    }  # fmt: skip
    assert record == {name: value.decode("utf-8", "replace") for name, value in wanted.items() if value is not None}
    line = _accesslog.line_of(TEXT, data, "192.0.2.1")
    assert all(0x20 <= byte < 0x7F for byte in line)
    assert len(_accesslog.line_of(LONG, data)) <= LINE_MAX
    if (found["path"] + found["host"]).isascii() and (query or b"").isascii():
        # what `graylb replay` makes of the line; other proxies write the first "?" of a query, too
        again = READ(orjson.dumps(record)).head.split(b"\r\n")
        asked = b"" if not query else query if query.startswith(b"?") else b"?" + query
        assert again[0] == found["method"] + b" " + found["path"] + asked + b" HTTP/1.1"
        assert again[1] == b"host: " + (found["host"] or b"localhost")


LOGGED = (
    "ä€😀\"\\\n\x7f".encode() + b"\xe2\x82\xf4\x90\xed\xa0\x80" + b"a" * 17,
    b"GET /a?b=\"c\\ HTTP/1.1\r\nhost: a\r\nx: \xe4\t\"\r\nx-request-id: r\r\ntraceparent: " + PARENTS[0] + b"\r\n\r\n",
    b"GET /" + b'"' * 3000 + b" HTTP/1.0\r\n\r\n",
)  # fmt: skip
