"""Who may use the admin API, and what a web page cannot do."""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from graylb.control.admin import Access
from graylb.control.api.guard import AccessError, Tokens, certificate_name
from graylb.model import snapshot
from tests.integration import admins, proxies
from tests.integration.admins import OTHER, TOKEN, Certificates, says
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Upstream, running

SPLIT = {"weights": {"v1": 50, "v2": 50}}


@pytest.fixture(scope="module")
def versions() -> Iterator[tuple[Upstream, Upstream]]:
    with running("v1", "v2") as (v1, v2):
        yield v1, v2


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, versions: tuple[Upstream, Upstream]) -> Iterator[Proxy]:
    with proxies.running(tmp_path_factory.mktemp("local"), admins.document(*versions)) as proxy:
        yield proxy


def newest(client: httpx.Client) -> str:
    return str(client.get("/history", params={"service": "users"}).json()[0]["who"])


def test_tokens(tmp_path: Path, versions: tuple[Upstream, Upstream]) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# ours\n{TOKEN}\n\nann: {OTHER}\n")
    with proxies.running(tmp_path / "run", admins.document(*versions, token_file=str(file))) as proxy:
        with admins.client(proxy) as stranger:
            assert stranger.get("/live").status_code == stranger.get("/ready").status_code == 200
            for path in ("/status", "/snapshot", "/openapi.json", "/nowhere"):
                answer = stranger.get(path)
                says(answer, 401, "no token", "Authorization: Bearer TOKEN")
                assert answer.headers["www-authenticate"] == "Bearer"
            says(stranger.put("/services/users/split", json=SPLIT), 401)
            says(stranger.put("/ready", json={"ready": False}), 401)
        for wrong in (TOKEN[:-1], TOKEN + "x", "ann: " + OTHER, "ann", "é" * 20):
            headers = {"authorization": f"Bearer {wrong}".encode()}
            with admins.client(proxy) as stranger:
                says(stranger.get("/status", headers=headers), 401, "this token is not known")
        with admins.client(proxy) as stranger:
            says(stranger.get("/status", headers={"authorization": f"Basic {TOKEN}"}), 401)
        with admins.client(proxy, token=TOKEN, user="bob") as client:
            assert client.put("/services/users/split", json=SPLIT).status_code == 200
            assert newest(client) == "bob (by token)"
        with admins.client(proxy, token=OTHER, user="bob") as client:
            assert client.post("/services/users/rollback").status_code == 200
            assert newest(client) == "ann"
            file.write_text(f"{TOKEN}\n")
            says(client.get("/status"), 401)
            assert client.get("/status", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
            file.unlink()
            says(client.get("/status", headers={"authorization": f"Bearer {TOKEN}"}), 401)
        proxy.wait_for_log("nobody is let in by a token")
        assert " 401" not in proxy.log()  # behind a blank: ports have such digits too


def test_client_certificates(tmp_path: Path, versions: tuple[Upstream, Upstream], certificates: Certificates) -> None:
    tls = {**certificates.tls, "client_ca": str(certificates.folder / "clients.pem")}
    ann, stranger = certificates.issue("ann"), certificates.issue("eve", certificates.ca)
    with proxies.running(tmp_path, admins.document(*versions, tls=tls)) as proxy:
        proxy.wait_for_log(f"https://{proxy.admin}")
        with admins.client(proxy, tls=certificates.context(*ann), user="bob") as client:
            assert client.put("/services/users/split", json=SPLIT).status_code == 200
            assert newest(client) == "ann"
            answer = client.put("/services/users/split", json=SPLIT, headers={"origin": "https://evil.example"})
            says(answer, 403, "another origin")  # a browser shows the certificate by itself
        with admins.client(proxy, tls=certificates.context()) as client:
            assert client.get("/live").status_code == 200
            says(client.get("/status"), 401, "or a client certificate")
            says(client.get("/status", headers={"authorization": f"Bearer {TOKEN}"}), 401)
        with admins.client(proxy, tls=certificates.context(*stranger)) as client, pytest.raises(httpx.TransportError):
            client.get("/live")
        with admins.client(proxy) as client, pytest.raises(httpx.TransportError):
            client.get("/live")


def test_a_token_or_a_certificate(
    tmp_path: Path, versions: tuple[Upstream, Upstream], certificates: Certificates
) -> None:
    """Beyond loopback."""
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    tls = {**certificates.tls, "client_ca": str(certificates.folder / "clients.pem")}
    doc = admins.document(*versions, address="0.0.0.0:0", token_file=str(file), tls=tls)
    proxy = Proxy(tmp_path, doc, start=False)
    try:
        proxy.start()
        proxy.admin = proxy.admin.replace("0.0.0.0", "127.0.0.1")
        for tokens, pair in ((TOKEN, ()), ("", certificates.issue("ann"))):
            with admins.client(proxy, token=tokens, tls=certificates.context(*pair)) as client:
                assert client.get("/status").status_code == 200
        with admins.client(proxy, tls=certificates.context()) as client:
            says(client.get("/status"), 401)
        proxy.stop()
    finally:
        proxy.kill()


def test_a_unix_socket_for_its_owner_alone(tmp_path: Path, versions: tuple[Upstream, Upstream]) -> None:
    socket = tmp_path / "admin.sock"
    with proxies.running(tmp_path, admins.document(*versions, address=f"unix:{socket}")) as proxy:
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        with admins.client(proxy, user="ann") as client:
            assert client.get("/status", headers={"host": "whatever"}).json()["ready"]
            assert client.put("/services/users/split?wait=10", json=SPLIT).json()["applied"]
            assert newest(client) == "ann"


@pytest.mark.parametrize(
    ("access", "words"),
    [
        ({"token_file": "/nowhere/tokens"}, "/nowhere/tokens cannot be read: No such file"),
        ({"token_file": "short"}, "short, line 1: expected .* at least 16 ASCII characters"),
        ({"token_file": "empty"}, "empty: expected a line with a token"),
        ({"cert": "short", "key": "short"}, "no certificate and its key"),
        ({"cert": "/nowhere/x", "key": "short"}, "no certificate and its key: No such file"),
    ],
)
def test_what_nobody_could_use(tmp_path: Path, access: dict[str, str], words: str) -> None:
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(AccessError, match=words):
        Access(snapshot.Access(**access), tmp_path)


def test_with_what_nobody_could_use_it_does_not_start(tmp_path: Path, versions: tuple[Upstream, Upstream]) -> None:
    proxy = Proxy(tmp_path, admins.document(*versions, token_file="nowhere"), start=False)
    done = proxies.cli("run", "-c", proxy.file)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("nowhere cannot be read: No such file or directory")


def test_an_address_of_the_command_line_is_refused_alike(tmp_path: Path, versions: tuple[Upstream, Upstream]) -> None:
    proxy = Proxy(tmp_path, admins.document(*versions), start=False)
    done = proxies.cli("run", "-c", proxy.file, "--admin", "0.0.0.0:0")
    assert (done.returncode, "without a token or a certificate" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": "http://HOST"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "https://HOST"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"host": "evil.example", "origin": "http://evil.example"}, False),
    ],
)
def test_pages_of_other_origins_change_nothing(local: Proxy, headers: dict[str, str], allowed: bool) -> None:
    headers = {name: value.replace("HOST", local.admin) for name, value in headers.items()}
    with admins.client(local) as client:
        for method, path, body in (
            ("PUT", "/log-level", {"level": "info"}),
            ("POST", "/explain", {}),
            ("DELETE", "/services/users/rules/none", None),
        ):
            answer = client.request(method, path, json=body, headers=headers)
            assert (answer.status_code == 403) is not allowed, answer.text
        assert "access-control-allow-origin" not in client.get("/status", headers=headers).headers


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:9900", True),
        ("127.0.0.1", True),
        ("[::1]:9900", True),
        ("10.1.2.3:80", True),
        ("admin.localhost", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:9900", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_names_of_others_that_resolve_to_this_machine(local: Proxy, host: str, known: bool) -> None:
    """DNS rebinding: the page of evil.example is of the same origin as whatever answers under that name."""
    with admins.client(local) as client:
        answer = client.get("/snapshot", headers={"host": host})
        assert answer.status_code == (200 if known else 403)
        assert client.get("/ready", headers={"host": host}).status_code == 200


def test_a_body_that_is_no_json_by_its_type_is_not_read(local: Proxy) -> None:
    """What a form of another page can send without being asked."""
    with admins.client(local) as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = client.put("/log-level", content=b'{"level":"debug"}', headers={"content-type": kind})
            says(answer, 422)
        assert client.get("/log-level").json() == {"level": "info"}


def test_bodies_beyond_the_limit(local: Proxy) -> None:
    with admins.client(local) as client:
        big = b'{"level":"' + b"x" * (16 * 2**20) + b'"}'
        says(client.put("/log-level", content=big, headers={"content-type": "application/json"}), 413, "16777216")

        def pieces() -> Iterator[bytes]:
            for at in range(0, len(big), 2**20):
                yield big[at : at + 2**20]

        answer = client.put("/log-level", content=pieces(), headers={"content-type": "application/json"})
        says(answer, 413, "16777216")


def test_heads_beyond_the_limit(local: Proxy) -> None:
    """From somebody who need not even have a token."""
    host, _, port = local.admin.rpartition(":")
    with socket.create_connection((host, int(port)), proxies.PATIENCE) as made:
        sent = 0
        with contextlib.suppress(ConnectionError):
            made.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\n")
            while sent < 4 * 2**20:
                made.sendall(b"x: " + b"y" * 8000 + b"\r\n")
                sent += 8000
        assert sent < 4 * 2**20
    with admins.client(local) as client:
        assert client.get("/live").status_code == 200


def test_whose_certificate_it_is() -> None:
    assert certificate_name(None) is None
    assert certificate_name({}) is None
    named = {"subject": ((("organizationName", "o"),), (("commonName", "ann"),)), "subjectAltName": (("DNS", "x"),)}
    assert certificate_name(named) == "ann"
    assert certificate_name({**named, "subject": ()}) == "x"
    assert certificate_name({"serialNumber": "0A"}) == "certificate 0A"


def test_a_file_of_tokens_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\nann:{OTHER}")
    tokens = Tokens(file)
    assert (tokens.holder(TOKEN), tokens.holder(OTHER), tokens.holder("")) == ("token", "ann", None)
    file.write_text(f"bob: {TOKEN}\n")
    assert (tokens.holder(TOKEN), tokens.holder(OTHER)) == ("bob", None)
    file.write_text("bad")
    assert tokens.holder(TOKEN) is None
    with pytest.raises(AccessError, match="line 1"):
        Tokens(file)
    file.write_text(f"{OTHER}\n")
    until(lambda: tokens.holder(OTHER) == "token", "the mended file")
