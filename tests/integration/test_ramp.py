"""A release from 1 to 100 % under load: monotone for every user, no failure, and the same after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import proxies
from tests.integration.load import Load
from tests.integration.proxies import Proxy
from tests.integration.upstream import running

USERS = 500
RAMPS = {"document": [1, 5, 20, 50, 100], "command": [5, 50, 100]}  # a command starts an interpreter


def versions_of_users(proxy: Proxy) -> dict[str, str | None]:
    """Which version each user gets; asked over several connections, so of several workers."""
    found: dict[str, str | None] = {}
    clients = [proxy.client() for _ in range(4)]
    for number in range(USERS):
        answer = clients[number % 4].ask(headers=[f"X-User-Id: user-{number}"])
        assert answer.status == 200
        assert answer.get("x-upstream") == answer.get("x-graylb-version")
        found[f"user-{number}"] = answer.get("x-graylb-version")
    for client in clients:
        client.close()
    return found


def split(v2: float) -> dict[str, float]:
    return {"v1": 100 - v2, "v2": v2} if v2 < 100 else {"v2": 100}


@pytest.mark.parametrize("by", RAMPS)
def test_ramp(tmp_path: Path, by: str) -> None:
    with running("v1", "v2") as (one, two):
        users = proxies.service(
            (one.address, "v1"), (two.address, "v2"), sticky=[{"header": "x-user-id"}], split={"v1": 100}
        )
        doc = proxies.document({"users": users}, workers=2)
        with proxies.running(tmp_path, doc) as proxy, Load(proxy) as load:
            known = versions_of_users(proxy)
            assert set(known.values()) == {"v1"}
            for step in RAMPS[by]:
                if by == "document":
                    users = {**users, "split": split(step)}
                    proxy.edit({**proxy.document, "services": {"users": users}})
                else:
                    weights = [f"{version}={weight:g}" for version, weight in split(step).items()]
                    done = proxies.cli("split", "users", *weights, "-c", proxy.file, "--admin", proxy.admin)
                    assert "applied by the running proxy" in done.stdout, done.stderr
                now = versions_of_users(proxy)
                back = [user for user in known if known[user] == "v2" and now[user] != "v2"]
                assert not back, f"at {step} % these left v2: {back}"
                share = sum(version == "v2" for version in now.values()) / USERS
                sigma = (step / 100 * (1 - step / 100) / USERS) ** 0.5
                assert abs(share - step / 100) <= 4 * sigma, f"{share:.3f} at {step} %"
                known = now
            assert set(known.values()) == {"v2"}
        load.check()


def test_users_keep_their_version_over_a_restart_and_between_workers(tmp_path: Path) -> None:
    with running("v1", "v2", "v3") as (one, two, three):
        instances = ((one.address, "v1"), (two.address, "v2"), (three.address, "v3"))
        users = proxies.service(*instances, sticky=[{"header": "x-user-id"}], split={"v1": 100})
        doc = proxies.document({"users": users}, workers=2)
        with proxies.running(tmp_path, doc) as proxy:
            for weights in ({"v1": 80, "v2": 20}, {"v1": 50, "v2": 20, "v3": 30}):
                users = {**users, "split": weights}
                proxy.edit({**proxy.document, "services": {"users": users}})
            before = versions_of_users(proxy)
            revision = proxy.revision
        assert set(before.values()) == {"v1", "v2", "v3"}
        again = Proxy(tmp_path, proxy.document)
        try:
            assert versions_of_users(again) == before
            assert again.revision >= revision
        finally:
            again.stop()


def test_one_user_one_version(tmp_path: Path) -> None:
    """The same user over many new connections (all workers) is always on one version."""
    with running("v1", "v2") as (one, two):
        users = proxies.service(
            (one.address, "v1"), (two.address, "v2"), sticky=[{"header": "x-user-id"}], split={"v1": 50, "v2": 50}
        )
        with proxies.running(tmp_path, proxies.document({"users": users}, workers=2)) as proxy:
            for user in ("alice", "bob", "carol"):
                found = set()
                for _ in range(20):
                    with proxy.client() as client:
                        found.add(client.ask(headers=[f"X-User-Id: {user}"]).get("x-graylb-version"))
                assert len(found) == 1
