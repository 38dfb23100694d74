"""Services that other frameworks registered in a real etcd get requests as if graylb had registered them itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graylb.model.registries import LAYOUTS, Layout
from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.integration import etcds, proxies
from tests.integration.proxies import Document, Proxy, until
from tests.integration.upstream import Upstream, running

Written = tuple[str, str]
"""Key and value."""


def go_micro(address: str, version: str, number: int) -> Written:
    value = (
        f'{{"name":"greeter","version":"{version}","metadata":null,"endpoints":[],"nodes":[{{"metadata":'
        f'{{"broker":"http","protocol":"http","registry":"etcd","server":"http","transport":"http"}},'
        f'"id":"greeter-{number}","address":"{address}"}}]}}'
    )
    return f"/micro/registry/greeter/greeter-{number}", value


def kratos(address: str, version: str, number: int) -> Written:
    value = (
        f'{{"id":"{number}","name":"user","version":"{version}","metadata":{{}},"endpoints":'
        f'["http://{address}?isSecure=false","grpc://127.0.0.1:1?isSecure=false"]}}'
    )
    return f"/microservices/user/{number}", value


def go_zero(address: str, version: str, number: int) -> Written:
    """Has no place for a version but the key's name."""
    return f"user.rpc.{version}/758787045898167783{number}", address


def grpc_go(address: str, version: str, number: int) -> Written:
    return f"svc/orders/{address}", f'{{"Op":0,"Addr":"{address}","Metadata":{{"version":"{version}"}}}}'


def kitex(address: str, version: str, number: int) -> Written:
    value = f'{{"network":"tcp","address":"{address}","weight":10,"tags":{{"version":"{version}"}}}}'
    return f"kitex/registry-etcd/echo/{address}", value


def dubbo_go(address: str, version: str, number: int) -> Written:
    host, _, port = address.partition(":")
    value = (
        f'{{"ID":"{address}","ServiceName":"shop","Host":"{host}","Port":{port},"Weight":0,"Enable":true,'
        f'"Healthy":true,"Metadata":{{"version":"{version}"}},"Tag":""}}'
    )
    return f"/services/shop/{address}", value


WRITERS: dict[Layout, Callable[[str, str, int], Written]] = {
    "go-micro": go_micro,
    "kratos": kratos,
    "go-zero": go_zero,
    "grpc-go": grpc_go,
    "kitex": kitex,
    "dubbo-go": dubbo_go,
}
NAMES: dict[Layout, str] = {
    "go-micro": "greeter",
    "kratos": "user",
    "go-zero": "user.rpc",
    "grpc-go": "orders",
    "kitex": "echo",
    "dubbo-go": "shop",
}


def test_every_layout_is_written_here() -> None:
    assert set(WRITERS) == set(NAMES) == set(LAYOUTS)


def rule(version: str) -> dict[str, Any]:
    return {"name": version, "match": {"headers": {"x-want": version}}, "to": version, "fallback": "strict"}


def service(kind: str) -> dict[str, Any]:
    return {"hosts": [f"{kind}.test"], "stable": "v1", "rules": [rule("v1"), rule("v2"), rule("v3")]}


def registry(cluster: Cluster, kind: Layout, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "etcd": {"endpoints": list(cluster.endpoints)},
        "services": {NAMES[kind]: f"of-{kind}"},
        **more,
    }


def document(cluster: Cluster, *kinds: Layout) -> Document:
    """A document without keys of our own."""
    services = {f"of-{kind}": service(kind) for kind in kinds}
    return proxies.document(services, workers=2, registries=[registry(cluster, kind) for kind in kinds])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with servers.running(tmp_path / "etcd") as found:
        yield found


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Any]:
    with cluster.nodes[0].store() as found:
        yield found


@pytest.fixture
def two() -> Iterator[list[Upstream]]:
    with running("one", "two") as ups:
        yield ups


def asked(proxy: Proxy, kind: str, want: str = "") -> tuple[int, str | None, str | None]:
    """(status, who answered, as which version)."""
    client = proxy.client()
    try:
        answer = client.ask(host=f"{kind}.test", headers=[f"X-Want: {want}"] if want else [])
        return answer.status, answer.get("x-upstream"), answer.get("x-graylb-version")
    finally:
        client.close()


def until_asked(proxy: Proxy, kind: str, want: str, expected: tuple[int, str | None, str | None]) -> None:
    """On both workers, which each take every other connection or so."""
    until(lambda: all(asked(proxy, kind, want) == expected for _ in range(8)), f"{kind} {want}: {expected}")


