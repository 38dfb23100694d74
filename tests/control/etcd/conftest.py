"""One etcd for the tests that do it no harm; each takes a prefix of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with servers.running(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"/{request.node.name}/"
