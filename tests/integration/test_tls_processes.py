"""TLS of whole proxies: configuration, workers that resume each other's sessions, files that change."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.integration import proxies
from tests.integration.client import Response
from tests.integration.proxies import Proxy, until
from tests.integration.test_tls_io import shake
from tests.integration.upstream import Upstream


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextlib.contextmanager
def stopping(up: Upstream) -> Iterator[None]:
    try:
        yield
    finally:
        up.stop()


def document(up: Upstream, **tls: Any) -> proxies.Document:
    listener = {"address": "127.0.0.1:0", "tls": {"cert": "server.pem", "key": "server.key", **tls}}
    return proxies.document({"up": proxies.service(up.address)}, listeners=[listener])


def asked(proxy: Proxy, context: ssl.SSLContext, name: str = "a.test") -> bool:
    """Whether a request on a connection of its own was served."""
    with contextlib.suppress(ssl.SSLError):
        shake(proxy.address, context, name, None)
        return True
    return False


def test_sessions_are_resumed_in_any_worker(tmp_path: Path, authority: Authority) -> None:
    """Also in one that took the place of another."""
    authority.issue("a.test").write(tmp_path, "server")
    context = authority.client()
    up = Upstream().start()
    with stopping(up), proxies.running(tmp_path, document(up), "--workers", "2") as proxy:
        _, session = shake(proxy.address, context, "a.test", None)
        assert all(shake(proxy.address, context, "a.test", session)[0] for _ in range(16))
        stats = [each["stats"]["tls"] for each in proxy.call("/stats")]
        assert all(each["resumed"] for each in stats), stats  # the kernel spreads 16 connections over both


def test_a_file_that_changes_is_taken_without_a_failed_request(tmp_path: Path, authority: Authority) -> None:
    """Requests go on all the time; a file that is broken, or of another key, changes nothing but the status."""
    authority.issue("a.test").write(tmp_path, "server")
    other = Authority("other")
    both = ssl.create_default_context(cadata=(authority.pem + other.pem).decode())
    up = Upstream().start()
    with stopping(up), proxies.running(tmp_path, document(up), "--workers", "2") as proxy:
        stop, failures, served = threading.Event(), list[BaseException](), list[int]()

        def load() -> None:
            while not stop.is_set():
                try:
                    shake(proxy.address, both, "a.test", None)
                    served.append(1)
                except BaseException as error:
                    failures.append(error)

        loading = threading.Thread(target=load)
        loading.start()
        try:
            until(lambda: len(served) > 5, "requests")
            assert not asked(proxy, other.client())
            good = (tmp_path / "server.pem").read_bytes()
            (tmp_path / "server.pem").write_bytes(good[: len(good) // 2])
            until(lambda: proxy.status()["refusal"], "the broken file to be told of")
            (told,) = proxy.status()["refusal"]["errors"]
            assert told["path"] == "$.listeners[0].tls.cert"
            assert 'file "server.pem": certificate 1 cannot be read' in told["text"]
            assert asked(proxy, authority.client())
            other.issue("a.test").write(tmp_path, "server")
            until(lambda: asked(proxy, other.client()), "the new certificate")
            assert proxy.status()["refusal"] is None
            count = len(served)
            until(lambda: len(served) > count + 5, "more requests")
        finally:
            stop.set()
            loading.join()
        assert not failures
        assert proxy.status()["restart_needed"] == []


def test_certificates_in_the_status(tmp_path: Path, authority: Authority) -> None:
    """Whose, for what and until when; also how `graylb check` and the log warn of one that ends soon."""
    authority.issue("a.test", days=3.5).write(tmp_path, "server")
    authority.issue("b.test").write(tmp_path, "b")
    up = Upstream().start()
    made = document(up, certificates=[{"cert": "b.pem", "key": "b.key", "names": ["b.test", "c.test"]}])
    with stopping(up), proxies.running(tmp_path, made) as proxy:
        first, second = proxy.status()["certificates"]
        assert (first["of"], first["as"], first["file"]) == ("listener 127.0.0.1:0", "cert", "server.pem")
        assert first["names"] == ["a.test"]
        assert first["problem"].startswith("expires in 3 days")
        assert second["problem"] is None
        proxy.wait_for_log("expires in 3 days")
        checked = proxies.cli("check", proxy.file)
        assert "expires in 3 days" in checked.stdout + checked.stderr
        assert 'the certificate is not for "c.test"; it has b.test' in checked.stdout + checked.stderr


def test_instances_over_tls_by_configuration(tmp_path: Path, authority: Authority) -> None:
    """Another graylb is the instance. The authority's file changes, from one that did not sign its certificate."""
    (inner, outer) = (tmp_path / name for name in ("inner", "outer"))
    inner.mkdir()
    outer.mkdir()
    authority.issue("up.test").write(inner, "server")
    Authority("other").write(outer, "trusted")
    up = Upstream().start()
    with stopping(up), proxies.running(inner, document(up)) as instance:
        service = proxies.service(instance.address, tls={"ca": "trusted.pem", "server_name": "up.test"})
        with proxies.running(outer, proxies.document({"up": service})) as proxy:

            def ask() -> Response:
                with proxy.client() as client:
                    return client.ask()

            refused = ask()
            assert (refused.status, refused.error) == (502, "upstream-tls")
            authority.write(outer, "trusted")
            until(lambda: ask().status == 200, "the new authority")
            assert up.requests[-1].get("x-forwarded-proto") == "http"