def test_instances_of_every_framework_get_requests_by_version_until_their_lease_ends(
    tmp_path: Path, cluster: Cluster, store: Any, two: list[Upstream]
) -> None:
    """All at once, as leases take their time to end."""
    one, other = (up.address for up in two)
    with proxies.running(tmp_path, document(cluster, *LAYOUTS)) as proxy:
        steady, brief = store.lease(600), store.lease(600)
        for write in WRITERS.values():
            store.put(*write(one, "v1", 1), lease=steady)
            store.put(*write(other, "v2", 2), lease=brief)
        for kind in LAYOUTS:
            until_asked(proxy, kind, "v2", (200, "two", "v2"))
            until_asked(proxy, kind, "", (200, "one", "v1"))
            assert asked(proxy, kind, "v3")[0] == 503
        assert {each["name"]: each["instances"] for each in proxy.status()["registries"]} == dict.fromkeys(LAYOUTS, 2)
        again = store.lease(2)
        for kind, write in WRITERS.items():  # another version under the same address, and under a lease that ends
            key, value = write(other, "v3", 2)
            if kind == "go-zero":
                store.delete(write(other, "v2", 2)[0])
            store.put(key, value, lease=again)
        for kind in LAYOUTS:
            until_asked(proxy, kind, "v3", (200, "two", "v3"))
            assert asked(proxy, kind, "v2")[0] == 503
        for kind in LAYOUTS:  # nobody keeps it alive
            until_asked(proxy, kind, "v3", (503, None, None))
            assert asked(proxy, kind) == (200, "one", "v1")
        assert etcds.errors(proxy) == []
        assert json.dumps(proxy.status()["registries"]).count('"connected": true') == len(LAYOUTS)


def test_a_start_without_the_registry_serves_what_was_good_last(
    tmp_path: Path, cluster: Cluster, store: Any, two: list[Upstream]
) -> None:
    one, other = (up.address for up in two)
    with proxies.running(tmp_path / "proxy", document(cluster, "kratos", "kitex")) as proxy:
        store.put(*kratos(one, "v1", 1))
        store.put(*kitex(one, "v1", 1))
        store.put(*kratos(other, "v2", 2))
        until_asked(proxy, "kratos", "v2", (200, "two", "v2"))
        until_asked(proxy, "kitex", "", (200, "one", "v1"))
        split = proxies.cli("split", "of-kratos", "v1=0", "v2=100", "--admin", proxy.admin)
        assert "v2=100" in split.stdout, split.stderr
        until_asked(proxy, "kratos", "", (200, "two", "v2"))
        proxy.stop()
        cluster.nodes[0].kill()
        proxy.start()
        assert asked(proxy, "kratos") == (200, "two", "v2")
        assert asked(proxy, "kratos", "v1") == (200, "one", "v1")
        assert asked(proxy, "kitex") == (200, "one", "v1")
        assert [each["connected"] for each in proxy.status()["registries"]] == [False, False]
        told = " ".join(proxies.cli("status", "--admin", proxy.admin).stdout.split())
        assert "registry kratos at /microservices/: 2 instances of 1 services not followed since" in told
        cluster.nodes[0].restart()
        store.put(*kratos(other, "v3", 2))
        until_asked(proxy, "kratos", "v3", (200, "two", "v3"))
        until(lambda: all(each["connected"] for each in proxy.status()["registries"]), "both followed")


def test_rules_by_key_instances_from_registries_of_two_etcds_and_all_of_them_gone_at_once(
    tmp_path: Path, cluster: Cluster, store: Any, two: list[Upstream]
) -> None:
    one, other = (up.address for up in two)
    with servers.running(tmp_path / "another") as elsewhere, elsewhere.nodes[0].store() as there:
        parts = [{"kind": "kratos"}, registry(elsewhere, "kitex", services={"echo": "user"})]
        doc = etcds.document(cluster, "a")
        with (
            proxies.running(tmp_path / "proxy", {**doc, "registries": parts}) as proxy,
            etcds.keys(cluster) as keys,
        ):
            keys.put("user/service", {"hosts": ["kratos.test"], "stable": "v1"})
            keys.put("user/rules/two", {"match": {"headers": {"x-want": "v2"}}, "to": "v2", "fallback": "strict"})
            store.put(*kratos(one, "v1", 1))
            there.put(*kitex(other, "v2", 2))
            until_asked(proxy, "kratos", "", (200, "one", "v1"))
            until_asked(proxy, "kratos", "v2", (200, "two", "v2"))
            store.put(*kratos(one, "v1", 3))  # another key of the same address
            until(lambda: proxy.status()["registries"][0]["keys"] == 2, "both keys")
            elsewhere.nodes[0].kill()
            until(lambda: not proxy.status()["registries"][1]["connected"], "that it is away")
            assert asked(proxy, "kratos", "v2") == (200, "two", "v2")
            assert proxy.status()["registries"][0]["connected"]
            store.delete_prefix("/microservices/")
            until(lambda: "went at once" in json.dumps(etcds.errors(proxy)), "the alarm")
            assert asked(proxy, "kratos") == (200, "one", "v1")

            def told() -> bool:
                text, _ = keys.store.get("/graylb/nodes/a")
                found = json.loads(text)["registries"] if text is not None else []
                return [(each["name"], each["instances"], each["held"]) for each in found] == [
                    ("kratos", 2, 2),
                    ("kitex", 1, 0),
                ]

            until(told, "the node's status in etcd")
            store.put(*kratos(one, "v2", 1))
            until(lambda: not etcds.errors(proxy), "no alarm")
            until(lambda: {asked(proxy, "kratos", "v2")[1] for _ in range(16)} == {"one", "two"}, "both in v2")
            proxy.write({**doc, "registries": parts[:1]})
            until(lambda: proxy.status()["restart_needed"] == ["registries"], "that a roll is needed")
            assert asked(proxy, "kratos", "v2")[0] == 200
