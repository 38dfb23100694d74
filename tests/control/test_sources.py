"""What every source promises, on each of them: all there is, then every change, in order, with nothing left out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from graylb.control.etcd_source import EtcdSource
from graylb.control.file_source import FileSource
from graylb.control.sources import Fragment, Source, Update
from tests.control.etcd import servers
from tests.control.etcd.support import client, run, until


@dataclass
class Store:
    """What a source is made of. write: None removes."""

    source: Source
    write: Callable[[str, bytes | None], None]


@asynccontextmanager
async def files(folder: Path) -> AsyncIterator[Store]:
    def write(key: str, value: bytes | None) -> None:
        path = folder / key.rpartition("/")[2]
        if value is None:
            path.unlink()
        else:
            fresh = path.with_suffix(".new")
            fresh.write_bytes(value)
            fresh.replace(path)

    async with FileSource([folder / "a", folder / "b"]) as source:
        yield Store(source, write)


@asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Store]:
    with servers.running(folder / "etcd") as cluster, cluster.nodes[0].store() as store:

        def write(key: str, value: bytes | None) -> None:
            if value is None:
                store.delete(f"/graylb/{key}")
            else:
                store.put(f"/graylb/{key}", value)

        async with client(cluster) as ours, EtcdSource(ours, "/graylb/", "services/") as source:
            yield Store(source, write)


@pytest.mark.parametrize("kind", [files, etcd])
def test_all_there_is_then_every_change(
    tmp_path: Path, kind: Callable[[Path], AbstractAsyncContextManager[Store]]
) -> None:
    async def test() -> None:
        async with kind(tmp_path) as store:
            store.write("services/a", b"one")
            updates: list[Update] = []
            here: dict[str, Fragment] = {}

            async def follow() -> None:
                async for update in store.source.updates():
                    if update.whole:
                        here.clear()
                    for key, each in update.changes.items():
                        if each is None:
                            del here[key]  # it was told before, or this has no business here
                        else:
                            assert each.key == key
                            assert each.revision <= update.revision
                            here[key] = each
                    updates.append(update)

            def seen(**wanted: bytes) -> Callable[[], bool]:
                return lambda: {key.rpartition("/")[2]: each.value for key, each in here.items()} == wanted

            task = asyncio.create_task(follow())
            await until(seen(a=b"one"), "the first one")
            assert updates[0].whole
            assert (health := store.source.health()).connected
            assert health.error == ""
            first = next(iter(here.values()))
            assert store.source.prefix + first.key in (str(tmp_path / "a"), "/graylb/services/a")
            store.write("services/b", b"two")
            await until(seen(a=b"one", b=b"two"), "another key")
            assert here[first.key] is first
            store.write("services/a", b"three")
            await until(seen(a=b"three", b=b"two"), "another value")
            assert here[first.key].revision > first.revision
            store.write("services/b", None)
            await until(seen(a=b"three"), "a key that went")
            revisions = [each.revision for each in updates]
            assert revisions == sorted(revisions)
            assert not any(each.whole for each in updates[1:])
            assert store.source.health().revision == revisions[-1]
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    run(test())


def test_what_is_touched_and_the_same_is_told_without_a_change(tmp_path: Path) -> None:
    """Somebody may have saved it to have it looked at again."""

    async def test() -> None:
        (tmp_path / "a").write_bytes(b"one")
        source = FileSource([tmp_path / "a"])
        updates = source.updates()
        first = await anext(updates)
        (tmp_path / "b").write_bytes(b"one")
        (tmp_path / "b").replace(tmp_path / "a")
        assert await anext(updates) == Update(first.revision + 1, {})
        await updates.aclose()

    run(test())


def test_a_file_that_cannot_be_read_is_told_by_its_health(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "a").mkdir()
        source = FileSource([tmp_path / "a"])
        updates = source.updates()
        assert (await anext(updates)).changes == {}
        assert not source.health().connected
        assert str(tmp_path / "a") in source.health().error
        await updates.aclose()

    run(test())
