"""The admin API on etcd: what is changed at one node is in force at all, and told by all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.integration import admins, etcds
from tests.integration.admins import graylb, says
from tests.integration.proxies import until
from tests.integration.upstream import running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with servers.running(tmp_path / "etcd") as found:
        yield found


def test_services_made_changed_and_rolled_back(tmp_path: Path, cluster: Cluster) -> None:
    with (
        running("v1", "v2") as ups,
        etcds.nodes(tmp_path, cluster, "a", "b") as pair,
        admins.client(pair[0], user="ann") as client,
        admins.client(pair[1], user="bob") as other,
    ):

        def done(answer: Any) -> Any:
            assert answer.status_code == 200, answer.text
            assert answer.json()["applied"], answer.text
            return answer.json()

        settings = {"sticky": [{"header": "x-user-id"}], "stable": "v1", "hosts": ["*"]}
        done(client.put("/services/users/settings", params={"wait": 20}, json={"settings": settings}))
        items = {
            f"services/users/instances/{each.name}": {"address": each.address, "version": each.name} for each in ups
        }
        done(client.post("/config", params={"wait": 20}, json={"items": items}))
        split = done(
            client.put(
                "/services/users/split", params={"wait": 20}, json={"weights": {"v1": 1, "v2": 3}, "reason": "x"}
            )
        )
        etcds.applied(*pair, revision=split["revision"])
        here, there = (etcds.versions(proxy) for proxy in pair)
        assert here == there
        assert set(here.values()) == {"v1", "v2"}

        tag = other.get("/services/users/split").headers["etag"]
        body = {"weights": {"v2": 1}, "reason": "all"}
        all_of_it = done(client.put("/services/users/split", params={"wait": 20}, json=body, headers={"if-match": tag}))
        says(
            other.put("/services/users/split", json=body | {"weights": {"v1": 1}}, headers={"if-match": tag}),
            409,
            "ann",
        )
        done(other.post("/services/users/rollback", params={"wait": 20}))
        etcds.applied(*pair, revision=all_of_it["revision"] + 1)
        assert etcds.versions(pair[0]) == here

        told = client.get("/history?service=users").json()
        assert [(each["who"], each["why"], each["action"]) for each in told[:3]] == [
            ("bob", "", "rollback"),
            ("ann", "all", "split"),
            ("ann", "x", "split"),
        ]
        until(lambda: {each["node"] for each in client.get("/nodes").json()} == {"a", "b"}, "both nodes told")
        says(client.post("/config", json={"items": {"services/users/split": {"v1": "x"}}}), 422, "services/users/split")
        says(client.put("/services/orders/split", json={"weights": {"v1": 1}}), 404)

        # a command at the address of either
        result = graylb("split", "users", "v1=9", "v2=1", "--admin", pair[1].admin)
        assert (result.exit_code, "applied by the running proxy" in result.output) == (0, True), result.output
        assert "v1=9 v2=1" in graylb("history", "users", "--admin", pair[0].admin).output


@pytest.mark.slow
def test_without_etcd_what_is_in_force_is_told_and_nothing_is_pretended(tmp_path: Path, cluster: Cluster) -> None:
    with (
        running("v1") as (up,),
        etcds.keys(cluster) as keys,
        etcds.nodes(tmp_path, cluster, "a") as (proxy,),
        admins.client(proxy) as client,
    ):
        keys.service("users", (up.address, "v1"), hosts=["*"])
        etcds.applied(proxy, revision=keys.revision("users/service"))
        for node in cluster.nodes:
            node.kill()
        until(lambda: not client.get("/status").json()["etcd"]["connected"], "the loss noticed")
        assert client.get("/services/users").json()["stable"] == "v1"
        answer = client.put("/services/users/split", json={"weights": {"v1": 1}}, timeout=60)
        assert says(answer, 503)["error"] == "store"
        lost = graylb("split", "users", "v1=1", "--admin", proxy.admin)
        assert (lost.exit_code, len(lost.stderr.splitlines())) == (1, 1)
