"""The admin API of a running proxy, as its callers see it: over TCP, TLS and a Unix socket."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from tests.certificates import Authority
from tests.integration import proxies
from tests.integration.proxies import Document, Proxy
from tests.integration.upstream import Upstream

PATIENCE = 20.0
NOBODY = "127.0.0.1:1"
TOKEN = "a-token-long-enough-for-anybody"
OTHER = "another-token-that-is-long-enough"


def document(v1: Upstream, v2: Upstream, **admin: Any) -> Document:
    """One service of two versions with a rule; admin: in addition to, or in place of, an address on loopback."""
    users = proxies.service(
        (v1.address, "v1"),
        (v2.address, "v2"),
        sticky=[{"header": "x-user-id"}],
        split={"v1": 90, "v2": 10},
        rules=[{"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}],
    )
    return proxies.document({"users": users}, admin={"address": "127.0.0.1:0", **admin})


def client(proxy: Proxy, *, token: str = "", user: str = "", tls: ssl.SSLContext | None = None) -> httpx.Client:
    """token, user: to be sent with each request. tls: to be trusted, and a certificate to be shown, if it has one."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    headers |= {"x-graylb-user": user} if user else {}
    if proxy.admin.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=proxy.admin.removeprefix("unix:"))
        return httpx.Client(base_url="http://localhost", transport=transport, headers=headers, timeout=PATIENCE)
    scheme = "https" if tls is not None else "http"
    verify = tls if tls is not None else True
    return httpx.Client(base_url=f"{scheme}://{proxy.admin}", verify=verify, headers=headers, timeout=PATIENCE)


def graylb(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    """One command, in this process; at the address where nobody answers, unless told otherwise."""
    environment = {"GRAYLB_ADMIN": NOBODY, "COLUMNS": "200", **(env or {})}
    return CliRunner().invoke(app, [str(each) for each in arguments], env=environment)


def says(answer: httpx.Response, status: int, *words: str) -> Any:
    """The JSON of an answer that has this status and, in its message, all the words."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    for word in words:
        assert word in found["message"], found
    return found


class Certificates:
    """A server's, on 127.0.0.1, and what its clients take."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.ca, self.clients = folder, Authority(), Authority("clients")
        self.ca.issue("127.0.0.1", "localhost").write(folder, "server")
        self.ca.write(folder)
        self.clients.write(folder, "clients")

    @property
    def tls(self) -> dict[str, str]:
        """Of `admin`, without `client_ca`."""
        return {"cert": str(self.folder / "server.pem"), "key": str(self.folder / "server.key")}

    def issue(self, name: str, by: Authority | None = None) -> tuple[Path, Path]:
        """Files of a client's certificate and its key."""
        return (by or self.clients).issue(f"{name}@example.org", common=name).write(self.folder, name)

    def context(self, *pair: Path) -> ssl.SSLContext:
        """Of a client that trusts the server, and shows a certificate if one is given with its key."""
        return self.ca.client(*pair)
