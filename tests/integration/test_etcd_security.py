"""graylb on an etcd that insists on certificates and passwords, by the document's settings alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.links import Options
from tests.control.etcd import servers
from tests.control.etcd.certificates import Certificates
from tests.control.etcd.servers import Cluster, secure
from tests.integration import etcds, proxies
from tests.integration.proxies import until
from tests.integration.upstream import running

SECRET = "s3cret words"


def put(etcd: Cluster, options: dict[str, Any], items: dict[str, str]) -> int:
    """The revision of the last one."""

    async def all_of_them() -> int:
        async with Client(Options(tuple(f"https://{each}" for each in etcd.endpoints), **options)) as store:
            return [await store.put("/graylb/services/" + key, value.encode()) for key, value in items.items()][-1]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("password", [False, True], ids=["certificate", "certificate and password"])
def test_keys_behind_certificates_and_a_password(tmp_path: Path, password: bool) -> None:
    """The whole way: instances and a bare split are read, the split is completed and the node tells its status."""
    made = Certificates(tmp_path, "127.0.0.1")
    cert, key = made.client
    part: dict[str, Any] = {"ca": made.ca.name, "cert": cert.name, "key": key.name}  # beside the document
    options: dict[str, Any] = {"ca": made.ca, "cert": cert, "key": key}
    if password:
        (tmp_path / "password").write_text(SECRET + "\n")
        part |= {"user": "root", "password_file": "password"}
        options |= {"user": "root", "password": SECRET}
    with running("v1", "v2") as ups, servers.running(tmp_path / "etcd", tls=made.tls(mutual=True)) as etcd:
        if password:
            secure(etcd.nodes[0], SECRET)
        addresses = [f"https://{each}" for each in etcd.endpoints]
        document = etcds.document(etcd, "a") | {"etcd": {"endpoints": addresses, "node": "a", **part}}
        with proxies.running(tmp_path, document) as proxy:
            items = {
                f"users/instances/{up.name}": f'{{"address": "{up.address}", "version": "{up.name}"}}' for up in ups
            }
            items["users/service"] = '{"sticky": [{"header": "x-user-id"}], "stable": "v1"}'
            items["users/split"] = '{"v1": 50, "v2": 50}'
            revision = put(etcd, options, items)
            etcds.applied(proxy, revision=revision + 1)  # the completion comes after it
            assert set(etcds.versions(proxy).values()) == {"v1", "v2"}
            assert proxy.status()["etcd"]["problems_writing"] == []


@pytest.mark.parametrize("wrong", ["ca", "no certificate", "password"])
def test_who_is_not_let_in_says_why_and_serves_what_the_document_has(tmp_path: Path, wrong: str) -> None:
    made = Certificates(tmp_path, "127.0.0.1")
    cert, key = made.client
    part: dict[str, Any] = {"ca": made.ca.name, "cert": cert.name, "key": key.name}
    if wrong == "ca":
        part["ca"] = made.other_ca.name
    elif wrong == "no certificate":
        del part["cert"], part["key"]
    else:
        (tmp_path / "password").write_text("no, it is not")
        part |= {"user": "root", "password_file": "password"}
    with running("v1") as (up,), servers.running(tmp_path / "etcd", tls=made.tls(mutual=True)) as etcd:
        secure(etcd.nodes[0], SECRET)
        own = {"users": {"instances": [{"address": up.address, "version": "v1"}]}}
        addresses = [f"https://{each}" for each in etcd.endpoints]
        document = etcds.document(etcd, "a", own) | {"etcd": {"endpoints": addresses, "node": "a", **part}}
        with proxies.running(tmp_path, document) as proxy:
            said = until(lambda: proxy.status()["etcd"]["error"], "why")
            assert not proxy.status()["etcd"]["connected"]
            assert addresses[0].removeprefix("https://") in said or "password" in said
            client = proxy.client()
            assert client.ask(headers=["X-User-Id: 1"]).get("x-upstream") == "v1"
            client.close()
