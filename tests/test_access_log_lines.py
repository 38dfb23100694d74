"""Lines of the access log: escaping by the oracles json and orjson, heads, and the fields that the model knows."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _accesslog
from graylb.model import log_fields
from graylb.release import access_log

WORDS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([b'"', b"\\", b"\0", b"\x7f", b"\xe2\x82", b"\xf4\x90", b"a" * 17, "ä€😀".encode()])).map(
        b"".join
    ),
)


@given(WORDS)
def test_json_is_what_a_parser_reads_back(value: bytes) -> None:
    line = _accesslog.escaped(value, True)
    expected = value.decode("utf-8", "replace")
    assert orjson.loads(line) == json.loads(line) == expected
    assert b"\n" not in line


@given(WORDS, st.integers(8, 120))
def test_what_is_too_long_is_cut_off_and_still_json(value: bytes, room: int) -> None:
    line = _accesslog.escaped(value, True, room)
    assert len(line) <= room + 2
    found = orjson.loads(line)
    whole = value.decode("utf-8", "replace")
    # the cut may fall into a character
    assert whole.startswith(found.rstrip("�"))
    assert len(found) <= len(whole)


@given(WORDS)
def test_text_is_escaped_as_nginx_does_it(value: bytes) -> None:
    plain = "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02X}" for byte in value)
    assert _accesslog.escaped(value, False) == plain.encode()
    assert access_log._unescaped(plain).encode("utf-8", "surrogateescape") == value


def line_of(names: tuple[str, ...], head: bytes, **more: Any) -> dict[str, Any]:
    made = _accesslog.Format(True, log_fields.json_parts(names))
    found: dict[str, Any] = orjson.loads(_accesslog.line_of(made, head, **more))
    return found


NAMES = ("time", "client_ip", "client_port", "method", "host", "path", "query", "target", "protocol", "http_x_tenant",
         "http_user_agent", "request_id", "trace_id")  # fmt: skip


def test_a_head_is_told() -> None:
    head = (
        b'PUT /a/b?c=d&e HTTP/1.1\r\nHost: example.org:8080\r\nUser-Agent: x "y"\r\nX-Tenant: t\xe4\r\n'
        b"x-request-id: r-1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
    )
    assert line_of(NAMES, head, address="10.1.2.3", wall_us=951_827_696_000_042, port=99) == {
        "time": "2000-02-29T12:34:56.000042Z",
        "client_ip": "10.1.2.3",
        "client_port": 99,
        "method": "PUT",
        "host": "example.org:8080",
        "path": "/a/b",
        "query": "c=d&e",
        "target": "/a/b?c=d&e",
        "protocol": "HTTP/1.1",
        "http_x_tenant": "t�",
        "http_user_agent": 'x "y"',
        "request_id": "r-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


@given(
    st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 20).flatmap(lambda k: st.integers(0, min(10**k, 2**64 - 1))))
)
def test_numbers_are_told_as_they_are(n: int) -> None:
    assert _accesslog.number(n) == str(n).encode()
    assert _accesslog.seconds(n) == f"{n // 10**6}.{n % 10**6:06}".encode()


def test_every_number_of_few_digits_is_told_as_it_is() -> None:
    assert [_accesslog.number(n) for n in range(20_000)] == [b"%d" % n for n in range(20_000)]


@given(st.integers(0, 4_102_444_800_000_000))
def test_times_are_those_of_the_calendar(us: int) -> None:
    made = _accesslog.Format(False, log_fields.split("$time [$time_local]"))
    when = datetime.fromtimestamp(us // 10**6, UTC)
    line = _accesslog.line_of(made, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", wall_us=us).decode()
    assert line == f"{when:%Y-%m-%dT%H:%M:%S}.{us % 10**6:06}Z [{when:%d/%b/%Y:%H:%M:%S +0000}]"


HEADER = st.sampled_from([
    "User-Agent", "user-agent", "USER-AGENT", "user-agenT", "user-agents", "x-request-id", "X-Request-ID",
    "x-request-ie", "Referer", "refferer", "x" * 70, "X" * 70, "x" * 69 + "y", "traceparent", "trace-paren",
    "~-tenant", "x-tenant",
])  # fmt: skip
VALUES = st.one_of(
    st.text('ab"\\~ é', max_size=40).map(str.strip),
    st.sampled_from(["", "v" * 31, "v" * 32, "v" * 33 + '"', "00-" + "a" * 60]),
)


@given(st.lists(st.tuples(HEADER, VALUES), max_size=12))
def test_headers_are_found_as_a_plain_search_finds_them(headers: list[tuple[str, str]]) -> None:
    of = {"http_user_agent": "user-agent", "http_referer": "referer", "request_id": "x-request-id"}
    of |= {"http_x_tenant": "x-tenant", "http_" + "x" * 70: "x" * 70, "trace_id": "traceparent"}
    head = "GET / HTTP/1.1\r\nhost: a\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    first: dict[str, str] = {}
    for name, value in headers:
        first.setdefault(name.lower(), value)
    wanted = {field: first.get(name) for field, name in of.items()}
    trace = (wanted["trace_id"] or "").encode()
    wanted["trace_id"] = trace[3:35].decode("utf-8", "replace") if len(trace) >= 55 else None
    names = (*of, "http_x_tenant")
    assert line_of(names, head.encode()) == {name: value for name, value in wanted.items() if value is not None}


def test_what_has_no_value_is_left_out_of_json_and_a_dash_in_a_text() -> None:
    head = b"GET / HTTP/1.0\r\n\r\n"
    assert line_of(NAMES, head) == {
        "time": "1970-01-01T00:00:00.000000Z",
        "method": "GET",
        "path": "/",
        "target": "/",
        "protocol": "HTTP/1.0",
    }
    made = _accesslog.Format(False, log_fields.split("$time_local [$host] $method$query"))
    assert _accesslog.line_of(made, head) == b"01/Jan/1970:00:00:00 +0000 [-] GET-"


def test_a_format_of_many_pieces_does_not_write_beyond_its_room() -> None:
    """The length before each piece was written where no piece had room any more."""
    made = _accesslog.Format(False, log_fields.split("$target" * 4 + "$method$status" * 280))
    head = b"GET /" + b'"' * 60_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n"
    assert 120_000 < len(_accesslog.line_of(made, head)) <= 131_072


def test_a_format_is_read() -> None:
    assert log_fields.split("$method ${path}x $$5 $http_x_id") == (
        ("", "method"), (" ", "path"), ("x $5 ", "http_x_id"), ("", ""),
    )  # fmt: skip
    for wrong in ("$nothing", "100 $", "${}", "$http_"):
        with pytest.raises(log_fields.UnknownField):
            log_fields.split(wrong)
    with pytest.raises(log_fields.UnknownField, match='did you mean "status"'):
        log_fields.check("staus")


def test_worker_and_model_know_the_same_fields() -> None:
    plain = {name for name in log_fields.FIELDS if not name.startswith("http_")}
    assert plain == set(_accesslog.FIELDS) - {""}
    with pytest.raises(ValueError, match="unknown field 'nothing'"):
        _accesslog.Format(True, [("", "nothing")])
    assert re.findall(r"\$(\w+)", log_fields.COMBINED)


def test_the_page_lists_every_field() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "observability.md").read_text()
    for name, description in log_fields.FIELDS.items():
        star = "" if name in log_fields.DEFAULT else " *"
        assert f"| `{name}`{star} | {description} |" in page, name
