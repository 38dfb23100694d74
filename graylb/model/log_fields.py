"""What a line of the access log can tell, and the formats that are made of it."""

from __future__ import annotations

import re
from typing import Final

from graylb.model.values import near

FIELDS: Final[dict[str, str]] = {
    "time": "when the request's head was complete: RFC 3339, UTC, microseconds",
    "client_ip": "the client's address, as the socket or a PROXY header says",
    "listener": "name of the listener",
    "scheme": "`http` or `https`",
    "method": "",
    "host": "the authority that routes",
    "path": "as received, without the query",
    "query": "behind the `?`",
    "protocol": "`HTTP/1.0`, `HTTP/1.1` or `HTTP/2`, of the client",
    "http_user_agent": "",
    "http_referer": "",
    "request_id": "`x-request-id`, the client's or the one that graylb made",
    "trace_id": "of `traceparent`, the client's or the one that graylb made",
    "service": "",
    "route": "name of the route",
    "version": "of the instance",
    "rule": "name of the rule that held",
    "slot": "of the sticky key, 0 to 9999",
    "draw": "the split's draw, of requests without a sticky key",
    "fallback": "the version that was wanted and had no instance; `subset` where the wish names no version",
    "instance": "address of the instance",
    "revision": "of the configuration",
    "attempts": "connections to instances that the request was sent on, or was to be",
    "status": "sent to the client; 499: it went away before an answer began",
    "grpc_status": "of a call of gRPC that was answered: 0 to 16",
    "error": "reason of an error of graylb's own, as in `x-graylb-error`",
    "aborted": "`client` or `instance`: who ended it before its time",
    "bytes_in": "of the request's body",
    "bytes_out": "of the answer's body",
    "duration": "seconds, from the head of the request to the end of the answer",
    "first_byte": "seconds, to the head of the answer",
    "connect": "seconds that a new connection to the instance took",
    # not among the default ones
    "time_local": "as nginx and Apache write it, in UTC",
    "client_port": "",
    "target": "path and query, as received",
    "tls": "`true` over TLS, else `false`",
    "upstream_protocol": "`HTTP/1.1` or `HTTP/2`, of the instance",
    "error_source": "`graylb` or `upstream`: whose fault the error is",
    "span_id": "of graylb's own span, with `tracing`",
    "worker": "number of the worker",
}
"""Name -> description."""
DEFAULT: Final = tuple(FIELDS)[: tuple(FIELDS).index("connect") + 1]
COMBINED: Final = (
    '$client_ip - - [$time_local] "$method $target $protocol" $status $bytes_out "$http_referer" "$http_user_agent"'
)
"""`combined` of nginx and Apache; graylb knows no user."""

Parts = tuple[tuple[str, str], ...]
"""(literal text, field behind it); the last field may be empty."""

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z0-9_]*)\}|([A-Za-z0-9_]+)|(\$))?")
_HEADER = re.compile(r"http_[a-z0-9_]{1,100}")


class UnknownField(ValueError):
    """The message says which, and what is known."""

    def __init__(self, name: str) -> None:
        meant = near(name, [*FIELDS])
        hint = f'; did you mean "{meant}"?' if meant else ""
        super().__init__(f"there is no field {name!r}{hint}")
        self.suggestion = meant


def check(name: str) -> str:
    """A field's name, also `http_NAME` of a request header. Raises UnknownField."""
    if name not in FIELDS and not _HEADER.fullmatch(name):
        raise UnknownField(name)
    return name


def split(text: str) -> Parts:
    """A format such as `$method $path -> ${status}`; `$$` is a dollar. Raises UnknownField, also for a lone dollar."""
    parts: list[tuple[str, str]] = []
    literal = ""
    at = 0
    for found in _VARIABLE.finditer(text):
        literal += text[at : found.start()]
        at = found.end()
        if found[3]:
            literal += "$"
            continue
        parts.append((literal, check(found[1] or found[2] or "")))
        literal = ""
    return (*parts, (literal + text[at:], ""))


def json_parts(names: tuple[str, ...]) -> Parts:
    """Of a JSON object with these keys; one that has no value is left out."""
    return tuple((f',"{name}":', name) for name in names)
