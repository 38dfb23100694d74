"""What frameworks write is put into a real etcd by another client, listed by ours, and understood."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.values import KeyValue
from graylb.control.registry_sources import RegistrySources
from graylb.model import documents
from graylb.model.registries import LAYOUTS, PREFIXES, Layout, parse
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import client, run
from tests.model.registry_data import GOLDEN


@pytest.mark.parametrize("layout", LAYOUTS)
def test_instances_are_read_from_etcd_as_they_are(etcd: Cluster, layout: Layout) -> None:
    examples = {key: (value, expected) for each, key, value, expected in GOLDEN if each == layout}
    with etcd.nodes[0].store() as store:
        for key, (value, _) in examples.items():
            store.put(key, value)

    async def listed() -> dict[str, KeyValue]:
        async with client(etcd) as ours:
            # go-zero writes at the root, beside everything else
            start = PREFIXES[layout] or "user.rpc"
            return (await ours.list(f"{start}/")).items

    items = run(listed())
    assert items.keys() == examples.keys()
    assert {key: parse(layout, PREFIXES[layout], key, each.value) for key, each in items.items()} == {
        key: expected for key, (_, expected) in examples.items()
    }


def test_registries_of_one_etcd_share_a_client_also_with_our_own_keys(etcd: Cluster, tmp_path: Path) -> None:
    here = {"endpoints": list(etcd.endpoints)}
    parts = [{"kind": "kratos"}, {"kind": "kitex", "etcd": here}, {"kind": "grpc-go", "etcd": {**here, "user": "ann"}}]
    (tmp_path / "password").write_text("secret")
    parts[2]["etcd"]["password_file"] = "password"  # type: ignore[index]
    text = orjson.dumps({"listeners": [{"address": "127.0.0.1:0"}], "etcd": here, "registries": parts})
    document = documents.load(text, "x")

    async def clients() -> list[Client]:
        async with client(etcd) as ours:
            sources = RegistrySources(document.registries, document.etcd, tmp_path)
            await sources.start(ours, lambda index, update: None)
            found = [each.client for each in sources.sources]
            await sources.close()
            assert await ours.get("anything") is None  # it is not ours to close
            return [*found, ours]

    kratos, kitex, grpc_go, ours = run(clients())
    assert kratos is ours
    assert kitex is ours
    assert grpc_go is not ours


def test_settings_of_a_registry_that_cannot_be_are_told_with_its_name(tmp_path: Path) -> None:
    part = {"kind": "kratos", "etcd": {"ca": "none.pem"}}
    document = documents.load(orjson.dumps({"listeners": [{"address": "127.0.0.1:0"}], "registries": [part]}), "x")
    with pytest.raises(ValueError, match=r"^registry kratos: etcd: .*none\.pem is not a file"):
        RegistrySources(document.registries, None, tmp_path)
