"""Every way an exchange can fail: kind × source × may-it-be-retried, and the answer that follows from them.

The response status, HTTP's and gRPC's, the `x-graylb-error` reason and whether another instance may be asked all derive
from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

import orjson

Source = Literal["client", "graylb", "upstream"]
GRPC: Final = {
    4: "DEADLINE_EXCEEDED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION", 12: "UNIMPLEMENTED", 13: "INTERNAL",
    14: "UNAVAILABLE",
}  # fmt: skip
"""The codes that graylb itself answers gRPC requests with."""
SHOWN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""Characters of a grpc-message that stand for themselves."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One failure. `retriable`: the request can have reached nobody, so another instance may be asked."""

    code: int
    reason: str  # machine-readable, stable: header x-graylb-error
    source: Source
    status: int
    grpc: int  # of GRPC
    text: str
    retriable: bool = False
    retry_after: int = 0  # seconds, told with the answer; 0: nothing is, or what is known when it is refused

    def response(self, *, json: bool, close: bool, head: bool = False) -> bytes:
        """The whole HTTP/1.1 message, body left out for HEAD."""
        if json:
            kind = "application/json"
            body = orjson.dumps({"error": self.reason, "status": self.status, "message": self.text}) + b"\n"
        else:
            kind, body = "text/plain; charset=utf-8", f"graylb: {self.text}\n".encode()
        lines = [
            f"HTTP/1.1 {self.status} {PHRASES.get(self.status, 'Error')}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
            f"x-graylb-error: {self.reason}",
        ]
        if self.retry_after:
            lines.append(f"retry-after: {self.retry_after}")
        if close:
            lines.append("connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)

    def grpc_response(self) -> bytes:
        """The answer to a gRPC request as the head of an HTTP/1.1 message: all of it, for HTTP/2 has it end the stream.

        "Trailers-Only" of the gRPC protocol over HTTP/2, whose messages are UTF-8 in percent-encoding.
        """
        lines = [
            "HTTP/1.1 200 OK",
            "content-type: application/grpc",
            f"grpc-status: {self.grpc}",
            f"grpc-message: {quote('graylb: ' + self.text, safe=SHOWN)}",
            f"x-graylb-error: {self.reason}",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def grpc_trailers(self) -> bytes:
        """The end of a gRPC answer that has begun, as trailers."""
        return self.grpc_response().partition(b"\r\n")[2].partition(b"\r\n")[2]


PHRASES = {
    400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    413: "Content Too Large", 414: "URI Too Long", 417: "Expectation Failed",
    421: "Misdirected Request", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

KINDS: tuple[ErrorKind, ...] = (
    ErrorKind(0, "bad-request", "client", 400, 13, "the request is not valid HTTP/1.1"),
    ErrorKind(1, "bad-host", "client", 400, 13, "the Host header is missing, repeated or not a host"),
    ErrorKind(2, "bad-framing", "client", 400, 13, "Content-Length and Transfer-Encoding do not frame one body"),
    ErrorKind(3, "bad-target", "client", 400, 13, "the request target is not valid for this method"),
    ErrorKind(4, "connect-refused", "client", 405, 12, "CONNECT is not served"),
    ErrorKind(5, "header-timeout", "client", 408, 13, "the request head did not arrive in time"),
    ErrorKind(6, "body-timeout", "client", 408, 4, "the request body stopped arriving"),
    ErrorKind(7, "uri-too-long", "client", 414, 8, "the request target is too long"),
    ErrorKind(8, "bad-expectation", "client", 417, 13, "only Expect: 100-continue is known"),
    ErrorKind(9, "head-too-large", "client", 431, 8, "the request head is too large or has too many fields"),
    ErrorKind(10, "unknown-coding", "client", 501, 12, "the only transfer coding served is chunked"),
    ErrorKind(11, "bad-version", "client", 505, 13, "this version of HTTP is not served here"),
    ErrorKind(12, "no-route", "graylb", 404, 12, "no route matches this host and path"),
    ErrorKind(13, "no-instance", "graylb", 503, 14, "no instance of the wanted version is available", True),
    ErrorKind(14, "overloaded", "graylb", 503, 8, "out of connections or memory", True),
    ErrorKind(15, "connect-failed", "upstream", 502, 14, "the instance could not be reached", True),
    ErrorKind(16, "connect-timeout", "upstream", 504, 14, "the instance did not accept the connection in time", True),
    ErrorKind(17, "upstream-reset", "upstream", 502, 14, "the instance closed the connection before it answered"),
    ErrorKind(18, "upstream-invalid", "upstream", 502, 13, "the instance did not answer with valid HTTP/1.1"),
    ErrorKind(19, "response-timeout", "upstream", 504, 4, "the instance did not answer in time"),
    ErrorKind(20, "bad-proxy-header", "client", 400, 13, "the connection does not begin with a PROXY header"),
    ErrorKind(21, "deadline-exceeded", "client", 504, 4, "the deadline of the call has passed"),
    ErrorKind(22, "misdirected", "client", 421, 9, "this host is to be asked over a TLS connection of its own"),
    ErrorKind(23, "upstream-tls", "upstream", 502, 14, "the TLS handshake with the instance failed", True),
    ErrorKind(24, "rate-limited", "graylb", 429, 8, "too many requests: a rate limit is reached"),
    ErrorKind(
        25, "circuit-open", "graylb", 503, 8, "too many requests are under way: a limit is reached", retry_after=1
    ),
    ErrorKind(26, "shedding", "graylb", 503, 8, "the proxy has more to do than it can", retry_after=1),
    ErrorKind(27, "injected-fault", "graylb", 503, 14, "a fault was injected on purpose"),
    ErrorKind(28, "try-timeout", "upstream", 504, 4, "the instance did not answer this attempt in time"),
    ErrorKind(29, "request-timeout", "graylb", 504, 4, "the request was not answered in the time it has"),
    ErrorKind(30, "stuck", "graylb", 503, 14, "the worker was stuck"),
)
BY_REASON = {kind.reason: kind for kind in KINDS}
