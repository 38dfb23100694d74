"""Shared fixtures. A `site` is a service of the session's proxy with an upstream of its own, so tests do not meet."""

from __future__ import annotations

import compileall
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from graylb import builds
from tests.integration import proxies
from tests.integration.client import Client, Response, request
from tests.integration.upstream import Handler, Request, Upstream

# a busy machine is no failure
settings.register_profile("graylb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graylb")

if not builds.has("h2"):
    collect_ignore_glob = ["test_h2_*.py"]
SITES = 400
"""More than there are tests that ask for one."""
IMPATIENT = {"connect": 0.5, "response": 0.5, "idle": 0.5}


def pytest_configure(config: pytest.Config) -> None:
    """Hundreds of processes are started, and where PYTHONDONTWRITEBYTECODE is set each would compile all of graylb."""
    compileall.compile_dir(proxies.ROOT / "graylb", quiet=2)


class Site:
    """One service (`host`) of the shared proxy and its only instance (`upstream`)."""

    def __init__(self, name: str) -> None:
        self.name, self.host = name, f"{name}.test"
        self.upstream = Upstream(name)
        self.proxy: proxies.Proxy
        self._clients: list[Client] = []

    def client(self, **options: Any) -> Client:
        """A connection to the proxy, closed with the test."""
        client = self.proxy.client(**options)
        self._clients.append(client)
        return client

    def request(self, method: str = "GET", target: str = "/", *headers: str, **more: Any) -> bytes:
        return request(method, target, self.host, headers, **more)

    def ask(self, method: str = "GET", target: str = "/", *headers: str, **more: Any) -> Response:
        """One request on a connection of its own."""
        with self.proxy.client() as client:
            return client.send(self.request(method, target, *headers, **more)).response(method)

    def ask_raw(self, data: bytes, method: str = "GET") -> Response:
        """Any bytes and the answer to them."""
        with self.proxy.client() as client:
            return client.send(data).response(method)

    def on(self, path: str, handler: Handler) -> None:
        self.upstream.on(path, handler)

    @property
    def requests(self) -> list[Request]:
        return self.upstream.requests

    def finish(self) -> None:
        for client in self._clients:
            client.close()
        self.upstream.stop()
        self.upstream.check()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Site]]]:
    """The session's proxy: sites of two kinds not yet used, `plain` and `impatient` (upstream timeouts of 0.5 s)."""
    sites = {"plain": [Site(f"site{number}") for number in range(SITES)]}
    sites["impatient"] = [Site(f"quick{number}") for number in range(SITES // 10)]
    services: dict[str, Any] = {}
    for kind, group in sites.items():
        for site in group:
            more = {"timeouts": IMPATIENT} if kind == "impatient" else {}
            services[site.name] = proxies.service(site.upstream.address, hosts=[site.host], **more)
    made = [site for group in sites.values() for site in group]
    try:
        with proxies.running(tmp_path_factory.mktemp("shared"), proxies.document(services)) as proxy:
            for site in made:
                site.proxy = proxy
            yield sites
    finally:
        for site in made:
            site.upstream.refuse()


@pytest.fixture
def site(shared: dict[str, list[Site]]) -> Iterator[Site]:
    yield from lend(shared["plain"].pop())


@pytest.fixture
def impatient(shared: dict[str, list[Site]]) -> Iterator[Site]:
    yield from lend(shared["impatient"].pop())


def lend(site: Site) -> Iterator[Site]:
    """`site` for a fixture: its upstream runs, and is checked at the end."""
    site.upstream.start()
    yield site
    site.finish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for proxy in proxies.RUNNING:
            report.sections.append((f"log of graylb {proxy.address}", proxy.log()))
    return report
