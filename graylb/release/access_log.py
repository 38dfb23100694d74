"""Access logs, line by line: JSON (ours, nginx's, Envoy's, Caddy's …) and the combined format of nginx and Apache.

A line becomes the head of its request, as a client would have sent it over HTTP/1.1, with what the log tells of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import orjson

Format = Literal["json", "combined"]

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "method": ("method", "request_method", "RequestMethod"),
    "host": ("host", "authority", "http_host", "RequestHost"),
    "path": ("path", "uri", "request_uri", "RequestPath", "target"),
    "query": ("query", "query_string", "args"),
    "client_ip": ("client_ip", "remote_addr", "remote_ip", "client", "ClientHost"),
    "listener": ("listener",),
    "headers": ("headers", "request_headers"),
}
"""What a request is made of -> where JSON logs have it, the first that is there."""

NO_ADDRESS: Final = ""
"""The client of a line that names none, as one of a Unix socket has none."""


class BadLine(ValueError):
    """The line is no request. The message says why, without the line."""


class Logged(NamedTuple):
    """`client_ip` is canonical, NO_ADDRESS when the line has none."""

    head: bytes
    client_ip: str
    listener: str | None


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the log has what. names: as FIELDS; headers: request header -> field. Dots lead into nested objects.

    Fields of the combined format: vhost, client_ip, user, time, request, status, bytes, referer, user_agent; extra1,
    extra2 … for quoted texts behind these. host: for lines that have none.
    """

    names: Mapping[str, tuple[str, ...]]
    headers: tuple[tuple[str, str], ...] = ()
    host: str = "localhost"

    @classmethod
    def of(cls, given: Iterable[str], host: str = "localhost") -> Fields:
        """From texts such as `method=verb` and `header.x-user-id=user`. Raises ValueError."""
        names = dict(FIELDS)
        headers: list[tuple[str, str]] = []
        for text in given:
            name, equals, field = text.partition("=")
            header = name.removeprefix("header.")
            if not equals or not field or (name not in FIELDS and (header == name or not header)):
                known = ", ".join(FIELDS)
                raise ValueError(f"{text!r}: expected NAME=FIELD with one of {known}, or header.NAME=FIELD")
            if header != name:
                headers.append((header.lower(), field))
            else:
                names[name] = (field,)
        return cls(names, tuple(headers), host)


def detect(line: bytes) -> Format:
    """By the first line that is not blank."""
    return "json" if line.lstrip()[:1] == b"{" else "combined"


def reader(kind: Format, fields: Fields) -> Callable[[bytes], Logged]:
    """Line -> request. The function raises BadLine."""
    return _Json(fields) if kind == "json" else _Combined(fields)


# ---- JSON ------------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Which names the records of one set of keys have; None for what they have not."""

    method: str | None
    host: str | None
    path: str | None
    query: str | None
    client_ip: str | None
    listener: str | None
    headers: str | None
    variables: tuple[tuple[str, str], ...]  # nginx's `http_user_agent` and the like, as (header, key)


class _Json:
    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        # dots may lead into objects that one record has and another has not
        self.dotted = any("." in name for names in fields.names.values() for name in names)
        self.layouts: dict[tuple[str, ...], _Layout] = {}

    def __call__(self, line: bytes) -> Logged:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise BadLine("not JSON") from None
        if not isinstance(record, dict):
            raise BadLine("not a JSON object")
        nested = record.get("request")
        if isinstance(nested, dict):
            record = {**record, **nested}
        if self.dotted:
            self._flatten(record)
        # a null hides a name that the next record may have
        layout = None if None in record.values() else self.layouts.get(tuple(record))
        layout = layout or self._layout(record)
        path = _text(record[layout.path]) if layout.path else ""
        if not path:
            raise BadLine(f"no path (looked for {', '.join(self.fields.names['path'])})")
        if layout.query and "?" not in path and (query := _text(record[layout.query])):
            path += query if query[0] == "?" else "?" + query
        method = _text(record[layout.method]) if layout.method else ""
        host = _text(record[layout.host]) if layout.host else ""
        lines = [f"{method or 'GET'} {path} HTTP/1.1"]
        if host:
            lines.append("host: " + host)
        self._add_headers(record, layout, lines, bool(host))
        address = _text(record[layout.client_ip]) if layout.client_ip else ""
        listener = record[layout.listener] if layout.listener else None
        return Logged(_head(lines), _address(address), listener if isinstance(listener, str) else None)

    def _flatten(self, record: dict[str, Any]) -> None:
        """Makes dotted names keys of the record."""
        for names in self.fields.names.values():
            for name in names:
                if "." in name and (value := _lookup(record, name)) is not None:
                    record[name] = value

    def _layout(self, record: dict[str, Any]) -> _Layout:
        found = {
            field: next((name for name in names if record.get(name) is not None), None)
            for field, names in self.fields.names.items()
        }
        keys = (key for key in record if key.startswith("http_") and key != found["host"])
        variables = tuple((key[5:].replace("_", "-"), key) for key in keys) if found["headers"] is None else ()
        layout = _Layout(**found, variables=variables)
        if None not in record.values() and len(self.layouts) < 1000:
            self.layouts[tuple(record)] = layout
        return layout

    def _add_headers(self, record: dict[str, Any], layout: _Layout, lines: list[str], has_host: bool) -> None:
        headers = record[layout.headers] if layout.headers else None
        if isinstance(headers, dict):
            for name, value in headers.items():
                if name[:1] == ":" or (len(name) == 4 and name.lower() == "host" and has_host):
                    continue
                if isinstance(value, str):
                    lines.append(f"{name}: {value}")
                else:
                    lines += [f"{name}: {_text(each)}" for each in (value if isinstance(value, list) else (value,))]
                has_host = has_host or name.lower() == "host"
        for name, key in layout.variables:
            value = _text(record[key])
            if value and value != "-" and not (name == "host" and has_host):
                lines.append(f"{name}: {value}")
                has_host = has_host or name == "host"
        for header, field in self.fields.headers:
            value = _text(_lookup(record, field))
            if value and value != "-":
                lines.append(f"{header}: {value}")
        if not has_host:
            lines.append("host: " + self.fields.host)


