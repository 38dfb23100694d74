"""Proxies on an etcd of a test: documents that name it, and puts as `etcdctl` makes them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.control.etcd.servers import Cluster
from tests.integration import proxies
from tests.integration.proxies import Document, Proxy, until

Status = dict[str, Any]


def document(cluster: Cluster, node: str, services: dict[str, Any] | None = None, **etcd: Any) -> Document:
    """A document whose services are in etcd, but for those given; two workers."""
    part = {"endpoints": list(cluster.endpoints), "node": node, **etcd}
    return proxies.document(services or {}, workers=2, etcd=part)


class Keys:
    """Puts and gets below `/graylb/services/` by etcd3's own client, with no code of ours between."""

    def __init__(self, store: Any, prefix: str = "/graylb") -> None:
        self.store, self.prefix = store, prefix

    def put(self, key: str, value: Any, **options: Any) -> int:
        """The revision. value: a text as it is, anything else as JSON."""
        text = value if isinstance(value, str) else json.dumps(value)
        return int(self.store.put(f"{self.prefix}/services/{key}", text, **options).header.revision)

    def get(self, key: str) -> Any:
        text, _ = self.store.get(f"{self.prefix}/services/{key}")
        return None if text is None else json.loads(text)

    def revision(self, key: str) -> int:
        """At which it was put last."""
        _, meta = self.store.get(f"{self.prefix}/services/{key}")
        return int(meta.mod_revision)

    def delete(self, key: str) -> None:
        assert self.store.delete(f"{self.prefix}/services/{key}")

    def service(self, name: str, *instances: tuple[str, str], **settings: Any) -> None:
        """Its settings and its (address, version)s, but no split."""
        for number, (address, version) in enumerate(instances):
            self.put(f"{name}/instances/i{number}", {"address": address, "version": version})
        self.put(f"{name}/service", {"sticky": [{"header": "x-user-id"}], "stable": "v1", **settings})

    def split(self, name: str, weights: dict[str, float]) -> dict[str, Any]:
        """A bare split, and what the leader made of it."""
        self.put(f"{name}/split", weights)

        def look() -> Any:
            found = self.get(f"{name}/split")
            return found if found.get("weights") == weights and "slots" in found else None

        found: dict[str, Any] = until(look, f"{weights} completed")
        return found


@contextlib.contextmanager
def keys(cluster: Cluster) -> Iterator[Keys]:
    with cluster.nodes[0].store() as store:
        yield Keys(store)


@contextlib.contextmanager
def nodes(folder: Path, cluster: Cluster, *names: str, **etcd: Any) -> Iterator[list[Proxy]]:
    """One proxy for each name."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(proxies.running(folder / name, document(cluster, name, **etcd))) for name in names]


def applied(*proxies_: Proxy, revision: int) -> list[Status]:
    """Waits until all workers of all proxies serve it or a later one."""

    def look(proxy: Proxy) -> Status | None:
        status = proxy.status()
        served = [worker["revision"] or 0 for worker in status["workers"]]
        return status if min([status["revision"], *served]) >= revision else None

    return [until(lambda proxy=proxy: look(proxy), f"revision {revision}") for proxy in proxies_]  # type: ignore[misc]


def errors(proxy: Proxy) -> list[dict[str, Any]]:
    """What the proxy refuses now."""
    refusal = proxy.status()["refusal"]
    return [] if refusal is None else list(refusal["errors"])


def versions(proxy: Proxy, users: int = 100) -> dict[int, str | None]:
    """What each of so many users gets, over several connections, so of several workers."""
    clients = [proxy.client() for _ in range(4)]
    found = {}
    for user in range(users):
        answer = clients[user % 4].ask(headers=[f"X-User-Id: user-{user}"])
        assert answer.status == 200, answer.error
        assert answer.get("x-upstream") == answer.get("x-graylb-version")
        found[user] = answer.get("x-graylb-version")
    for client in clients:
        client.close()
    return found


def revision(proxy: Proxy) -> int:
    """That an answer names."""
    client = proxy.client()
    answer = client.ask().get("x-graylb-revision")
    client.close()
    assert answer is not None
    return int(answer)
