"""What the source says is applied, or the last good stays and the status says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from graylb import _fast
from graylb.control import operations, prepare
from graylb.control.file_config import FileConfigStore
from graylb.control.operations import Outcome
from graylb.control.plane import Plane, StartRefused
from graylb.control.prepare import Applied
from graylb.control.store import Store, state_path
from tests.control.parts import document, users, write


async def command(path: Path, **weights: float) -> Outcome:
    """`graylb split users`"""
    async with FileConfigStore(path, Store(state_path(path))) as store:
        return await operations.set_split(store, "users", weights, who="ann")


class Workers:
    """Takes every table that loads; refuses what it is told to."""

    def __init__(self) -> None:
        self.served: list[int] = []
        self.refuse: set[int] = set()

    async def publish(self, new: Applied, last: Applied) -> list[str]:
        _fast.Table(new.image)
        if new.revision in self.refuse:
            return ["worker 0: told to"]
        self.served.append(new.revision)
        return []


def plane_of(path: Path) -> Plane:
    return Plane(path, Store(state_path(path)))


@asynccontextmanager
async def started(path: Path) -> AsyncIterator[tuple[Plane, Workers]]:
    plane, workers = plane_of(path), Workers()
    workers.served.append((await plane.start()).revision)
    yield plane, workers


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def with_split(share: int) -> dict[str, Any]:
    return document(users=users(split={"v1": 100 - share, "v2": share}))


def test_a_change_is_applied_and_the_same_again_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            write(tmp_path, with_split(50))
            await plane.follow(workers.publish)
            write(tmp_path, orjson.dumps(with_split(50)).decode())  # another text, the same document
            await plane.follow(workers.publish)
            assert workers.served == [1, 2]
            assert plane.services()[0]["split"] == {"v1": 50, "v2": 50}

    run(test)


def test_a_restart_gives_the_same_revision_slots_and_digest(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            write(tmp_path, with_split(50))
            await plane.follow(workers.publish)
            first = plane.applied
        again = await plane_of(path).start()
        assert first is not None
        assert (again.revision, again.digest, again.image) == (first.revision, first.digest, first.image)

    run(test)


def test_what_is_invalid_changes_nothing_and_shows_until_it_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            before = plane.status()
            write(tmp_path, document(users=users(fallback="perhaps", stable=7.5, spit={})))
            await plane.follow(workers.publish)
            status = plane.status()
            assert (status["revision"], status["digest"]) == (before["revision"], before["digest"])
            texts = [error["text"] for error in status["refusal"]["errors"]]
            assert any("perhaps" in text and str(path) in text for text in texts)
            assert any("spit" in text for text in texts)
            since = status["refusal"]["since"]
            write(tmp_path, "{")
            await plane.follow(workers.publish)
            refusal = plane.status()["refusal"]
            assert refusal["since"] == since
            assert len(refusal["errors"]) == 1
            write(tmp_path, document())
            await plane.follow(workers.publish)
            assert plane.status()["refusal"] is None
            assert workers.served == [1]

    run(test)


def test_a_command_is_applied_also_while_the_document_is_invalid(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            write(tmp_path, "services: [")
            await plane.follow(workers.publish)
            outcome = await command(path, v1=1, v2=1)
            assert "not valid" in outcome.note
            await plane.follow(workers.publish)
            assert workers.served == [1, outcome.revision]
            assert plane.services()[0]["split"] == {"v1": 1, "v2": 1}
            assert plane.status()["refusal"] is not None

    run(test)


def test_what_workers_refuse_is_not_offered_again_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            workers.refuse = {2}
            write(tmp_path, with_split(50))
            await plane.follow(workers.publish)
            workers.refuse = set()
            await plane.follow(workers.publish)
            assert plane.status()["revision"] == 1
            assert plane.status()["refusal"]["errors"] == [{"text": "revision 2 refused by worker 0: told to"}]
            write(tmp_path, with_split(51))
            await plane.follow(workers.publish)
            assert (workers.served, plane.status()["refusal"]) == ([1, 3], None)

    run(test)


def test_a_damaged_state_file_is_an_alarm_while_it_runs_and_no_start(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            good = state_path(path).read_bytes()
            state_path(path).write_bytes(good[:100])
            write(tmp_path, with_split(50))
            await plane.follow(workers.publish)
            (error,) = plane.status()["refusal"]["errors"]
            assert "is damaged" in error["text"]
            with pytest.raises(StartRefused, match="is damaged"):
                await plane_of(path).start()
            assert state_path(path).read_bytes() == good[:100]
            state_path(path).write_bytes(good)
            await plane.follow(workers.publish)
            assert workers.served == [1, 2]

    run(test)


@pytest.mark.parametrize("text", ["", "{", "services: {}", "listeners: []\nservices: {users: {}}"])
def test_it_does_not_start_without_a_good_document(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(StartRefused, match=str(path)):
        asyncio.run(plane_of(path).start())
    assert not state_path(path).exists()


def test_a_missing_document_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="cannot be read: No such file"):
        asyncio.run(plane_of(tmp_path / "none.yaml").start())


def test_list_files_are_read_beside_the_document_and_followed(tmp_path: Path) -> None:
    rule = {"name": "staff", "match": {"headers": {"x-user-id": {"in": "staff"}}}, "to": "v2"}
    (tmp_path / "ids.txt").write_text("ann\n")
    path = write(tmp_path, document(users=users(rules=[rule], lists={"staff": {"file": "ids.txt"}})))

    async def test() -> None:
        async with started(path) as (plane, workers):
            assert tmp_path / "ids.txt" in plane.source.files
            (tmp_path / "ids.txt").write_text("ann\nbob\n")
            await plane.follow(workers.publish)
            assert plane.applied is not None
            assert plane.applied.snapshot.services[0].lists == (("staff", ("ann", "bob")),)
            (tmp_path / "ids.txt").unlink()
            await plane.follow(workers.publish)
            assert "ids.txt" in plane.status()["refusal"]["errors"][0]["text"]
            assert workers.served == [1, 2]

    run(test)


def test_list_files_are_followed_under_a_command_s_override_too(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("ann\n# a comment\n")
    lists = {"staff": {"file": "ids.txt"}, "own": ["x # y"]}
    path = write(tmp_path, document(users=users(lists=lists)))

    async def test() -> None:
        async with started(path) as (plane, workers):
            await command(path, v2=1)
            await plane.follow(workers.publish)
            (tmp_path / "ids.txt").write_text("bob\n")
            await plane.follow(workers.publish)
            assert plane.applied is not None
            (service,) = plane.applied.snapshot.services
            assert service.lists == (("own", ("x # y",)), ("staff", ("bob",)))
            assert plane.services()[0]["split"] == {"v2": 1}
            assert workers.served == [1, 2, 3]

    run(test)


def test_run_follows_files_and_commands_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path, document())

    async def test() -> None:
        async with started(path) as (plane, workers):
            applied = asyncio.Event()

            async def publish(new: Applied, last: Applied) -> list[str]:
                applied.set()
                return await workers.publish(new, last)

            following = asyncio.create_task(plane.run(publish))
            write(tmp_path, with_split(20))
            await asyncio.wait_for(applied.wait(), 10)
            applied.clear()
            await command(path, v1=1, v2=1)
            await asyncio.wait_for(applied.wait(), 10)
            assert workers.served == [1, 2, 3]
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    run(test)


def test_a_command_that_comes_between_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, document())
    read = Store.read
    once = iter([True])

    def read_then_command(self: Store) -> Any:
        state = read(self)
        if state.revision and next(once, False):
            asyncio.run(command(path, v1=1, v3=1))  # this is a thread of its own
        return state

    async def test() -> None:
        async with started(path) as (plane, workers):
            write(tmp_path, {**document(), "decision_headers": True})
            monkeypatch.setattr(Store, "read", read_then_command)
            await plane.follow(workers.publish)
            assert plane.services()[0]["split"] == {"v1": 1, "v3": 1}

    run(test)


def test_times_are_utc_to_the_second() -> None:
    assert prepare.now()[-1] == "Z"
    assert len(prepare.now()) == len("2026-01-01T00:00:00Z")
