"""Every way an exchange can fail: kind × source × may-it-be-retried, and the answer that follows from them.

The response status, the `x-graylb-error` reason and whether another instance may be asked all derive from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import orjson

Source = Literal["client", "graylb", "upstream"]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One failure. `retriable`: the request can have reached nobody, so another instance may be asked."""

    code: int
    reason: str  # machine-readable, stable: header x-graylb-error
    source: Source
    status: int
    text: str
    retriable: bool = False

    def response(self, *, json: bool, close: bool, head: bool = False) -> bytes:
        """The whole HTTP/1.1 message, body left out for HEAD."""
        if json:
            kind = "application/json"
            body = orjson.dumps({"error": self.reason, "status": self.status, "message": self.text}) + b"\n"
        else:
            kind, body = "text/plain; charset=utf-8", f"graylb: {self.text}\n".encode()
        lines = [
            f"HTTP/1.1 {self.status} {PHRASES[self.status]}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
            f"x-graylb-error: {self.reason}",
        ]
        if close:
            lines.append("connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)


PHRASES = {
    400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    413: "Content Too Large", 414: "URI Too Long", 417: "Expectation Failed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

KINDS: tuple[ErrorKind, ...] = (
    ErrorKind(0, "bad-request", "client", 400, "the request is not valid HTTP/1.1"),
    ErrorKind(1, "bad-host", "client", 400, "the Host header is missing, repeated or not a host"),
    ErrorKind(2, "bad-framing", "client", 400, "Content-Length and Transfer-Encoding do not frame one body"),
    ErrorKind(3, "bad-target", "client", 400, "the request target is not valid for this method"),
    ErrorKind(4, "connect-refused", "client", 405, "CONNECT is not served"),
    ErrorKind(5, "header-timeout", "client", 408, "the request head did not arrive in time"),
    ErrorKind(6, "body-timeout", "client", 408, "the request body stopped arriving"),
    ErrorKind(7, "uri-too-long", "client", 414, "the request target is too long"),
    ErrorKind(8, "bad-expectation", "client", 417, "only Expect: 100-continue is known"),
    ErrorKind(9, "head-too-large", "client", 431, "the request head is too large or has too many fields"),
    ErrorKind(10, "unknown-coding", "client", 501, "the only transfer coding served is chunked"),
    ErrorKind(11, "bad-version", "client", 505, "only HTTP/1.0 and HTTP/1.1 are served"),
    ErrorKind(12, "no-route", "graylb", 404, "no route matches this host and path"),
    ErrorKind(13, "no-instance", "graylb", 503, "no instance of the wanted version is available", True),
    ErrorKind(14, "overloaded", "graylb", 503, "out of connections or memory", True),
    ErrorKind(15, "connect-failed", "upstream", 502, "the instance could not be reached", True),
    ErrorKind(16, "connect-timeout", "upstream", 504, "the instance did not accept the connection in time", True),
    ErrorKind(17, "upstream-reset", "upstream", 502, "the instance closed the connection before it answered"),
    ErrorKind(18, "upstream-invalid", "upstream", 502, "the instance did not answer with valid HTTP/1.1"),
    ErrorKind(19, "response-timeout", "upstream", 504, "the instance did not answer in time"),
    ErrorKind(20, "bad-proxy-header", "client", 400, "the connection does not begin with a PROXY header"),
)
BY_REASON = {kind.reason: kind for kind in KINDS}
