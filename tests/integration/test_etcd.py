"""graylb on a real etcd: what is put there is decided by, everywhere; and what goes wrong there hurts nobody."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster
from tests.integration import etcds, proxies
from tests.integration.load import Load
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Upstream, running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with servers.running(tmp_path / "etcd") as found:
        yield found


@pytest.fixture
def two() -> Iterator[list[Upstream]]:
    with running("v1", "v2") as ups:
        yield ups


def instances(ups: list[Upstream]) -> list[tuple[str, str]]:
    return [(up.address, up.name) for up in ups]


def test_a_put_is_decided_by_on_all_workers_of_two_nodes(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a", "b") as pair:
        keys.service("users", *instances(two))
        before: dict[int, str | None] = {}
        for share in (0, 5, 20, 50, 100):
            weights = {"v1": 100 - share, "v2": share}
            split = keys.split("users", weights)
            assert split["weights"] == weights
            etcds.applied(*pair, revision=keys.revision("users/split"))
            here, there = (etcds.versions(proxy) for proxy in pair)
            assert here == there
            assert [user for user in before if before[user] == "v2" and here[user] != "v2"] == []
            before = here
        assert set(before.values()) == {"v2"}
        assert {etcds.revision(proxy) for proxy in pair} == {keys.revision("users/split")}


def test_what_is_invalid_keeps_the_last_good_of_its_key_and_is_told_until_mended(
    tmp_path: Path, cluster: Cluster, two: list[Upstream]
) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        keys.service("users", *instances(two))
        keys.split("users", {"v1": 50, "v2": 50})
        etcds.applied(proxy, revision=keys.revision("users/split"))
        before = etcds.versions(proxy)
        keys.put("users/split", {"v1": -1})
        keys.put("users/rules/bad", '{"match": {"pth": "/x"}, "to": "v2"}')
        keys.put("users/service", '{"stable": "v1",')
        keys.put("orders/service", {"hosts": ["orders.test"], "stable": "v1"})  # others are not held up
        until(lambda: len(etcds.errors(proxy)) == 3, "three refusals")
        found = {each["file"]: (each["path"], each["expected"]) for each in etcds.errors(proxy)}
        assert found["/graylb/services/users/split"] == ("$.v1", "a number >= 0")
        assert found["/graylb/services/users/rules/bad"][0] == "$.match.pth"
        assert "JSON" in found["/graylb/services/users/service"][1]
        until(lambda: {each["name"] for each in proxy.call("/services")} == {"orders", "users"}, "both services")
        assert etcds.versions(proxy) == before

        def told() -> Any:
            node, _ = keys.store.get("/graylb/nodes/a")
            return node is not None and {each["key"] for each in json.loads(node)["refused"]} == set(found)

        until(told, "the node's status in etcd")
        keys.split("users", {"v1": 50, "v2": 50})
        keys.delete("users/rules/bad")
        keys.service("users")
        until(lambda: not etcds.errors(proxy), "mended")
        assert etcds.versions(proxy) == before


def test_an_instance_goes_with_its_lease(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        one, other = two
        keys.put("users/instances/one", {"address": one.address, "version": "v1"})
        lease = keys.store.lease(60)
        keys.put("users/instances/two", {"address": other.address, "version": "v1"}, lease=lease)
        until(lambda: proxy.call("/services") and proxy.call("/services")[0]["instances"] == 2, "two instances")
        lease.revoke()
        until(lambda: proxy.call("/services")[0]["instances"] == 1, "one instance")
        assert set(etcds.versions(proxy, 10).values()) == {"v1"}


def test_an_instance_goes_when_nobody_keeps_its_lease(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        one, other = two
        keys.put("users/instances/one", {"address": one.address, "version": "v1"})
        lease = keys.store.lease(2)
        gone = keys.put("users/instances/two", {"address": other.address, "version": "v1"}, lease=lease)
        etcds.applied(proxy, revision=gone)
        until(lambda: proxy.call("/services")[0]["instances"] == 1, "its time is over")
        assert proxy.status()["etcd"]["applied"] > gone
        assert set(etcds.versions(proxy, 10).values()) == {"v1"}
        assert one.name in {answer_of(proxy) for _ in range(4)}
        assert other.name not in {answer_of(proxy) for _ in range(4)}


def answer_of(proxy: Proxy) -> str | None:
    """Which upstream answers."""
    client = proxy.client()
    answer = client.ask()
    client.close()
    return answer.get("x-upstream")


def test_etcd_killed_under_load_and_graylb_restarted_meanwhile(
    tmp_path: Path, cluster: Cluster, two: list[Upstream]
) -> None:
    with etcds.keys(cluster) as keys:
        with etcds.nodes(tmp_path, cluster, "a") as (proxy,):
            keys.service("users", *instances(two))
            for share in (5, 20):
                keys.split("users", {"v1": 100 - share, "v2": share})
            etcds.applied(proxy, revision=keys.revision("users/split"))
            before = etcds.versions(proxy)
            with Load(proxy) as load:
                cluster.nodes[0].kill()
                until(lambda: not proxy.status()["etcd"]["connected"], "the loss noticed")
                load.wait_more(100)
            load.check()
        again = Proxy(tmp_path / "a", proxy.document)
        with contextlib.ExitStack() as stack:
            stack.callback(again.kill)
            status = again.status()["etcd"]
            assert status["last_good"]["served"] is True
            assert not status["connected"]
            assert etcds.versions(again) == before
            cluster.nodes[0].restart()
            keys.put("users/split", {"v1": 50, "v2": 50})
            until(lambda: not again.status()["etcd"]["last_good"]["served"], "caught up")
            until(lambda: again.status()["etcd"]["connected"], "connected")
            until(lambda: "slots" in keys.get("users/split"), "completed")
            etcds.applied(again, revision=keys.revision("users/split"))
            now = etcds.versions(again)
            assert [user for user in before if before[user] == "v2" and now[user] != "v2"] == []
            assert "v2" in now.values()
            again.stop()


def test_all_keys_gone_at_once_is_an_alarm_and_one_that_goes_is_not(
    tmp_path: Path, cluster: Cluster, two: list[Upstream]
) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        keys.service("users", *instances(two))
        keys.put("orders/instances/one", {"address": two[0].address, "version": "v1"})
        keys.put("orders/service", {"hosts": ["orders.test"]})
        until(lambda: len(proxy.call("/services")) == 2, "two services")
        keys.store.delete_prefix("/graylb/services/orders/")
        until(lambda: len(proxy.call("/services")) == 1, "one service")
        keys.store.delete_prefix("/graylb/services/")
        until(lambda: "mishap" in json.dumps(etcds.errors(proxy)), "the alarm")
        assert len(etcds.versions(proxy)) == 100
        keys.service("users", (two[1].address, "v2"), stable="v2")
        until(lambda: not etcds.errors(proxy), "no alarm")
        assert set(etcds.versions(proxy).values()) == {"v2"}


def test_instances_from_etcd_and_rules_from_the_file(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    rule = {"name": "testers", "match": {"headers": {"x-group": "test"}}, "to": "v2"}
    doc = etcds.document(cluster, "a", {"users": {"stable": "v1", "rules": [rule]}})
    with etcds.keys(cluster) as keys, proxies.running(tmp_path / "a", doc) as proxy:
        for up in two:
            keys.put(f"users/instances/{up.name}", {"address": up.address, "version": up.name})
        until(lambda: proxy.call("/services")[0]["instances"] == 2, "two instances")
        client = proxy.client()
        assert client.ask().get("x-upstream") == "v1"
        assert client.ask(headers=["X-Group: test"]).get("x-upstream") == "v2"
        keys.put("users/rules/testers", {"match": {"headers": {"x-group": "test"}}, "to": "v1"})
        etcds.applied(proxy, revision=keys.revision("users/rules/testers"))
        assert client.ask(headers=["X-Group: test"]).get("x-upstream") == "v1"
        keys.delete("users/rules/testers")  # then the file's rule is in force again
        until(lambda: client.ask(headers=["X-Group: test"]).get("x-upstream") == "v2", "the file's rule")
        client.close()


def test_two_who_write_at_once_end_in_one_complete_split(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a", "b") as pair:
        keys.service("users", *instances(two))
        keys.split("users", {"v1": 90, "v2": 10})
        for share in range(11, 41):
            keys.put("users/split", {"v1": 100 - share, "v2": share})
            keys.put("users/split", {"v1": 100 - share - 1, "v2": share + 1})
        split = keys.split("users", {"v1": 50, "v2": 50})
        etcds.applied(*pair, revision=keys.revision("users/split"))
        here, there = (etcds.versions(proxy) for proxy in pair)
        assert here == there
        assert split["weights"] == {"v1": 50, "v2": 50}
        assert keys.get("users/split") == split
        assert all(not etcds.errors(proxy) for proxy in pair)


def test_a_split_of_a_rule_is_completed_within_it(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        keys.service("users", *instances(two))
        rule = {"match": {"query": {"exp": "a"}}, "split": {"v2": 1}, "priority": 3}
        keys.put("users/rules/ab", rule)
        found = until(lambda: "slots" in (now := keys.get("users/rules/ab"))["split"] and now, "completed")
        assert {key: found[key] for key in ("match", "priority")} == {key: rule[key] for key in ("match", "priority")}
        etcds.applied(proxy, revision=keys.revision("users/rules/ab"))
        client = proxy.client()
        answer = client.ask(target="/?exp=a", headers=["X-User-Id: ann"])
        assert (answer.get("x-upstream"), answer.get("x-graylb-rule")) == ("v2", "ab")
        client.close()


def test_the_leader_is_killed_while_splits_wait(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a", "b") as pair:
        keys.service("users", *instances(two))
        keys.split("users", {"v1": 80, "v2": 20})
        etcds.applied(*pair, revision=keys.revision("users/split"))
        before = etcds.versions(pair[0])
        name, _ = keys.store.get("/graylb/leader")
        leader, other = pair if name == b"a" else pair[::-1]
        leader.kill()
        keys.put("users/split", {"v1": 70, "v2": 30})
        keys.put("users/split", {"v1": 60, "v2": 40})
        assert etcds.versions(other) == before
        until(lambda: "slots" in keys.get("users/split"), "completed by the next leader")
        assert keys.get("users/split")["weights"] == {"v1": 60, "v2": 40}
        etcds.applied(other, revision=keys.revision("users/split"))
        now = etcds.versions(other)
        assert [user for user in before if before[user] == "v2" and now[user] != "v2"] == []
        leader.start()  # `nodes` stops both
        etcds.applied(leader, revision=keys.revision("users/split"))
        assert etcds.versions(leader) == now


def test_a_new_leader_that_knows_nothing_reads_the_former_split_from_history(
    tmp_path: Path, cluster: Cluster, two: list[Upstream]
) -> None:
    with etcds.keys(cluster) as keys:
        with etcds.nodes(tmp_path / "then", cluster, "a") as (proxy,):
            keys.service("users", *instances(two))
            for share in (50, 20):
                keys.split("users", {"v1": 100 - share, "v2": share})
            etcds.applied(proxy, revision=keys.revision("users/split"))
            before = etcds.versions(proxy)
        for share in (25, 30):
            keys.put("users/split", {"v1": 100 - share, "v2": share})
        with etcds.nodes(tmp_path / "now", cluster, "b") as (proxy,):  # no file of a former life
            until(lambda: "slots" in keys.get("users/split"), "completed")
            etcds.applied(proxy, revision=keys.revision("users/split"))
            now = etcds.versions(proxy)
            assert [user for user in before if before[user] == "v2" and now[user] != "v2"] == []
            assert sum(version == "v2" for version in now.values()) > sum(
                version == "v2" for version in before.values()
            )


def test_what_was_compacted_while_etcd_was_away_is_read_anew(
    tmp_path: Path, cluster: Cluster, two: list[Upstream]
) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        keys.service("users", *instances(two))
        keys.put("users/instances/extra", {"address": "127.0.0.1:1", "version": "v3"})
        until(lambda: proxy.call("/services") and proxy.call("/services")[0]["instances"] == 3, "three instances")
        proxy.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        keys.delete("users/instances/extra")
        for number in range(20):
            revision = keys.put("users/lists/filler", [str(number)])
        cluster.nodes[0].restart()
        keys.store.compact(revision)
        proxy.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        until(lambda: proxy.call("/services")[0]["instances"] == 2, "the deletion noticed")
        etcds.applied(proxy, revision=revision)


def test_without_etcd_and_anything_kept_the_document_alone_serves_or_nothing_starts(
    tmp_path: Path, two: list[Upstream]
) -> None:
    (port,) = servers.free_ports(1)
    etcd = {"endpoints": [f"127.0.0.1:{port}"]}
    alone = proxies.document({"users": proxies.service(two[0].address)}, etcd=etcd)
    with proxies.running(tmp_path / "alone", alone) as proxy:
        assert set(etcds.versions(proxy, 5).values()) == {"v1"}
        assert not proxy.status()["etcd"]["connected"]
        assert "127.0.0.1" in proxy.status()["etcd"]["error"]


def test_settings_of_etcd_that_cannot_be_are_told_at_the_start(tmp_path: Path) -> None:
    document = proxies.document({}, etcd={"endpoints": ["127.0.0.1:1"], "user": "ann", "password_file": "none"})
    with pytest.raises(AssertionError, match=r"\$\.etcd: etcd: password_file none cannot be read"):
        Proxy(tmp_path, document)


def test_a_roll_hands_over_what_belongs_to_etcd(tmp_path: Path, cluster: Cluster, two: list[Upstream]) -> None:
    with etcds.keys(cluster) as keys, etcds.nodes(tmp_path, cluster, "a") as (proxy,):
        keys.service("users", *instances(two))
        keys.split("users", {"v1": 80, "v2": 20})
        etcds.applied(proxy, revision=keys.revision("users/split"))
        before, pid = etcds.versions(proxy), proxy.pid
        with Load(proxy) as load:
            proxy.process.send_signal(signal.SIGUSR2)  # type: ignore[union-attr]
            successor = until(lambda: (now := proxy.status()["pid"]) != pid and now, "the successor")
            assert proxy.process is not None
            proxy.process.wait(20)
            keys.split("users", {"v1": 70, "v2": 30})  # by the successor, for nobody else is there
            etcds.applied(proxy, revision=keys.revision("users/split"))
            now = etcds.versions(proxy)
        load.check()
        assert [user for user in before if before[user] == "v2" and now[user] != "v2"] == []
        node, _ = keys.store.get("/graylb/nodes/a")
        assert json.loads(node)["node"] == "a"
        psutil.Process(successor).terminate()
        psutil.wait_procs([psutil.Process(successor)], timeout=20)
        proxy.start()  # `nodes` stops it


@pytest.mark.parametrize(("user", "password"), [("root", "secret"), ("ann", "hidden")])
def test_with_a_password_and_as_a_reader_that_may_not_write(
    tmp_path: Path, two: list[Upstream], user: str, password: str
) -> None:
    with servers.running(tmp_path / "etcd") as cluster:
        with etcds.keys(cluster) as keys:
            keys.service("users", *instances(two))
        servers.secure(cluster.nodes[0], reader=("ann", "hidden", "/graylb/"))
        folder = tmp_path / user
        folder.mkdir()
        (folder / "password").write_text(password + "\n")
        document = etcds.document(cluster, user, user=user, password_file="password")
        with proxies.running(folder, document) as proxy:
            assert set(etcds.versions(proxy, 5).values()) == {"v1"}
            if user == "ann":
                until(lambda: "permission denied" in str(proxy.status()["etcd"]["problems_writing"]), "the problem")
            else:
                until(lambda: proxy.status()["etcd"]["leader"] == "root", "a leader")
                assert proxy.status()["etcd"]["problems_writing"] == []
