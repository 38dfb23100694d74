"""Other parsers' reading of the same bytes: llhttp (through httptools) and h11, each as a `Reading`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

Headers = list[tuple[bytes, bytes]]
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
"""Methods that llhttp knows, and so the proxy serves; the scanner takes any token."""


@dataclass
class Reading:
    """A message as another parser sees it. Header names in lower case, as h11 gives them."""

    method: bytes = b""
    target: bytes = b""
    status: int = 0
    version: str = ""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    heads: int = 0
    ended: bool = False


class _Llhttp:
    """Callbacks of httptools; the pieces of one header are joined."""

    def __init__(self) -> None:
        self.reading = Reading()

    def on_url(self, piece: bytes) -> None:
        self.reading.target += piece

    def on_header(self, name: bytes, value: bytes | None) -> None:
        # llhttp keeps white space behind a value
        self.reading.headers.append((name.lower(), (value or b"").rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.reading.heads += 1

    def on_body(self, piece: bytes) -> None:
        self.reading.body += piece

    def on_message_complete(self) -> None:
        self.reading.ended = True


def llhttp(data: bytes, *, response: bool = False) -> Reading | None:
    """None: refused."""
    seen = _Llhttp()
    parser: Any = httptools.HttpResponseParser(seen) if response else httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # it leaves what follows to another protocol; the message itself is good
    except httptools.HttpParserError:
        return None
    reading = seen.reading
    reading.version = parser.get_http_version()
    if response:
        reading.status = parser.get_status_code()
    else:
        reading.method = parser.get_method()
    return reading


def plain(headers: Headers) -> Headers:
    """Names in lower case, and the coding's name too, as h11 gives both."""
    lowered = [(name.lower(), value) for name, value in headers]
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in lowered]


def h11_request(data: bytes) -> Reading | None:
    return _h11(h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), data)


def h11_response(data: bytes, method: str = "GET") -> Reading | None:
    """The final answer; interim ones before it are read past."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    return _h11(connection, data)


def _h11(connection: h11.Connection, data: bytes) -> Reading | None:
    reading = Reading()
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                reading.method, reading.target = event.method, event.target
                _head(reading, event)
            elif isinstance(event, h11.Response):
                reading.status = event.status_code
                _head(reading, event)
            elif isinstance(event, h11.Data):
                reading.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                reading.ended = True
                return reading
            elif event in (h11.NEED_DATA, h11.PAUSED):
                return reading
    except h11.RemoteProtocolError:
        return None


def _head(reading: Reading, event: h11.Request | h11.Response) -> None:
    reading.heads += 1
    reading.version = event.http_version.decode()
    reading.headers = list(event.headers)
