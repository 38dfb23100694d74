"""Who may use the admin API: holders of a token or a certificate, or whoever is on this machine; no web page ever.

An ASGI middleware before everything else, so that nobody else's body is read. On loopback without tokens two things
keep web pages away from what a browser on this machine can reach: writes must not come from another origin (Fetch
standard: `Origin`, `Sec-Fetch-Site`), and the Host must be this machine's, for a name of somebody else's that resolves
to 127.0.0.1 (DNS rebinding) makes its page the same origin.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graylb.control.api.context import OPEN
from graylb.control.api.failures import refusal
from graylb.control.logs import log
from graylb.control.plane import StartRefused

SAFE: Final = ("GET", "HEAD", "OPTIONS")
LARGEST_BODY: Final = 16 * 2**20
"""Bytes. A document of 10,000 instances has about one million."""
SHORTEST_TOKEN: Final = 16
LONGEST_NAME: Final = 128
USER: Final = "x-graylb-user"
"""Who gives the command, percent-encoded: a claim, believed where no token and no certificate says it."""


class AccessError(StartRefused):
    """Why nobody could use the admin API as the document asks for it."""


class Tokens:
    """A file with a token in each line, `TOKEN` or `NAME: TOKEN`; `#` begins a comment. Read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises AccessError for a file that cannot be read or has no token."""
        self.path = path
        self._seen = _identity(path)
        self._tokens = _read_tokens(path)

    def holder(self, token: str) -> str | None:
        """The name beside the token, `token` where there is none, and None for an unknown one.

        Compares with all of them, in a time that does not depend on where they differ.
        """
        self._look()
        found = None
        for known, name in self._tokens:
            if hmac.compare_digest(known, token.encode()):
                found = name
        return found

    def _look(self) -> None:
        seen = _identity(self.path)
        if seen != self._seen:
            self._seen = seen
            try:
                self._tokens = _read_tokens(self.path)
                log.info("%s: read again, %d tokens", self.path, len(self._tokens))
            except AccessError as error:
                self._tokens = []  # a token that was taken away must not go on being good
                log.error("%s; nobody is let in by a token", error)


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _read_tokens(path: Path) -> list[tuple[bytes, str]]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise AccessError(f"token file {path} cannot be read: {why}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            name, _, token = line.rpartition(":")
            if len(token.strip()) < SHORTEST_TOKEN or len(token.split()) != 1 or not token.isascii():
                raise AccessError(
                    f"token file {path}, line {number}: expected TOKEN or NAME: TOKEN, with a token of at least "
                    f"{SHORTEST_TOKEN} ASCII characters"
                )
            found.append((token.strip().encode(), name.strip() or "token"))
    if not found:
        raise AccessError(f"token file {path}: expected a line with a token")
    return found


def certificate_name(certificate: dict[str, Any] | None) -> str | None:
    """Whose it is (as of `ssl.SSLSocket.getpeercert`): the common name, else the first alternative one."""
    if not certificate:
        return None
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName" and value:
                return str(value)
    names = certificate.get("subjectAltName", ())
    return str(names[0][1]) if names else f"certificate {certificate.get('serialNumber', '')}".strip()


class Guard:
    """ASGI middleware. `scope["state"]["who"]` is whoever calls; `["certificate"]` comes from the connection."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None, certificates: bool) -> None:
        self.app, self.tokens, self.certificates = app, tokens, certificates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # uvicorn answers a handshake that nobody accepts
        headers = Headers(scope=scope)
        scope.setdefault("state", {})
        if scope["path"] in OPEN and scope["method"] in SAFE:
            await self.app(scope, receive, send)
            return
        if self.tokens is None and not self.certificates:
            who: str | None = _claimed(headers) or "local"
            if scope["scheme"] == "http" and scope["server"][1] is not None and not _names_this_machine(headers):
                why = "the Host header names no address of this machine; expected localhost or an IP address"
                await refusal(403, "foreign-host", why)(scope, receive, send)
                return
        else:
            who = scope["state"].get("certificate") or self._by_token(headers)
        if who is None:
            said = "this token is not known" if "authorization" in headers else "no token"
            expected = "Authorization: Bearer TOKEN" + (", or a client certificate" if self.certificates else "")
            answer = refusal(401, "unauthorized", f"{said}; expected {expected}")
            answer.headers["www-authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        if scope["method"] not in SAFE and _of_another_origin(scope, headers):
            why = "a web page of another origin may not change anything here"
            await refusal(403, "cross-origin", why)(scope, receive, send)
            return
        with contextlib.suppress(ValueError):
            if int(headers.get("content-length", "0")) > LARGEST_BODY:
                await refusal(413, "too-large", f"expected a body of at most {LARGEST_BODY} bytes")(
                    scope, receive, send
                )
                return
        scope["state"]["who"] = who[:LONGEST_NAME]
        await self.app(scope, _limited(receive), send)

    def _by_token(self, headers: Headers) -> str | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if self.tokens is None or scheme.lower() != "bearer":
            return None
        holder = self.tokens.holder(token.strip())
        if holder == "token" and (claimed := _claimed(headers)):
            return f"{claimed} (by token)"
        return holder


def _claimed(headers: Headers) -> str:
    text = unquote(headers.get(USER, ""), errors="replace")
    return "".join(each for each in text if each.isprintable()).strip()[:LONGEST_NAME]


def _names_this_machine(headers: Headers) -> bool:
    hosts = headers.getlist("host")
    try:
        host = urlsplit(f"//{hosts[0]}").hostname or ""
    except (IndexError, ValueError):
        return False
    if len(hosts) != 1:
        return False
    if host == "localhost" or host.endswith(".localhost") or host == os.uname().nodename.lower():
        return True
    try:
        ipaddress.ip_address(host)  # a page cannot be of an address's origin unless it came from there
    except ValueError:
        return False
    return True


def _of_another_origin(scope: Scope, headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.lower() != f"{scope['scheme']}://{headers.get('host', '')}".lower()


def _limited(receive: Receive) -> Receive:
    """A body of unknown length is not read beyond the limit, either."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > LARGEST_BODY:
            raise HTTPException(413, f"expected a body of at most {LARGEST_BODY} bytes")
        return message

    return counted
