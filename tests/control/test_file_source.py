"""Every way in which a file can come to be different is noticed, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from graylb.control.file_source import FileSource

PATIENCE = 10.0


class Watched:
    """Counts what a source reports."""

    def __init__(self, source: FileSource) -> None:
        self.source, self.count = source, 0
        self.moved = asyncio.Event()

    async def follow(self) -> None:
        async for _ in self.source.changes():
            self.count += 1
            self.moved.set()

    async def next(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.moved.wait()
        self.moved.clear()


@asynccontextmanager
async def watching(*files: Path) -> AsyncIterator[Watched]:
    watched = Watched(FileSource(files))
    task = asyncio.create_task(watched.follow())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def write_in_place(path: Path) -> None:
    path.write_text("two")


def replace_by_rename(path: Path) -> None:
    fresh = path.with_name(".fresh")
    fresh.write_text("two")
    fresh.replace(path)


def same_size_and_time(path: Path) -> None:
    """As `cp -p` or a careless restore would."""
    import os

    before = path.stat()
    path.write_text("ONE")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [write_in_place, replace_by_rename, same_size_and_time, remove])
def test_a_file_that_changes(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("one")

    async def test() -> None:
        async with watching(path) as watched:
            change(path)
            await watched.next()

    run(test)


def test_a_file_that_appears_and_its_directory_too(tmp_path: Path) -> None:
    path = tmp_path / "later" / "x.yaml"

    async def test() -> None:
        async with watching(path) as watched:
            path.parent.mkdir()
            path.write_text("one")
            await watched.next()
            path.write_text("two and more")
            await watched.next()

    run(test)


def test_a_config_map_that_swaps_its_link(tmp_path: Path) -> None:
    """What a kubelet does: x.yaml -> ..data/x.yaml, ..data -> ..1, then a new directory and one rename."""
    for number in ("1", "2"):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "x.yaml").write_text(number)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "x.yaml").symlink_to("..data/x.yaml")

    async def test() -> None:
        async with watching(tmp_path / "x.yaml") as watched:
            (tmp_path / "..tmp").symlink_to("..2")
            (tmp_path / "..tmp").rename(tmp_path / "..data")
            await watched.next()
            (tmp_path / "..2" / "x.yaml").write_text("within the new directory")
            await watched.next()

    run(test)


def test_a_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "real.yaml"
    target.parent.mkdir()
    target.write_text("one")
    link = tmp_path / "here" / "x.yaml"
    link.parent.mkdir()
    link.symlink_to(target)

    async def test() -> None:
        async with watching(link) as watched:
            replace_by_rename(target)
            await watched.next()

    run(test)


def test_neighbours_do_not_count_and_a_file_of_later_does(tmp_path: Path) -> None:
    path, ids = tmp_path / "x.yaml", tmp_path / "lists" / "ids.txt"
    ids.parent.mkdir()
    for each in (path, ids):
        each.write_text("one")

    async def test() -> None:
        async with watching(path) as watched:
            (tmp_path / "neighbour").write_text("x")
            ids.write_text("not watched yet")
            watched.source.watch_also([path, ids])
            path.write_text("first")
            await watched.next()
            assert watched.count == 1
            ids.write_text("watched now")
            await watched.next()

    run(test)