def _lookup(record: dict[str, Any], name: str) -> Any:
    """By the whole name, else along its dots."""
    if name in record:
        return record[name]
    value: Any = record
    rest = name
    while rest and isinstance(value, dict):
        if rest in value:
            return value[rest]
        part, _, rest = rest.partition(".")
        value = value.get(part)
    return value if not rest else None


def _text(value: Any) -> str:
    while isinstance(value, list):  # nested as deep as whoever wrote the line likes
        value = value[0] if value else None
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# ---- combined --------------------------------------------------------------------------------------------------------

_QUOTED = r'"([^"\\]*(?:\\.[^"\\]*)*)"'
_LINE = re.compile(
    r"(?:([^\s:]+|\[[^\s\]]+\]):\d+ )?"  # virtual host and port, of Apache's vhost_combined
    r"(\S+) \S+ (.+?) \[([^\[\]]*)\] " + _QUOTED + r" (\d{3}|-) (\S+)"
    r"(?: " + _QUOTED + " " + _QUOTED + r")?(.*)"
)
_EXTRA = re.compile(_QUOTED)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)")
_NAMED: Final = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "b": "\b"}


_GROUPS: Final = {
    name: number
    for number, name in enumerate(
        ("vhost", "client_ip", "user", "time", "request", "status", "bytes", "referer", "user_agent"), 1
    )
}


class _Combined:
    def __init__(self, fields: Fields) -> None:
        host, address = fields.names["host"], fields.names["client_ip"]
        self.default_host = fields.host
        self.host = host[0] if host != FIELDS["host"] else "vhost"
        self.client_ip = address[0] if address != FIELDS["client_ip"] else "client_ip"
        given = (("referer", "referer"), ("user-agent", "user_agent"), *fields.headers)
        self.headers = [(header + ": ", field) for header, field in given]
        self.extra = any(field not in _GROUPS for field in (self.host, self.client_ip, *(name for _, name in given)))

    def __call__(self, line: bytes) -> Logged:
        found = _LINE.fullmatch(line.decode("utf-8", "surrogateescape").strip("\r\n "))
        if found is None:
            raise BadLine("not a line of the combined format")
        parts = _unescaped(found[5]).split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/"):
            raise BadLine("the request is not METHOD PATH PROTOCOL")
        extra = _EXTRA.findall(found[10]) if self.extra and found[10] else []
        lines = [
            f"{parts[0]} {parts[1]} HTTP/1.1",
            "host: " + (_field(found, extra, self.host) or self.default_host),
        ]
        for header, field in self.headers:
            value = _field(found, extra, field)
            if value and value != "-":
                lines.append(header + value)
        return Logged(_head(lines), _address(_field(found, extra, self.client_ip)), None)


def _field(found: re.Match[str], extra: list[str], name: str) -> str:
    """ "" for what the line has not."""
    if name in _GROUPS:
        return _unescaped(found[_GROUPS[name]] or "")
    number = name.removeprefix("extra")
    return _unescaped(extra[int(number) - 1]) if number.isdecimal() and 0 < int(number) <= len(extra) else ""


def _unescaped(text: str) -> str:
    """nginx writes `\\x22`, Apache `\\"` and `\\n` too; bytes beyond ASCII may be escaped one by one."""
    if "\\" not in text:
        return text

    def plain(found: re.Match[str]) -> str:
        code = found[1]
        if len(code) == 3:
            byte = int(code[1:], 16)
            return chr(byte) if byte < 128 else chr(0xDC00 + byte)
        return _NAMED.get(code, code)

    return _ESCAPE.sub(plain, text)


# ---- both ------------------------------------------------------------------------------------------------------------


def _head(lines: list[str]) -> bytes:
    """Raises BadLine when a value holds a line break, which would make another header of it."""
    lines += ("", "")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise BadLine("a value holds a line break")
    return text.encode("utf-8", "surrogateescape")


_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_BYTE}(?:\.{_BYTE}){{3}}")


def _address(text: str) -> str:
    """Canonical. Raises BadLine for what is no address."""
    return text if _IPV4.fullmatch(text) else _other_address(text)


@lru_cache(65536)
def _other_address(text: str) -> str:
    if not text or text == "-" or text.startswith("unix:"):
        return NO_ADDRESS
    plain = text.strip()
    if plain.count(":") == 1:
        plain = plain.partition(":")[0]  # with its port
    elif plain.startswith("["):
        plain = plain[1:].partition("]")[0]
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        raise BadLine("the client's address is not an IP address") from None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address).partition("%")[0]
