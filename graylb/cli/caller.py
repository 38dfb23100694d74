"""Calls of the admin API: over TCP, TLS or a Unix socket, with the token and the certificate that the options name."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import orjson

if TYPE_CHECKING:
    from http.client import HTTPConnection

DEFAULT_ADMIN: Final = "127.0.0.1:9900"
PATIENCE: Final = 5.0
"""Seconds for an answer that nothing has to be done for."""
TOKEN: Final = "GRAYLB_ADMIN_TOKEN"
_ANY: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}


class NotRunning(Exception):
    """Nobody answers as graylb at the admin address."""


class NotAllowed(Exception):
    """Somebody does, but not to us; or it cannot be known who it is."""


class BadAddress(ValueError):
    """An admin address that is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """data: JSON, None where there is none."""

    status: int
    data: Any


@dataclass(frozen=True, slots=True)
class Access:
    """What is shown to the proxy, and by what it is known. Files in PEM."""

    token_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def token(self) -> str | None:
        """Of the file, else of the environment. Raises NotAllowed."""
        if self.token_file is None:
            return os.environ.get(TOKEN) or None
        try:
            lines = self.token_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise NotAllowed(f"token file {self.token_file} cannot be read: {_why(error)}") from error
        found = [line for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise NotAllowed(f"token file {self.token_file}: expected a line with a token")
        return found[0].rpartition(":")[2].strip()

    def context(self) -> ssl.SSLContext:
        """Raises NotAllowed."""
        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(each) for each in (self.ca, self.cert, self.key) if each)
            raise NotAllowed(f"{files} cannot be used: {_why(error)}") from error
        return context


_access = Access()


def use(access: Access) -> None:
    """From now on, in this process."""
    global _access
    _access = access


def call(
    address: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    query: dict[str, Any] | None = None,
    user: str = "",
    patience: float = PATIENCE,
) -> Answer:
    """address: `host:port`, the same behind https://, or unix:/path. body: JSON-ready, None for none. user: who calls.

    query: of it, what is not None. Raises NotRunning, NotAllowed, BadAddress.
    """
    from http.client import HTTPException  # takes longer to load than some commands need

    headers = {"x-graylb-user": quote(user)} if user else {}
    if token := _access.token():
        headers["authorization"] = f"Bearer {token}"
    if body is not None:
        headers["content-type"] = "application/json"
    given = {name: value for name, value in (query or {}).items() if value is not None}
    connection: HTTPConnection | None = None
    try:
        connection = _connection(address, patience)
        data = None if body is None else orjson.dumps(body)
        connection.request(method, path + (f"?{urlencode(given)}" if given else ""), data, headers)
        answer = connection.getresponse()
        text = answer.read()
        found = Answer(answer.status, orjson.loads(text) if text else None)
    except ssl.SSLCertVerificationError as error:
        why = f"{error.verify_message or error}; name who signed its certificate with --admin-ca FILE"
        raise NotAllowed(f"the proxy on {address} is not known: {why}") from error
    except PermissionError as error:
        raise NotAllowed(f"{address}: {error.strerror}") from error
    except (OSError, HTTPException, orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise NotRunning(f"no proxy answers on {address}: {error}") from error
    finally:
        if connection is not None:
            connection.close()
    if answer.status in (401, 403):
        said = found.data.get("message", "") if isinstance(found.data, dict) else ""
        hint = f"; set {TOKEN} or --admin-token-file" if answer.status == 401 else ""
        raise NotAllowed(f"the proxy on {address} refuses: {said}{hint}")
    return found


def stream(address: str, path: str, query: dict[str, Any]) -> Iterator[bytes]:
    """The lines that GET answers, as they come, until the other side ends; blank ones are signs of life.

    Raises NotRunning, NotAllowed, BadAddress, and ValueError for a request that is refused.
    """
    from http.client import HTTPException

    token = _access.token()
    given = urlencode({name: value for name, value in query.items() if value is not None})
    connection = _connection(address, PATIENCE)
    try:
        connection.request(
            "GET", f"{path}?{given}" if given else path, headers={"authorization": f"Bearer {token}"} if token else {}
        )
        answer = connection.getresponse()
        if answer.status in (401, 403):
            raise NotAllowed(f"the proxy on {address} refuses: {_message(answer.read())}")
        if answer.status != 200:
            raise ValueError(_message(answer.read()))
        while line := answer.readline():
            yield line.rstrip(b"\n")
    except ssl.SSLCertVerificationError as error:
        raise NotAllowed(f"the proxy on {address} is not known: {error.verify_message or error}") from error
    except (OSError, HTTPException) as error:
        raise NotRunning(f"no proxy answers on {address}: {error}") from error
    finally:
        connection.close()


def _message(text: bytes) -> str:
    with contextlib.suppress(orjson.JSONDecodeError, TypeError, KeyError):
        return str(orjson.loads(text)["message"])
    return text[:200].decode(errors="replace")


def ask(address: str, path: str) -> Any:
    """JSON that GET answers. Raises NotRunning, NotAllowed, BadAddress."""
    answer = call(address, "GET", path)
    if answer.status >= 400:
        raise NotRunning(f"{address} answers {path} with status {answer.status}")
    return answer.data


def _connection(address: str, patience: float) -> HTTPConnection:
    from http.client import HTTPConnection, HTTPSConnection

    if address.startswith("unix:/"):
        connection = HTTPConnection("localhost", timeout=patience)
        connection.sock = _connected(address.removeprefix("unix:"), patience)
        return connection
    host, _, port = address.removeprefix("https://").removeprefix("http://").rstrip("/").rpartition(":")
    if not port.isdigit():
        raise BadAddress(f"admin address {address!r}: expected host:port, such as {DEFAULT_ADMIN}, or unix:/path")
    host = _ANY.get(host, host).strip("[]")
    tls = not address.startswith("http://") and (_access.ca is not None or _access.cert is not None)
    if address.startswith("https://") or tls:
        return HTTPSConnection(host, int(port), timeout=patience, context=_access.context())
    return HTTPConnection(host, int(port), timeout=patience)


def _connected(path: str, patience: float) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(patience)
        made.connect(path)
    except BaseException:
        made.close()
        raise
    return made


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
