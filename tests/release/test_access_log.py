"""Lines of logs as the heads of their requests."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.release.access_log import NO_ADDRESS, BadLine, Fields, Format, Logged, detect, reader


def read(kind: Format, line: Any, *fields: str, host: str = "localhost") -> Logged:
    raw = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    return reader(kind, Fields.of(fields, host))(raw)


def lines(logged: Logged) -> list[str]:
    """The head without the empty line at its end."""
    text = logged.head.decode("utf-8", "surrogateescape")
    assert text.endswith("\r\n\r\n")
    return text[:-4].split("\r\n")


OURS = {
    "method": "POST",
    "host": "example.com",
    "path": "/users",
    "query": "a=1&b",
    "headers": {"user-group": "beta", "cookie": ["a=1", "b=2"]},
    "client_ip": "192.0.2.7",
    "status": 200,
}


def test_our_own_log() -> None:
    found = read("json", OURS)
    assert lines(found) == [
        "POST /users?a=1&b HTTP/1.1", "host: example.com", "user-group: beta", "cookie: a=1", "cookie: b=2",
    ]  # fmt: skip
    assert (found.client_ip, found.listener) == ("192.0.2.7", None)
    assert read("json", OURS | {"listener": "inner"}).listener == "inner"


@pytest.mark.parametrize(
    ("record", "head"),
    [
        ({"path": "/"}, ["GET / HTTP/1.1", "host: localhost"]),
        ({"path": "/?x=1", "query": "y=2"}, ["GET /?x=1 HTTP/1.1", "host: localhost"]),
        ({"path": "/", "headers": {"Host": "a", ":path": "/"}}, ["GET / HTTP/1.1", "Host: a"]),
        ({"path": "/", "host": "b", "headers": {"Host": "a", "n": 5}}, ["GET / HTTP/1.1", "host: b", "n: 5"]),
        # nginx's variables
        (
            {"request_method": "PUT", "request_uri": "/x?y", "http_host": "n", "http_x_user_id": "ann", "http_y": "-"},
            ["PUT /x?y HTTP/1.1", "host: n", "x-user-id: ann"],
        ),
        # Envoy, and Caddy's nested request
        ({"method": "GET", "path": "/e", "authority": "e:80"}, ["GET /e HTTP/1.1", "host: e:80"]),
        (
            {"request": {"method": "GET", "uri": "/c", "host": "c", "headers": {"User-Agent": ["x"]}}},
            ["GET /c HTTP/1.1", "host: c", "User-Agent: x"],
        ),
    ],
)  # fmt: skip
def test_other_logs_in_json(record: dict[str, Any], head: list[str]) -> None:
    assert lines(read("json", record)) == head


def test_fields_may_be_named() -> None:
    record = {
        "verb": "GET",
        "req": {"url": "/x", "who": "ann", "a.b": "dotted"},
        "path": "/not",
        "ip": "::ffff:10.0.0.1",
    }
    found = read(
        "json", record, "method=verb", "path=req.url", "header.X-User-Id=req.who", "header.d=req.a.b", "client_ip=ip"
    )
    assert lines(found) == ["GET /x HTTP/1.1", "x-user-id: ann", "d: dotted", "host: localhost"]
    assert found.client_ip == "10.0.0.1"
    for bad in ("verb", "what=x", "header.=x", "method="):
        with pytest.raises(ValueError, match="expected NAME=FIELD"):
            Fields.of([bad])


def test_records_of_several_shapes_in_one_log() -> None:
    one = reader("json", Fields.of(()))
    for record, first in [
        ({"uri": "/a", "path": None}, "GET /a HTTP/1.1"),
        ({"uri": "/a", "path": "/b"}, "GET /b HTTP/1.1"),
        ({"path": "/b", "method": "PUT"}, "PUT /b HTTP/1.1"),
        ({"uri": "/a", "path": None}, "GET /a HTTP/1.1"),
    ]:
        assert lines(one(json.dumps(record).encode()))[0] == first


COMBINED = r'10.0.0.9 - ann [10/Oct/2025:13:55:36 -0700] "GET /x?y=\x22z HTTP/1.1" 200 23 "-" "Moz \"illa\""'


def test_the_combined_format() -> None:
    found = read("combined", COMBINED)
    assert lines(found) == ['GET /x?y="z HTTP/1.1', "host: localhost", 'user-agent: Moz "illa"']
    assert found.client_ip == "10.0.0.9"
    assert lines(read("combined", COMBINED, host="shop"))[1] == "host: shop"
    vhost = read("combined", "shop.test:443 " + COMBINED)
    assert (lines(vhost)[1], vhost.client_ip) == ("host: shop.test", "10.0.0.9")
    assert read("combined", COMBINED.replace("10.0.0.9", "2001:DB8::1")).client_ip == "2001:db8::1"
    common = COMBINED[: COMBINED.index(' "-"')]
    assert lines(read("combined", common)) == ['GET /x?y="z HTTP/1.1', "host: localhost"]


def test_texts_behind_the_combined_format() -> None:
    line = COMBINED + r' "u-1" "shop" 0.003 "-" "\xc3\xa4"'
    found = read(
        "combined",
        line,
        "header.x-user-id=extra1",
        "host=extra2",
        "header.none=extra3",
        "header.u=extra4",
        "header.w=user",
    )
    assert lines(found)[1:] == ["host: shop", 'user-agent: Moz "illa"', "x-user-id: u-1", "u: ä", "w: ann"]
    assert "extra9" not in str(read("combined", line, "header.x=extra9"))


@pytest.mark.parametrize(
    ("kind", "line", "why"),
    [
        ("json", "{", "not JSON"),
        ("json", "[1]", "not a JSON object"),
        ("json", {"method": "GET"}, "no path"),
        ("json", {"path": "/", "client_ip": "somewhere"}, "not an IP address"),
        ("json", {"path": "/", "headers": {"a": "x\r\nuser-group: beta"}}, "line break"),
        ("json", {"path": "/ HTTP/1.1\r\nx: y"}, "line break"),
        ("combined", "what", "not a line of the combined format"),
        ("combined", COMBINED.replace("GET /x?y=\\x22z HTTP/1.1", "-"), "METHOD PATH"),
        ("combined", COMBINED.replace("GET /x?y=\\x22z HTTP/1.1", "\\x16\\x03\\x01"), "METHOD PATH"),
        ("combined", COMBINED.replace("Moz", "\\x0d\\x0ax: y"), "line break"),
    ],
)
def test_lines_that_are_no_request(kind: Format, line: Any, why: str) -> None:
    with pytest.raises(BadLine, match=why):
        read(kind, line)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("-", NO_ADDRESS),
        ("", NO_ADDRESS),
        ("unix:", NO_ADDRESS),
        ("1.2.3.4:567", "1.2.3.4"),
        ("[::1]:80", "::1"),
        ("::1", "::1"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert read("json", {"path": "/", "client_ip": text}).client_ip == address


def test_the_format_is_told_by_a_line() -> None:
    assert detect(b' {"path":') == "json"
    assert detect(COMBINED.encode()) == "combined"


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.sampled_from(["json", "combined"]))
def test_no_line_is_more_than_a_bad_one(line: bytes, kind: Format) -> None:
    for text in (
        line,
        b'{"path": "/", "x": ' + line + b"}",
        COMBINED.encode().replace(b"ann", line).replace(b"z", line),
    ):
        with contextlib.suppress(BadLine):
            assert reader(kind, Fields.of(()))(text).head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("value", [b"[" * 1000 + b'"/"' + b"]" * 1000, b'{"a":' * 1000 + b"1" + b"}" * 1000])
def test_values_nest_as_deep_as_they_like(value: bytes) -> None:
    for line in (b'{"path":' + value + b"}", b'{"path":"/","headers":{"x":' + value + b"}}"):
        with contextlib.suppress(BadLine):
            assert read("json", line).head.startswith(b"GET / HTTP/1.1\r\n")


def test_a_line_of_many_brackets_is_read_in_one_go() -> None:
    """Each of them was taken for the one before the time: a minute for a line of this length."""
    with pytest.raises(BadLine, match="not a line of the combined format"):
        read("combined", b"192.0.2.7 - ann" + b" [" * 50_000)
