"""What frameworks write is put into a real etcd by another client, listed by ours, and understood."""

from __future__ import annotations

import pytest

from graylb.control.etcd.values import KeyValue
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
