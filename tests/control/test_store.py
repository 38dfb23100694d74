"""The state file: atomic, locked, compared before it is swapped, and never replaced when it is damaged."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from graylb.control import state as states
from graylb.control import store as stores
from graylb.control.state import State
from graylb.control.store import Conflict, Store, StoreError, state_path
from tests.control.parts import document, load, with_split

AT = "2026-01-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one document in it."""
    made = Store(state_path(tmp_path / "graylb.yaml"))
    made.put(states.complete(load(document()), State(), at=AT).state, expected=0)
    return made


def split(state: State, share: int, who: str = "ann") -> State:
    return with_split(state, {"v1": 100 - share, "v2": share}, AT, who, "ramp")


def test_it_lies_beside_the_document_under_a_name_of_its_own(tmp_path: Path) -> None:
    assert state_path(tmp_path / "a.yaml") != state_path(tmp_path / "a.json")
    assert Store(tmp_path / "a.yaml.state.json").lock_path == tmp_path / "a.yaml.state.lock"


def test_what_was_written_is_read_again(store: Store) -> None:
    after = store.update(lambda state: split(state, 20))
    assert Store(store.path).read() == after
    assert {path.name for path in store.path.parent.iterdir()} == {store.path.name, store.lock_path.name}


def test_an_unchanged_state_is_not_written(store: Store) -> None:
    before = store.path.stat()
    store.update(lambda state: state)
    assert store.path.stat().st_ino == before.st_ino


def test_a_writer_who_looked_at_an_old_revision_hears_who_changed_what(store: Store) -> None:
    store.update(lambda state: split(state, 50, who="bob"))
    with pytest.raises(Conflict) as caught:
        store.update(lambda state: split(state, 20), expected=1)
    message = str(caught.value)
    assert "at revision 2, not 1" in message
    assert "bob set the split of users to v1=50 v2=50" in message
    assert "(ramp)" in message


def test_writers_in_several_processes_lose_nothing(store: Store) -> None:
    script = """
import sys
from pathlib import Path
from tests.control.test_store import split
from graylb.control.store import Store
store = Store(Path(sys.argv[1]))
for share in range(1, 11):
    store.update(lambda state: split(state, share, who=sys.argv[2]))
"""
    command = [sys.executable, "-c", script, str(store.path)]
    root = Path(__file__).resolve().parents[2]
    writers = [subprocess.Popen([*command, name], cwd=root) for name in ("ann", "bob")]
    assert [writer.wait(30) for writer in writers] == [0, 0]
    state = store.read()
    assert state.revision == 21
    revisions = [change.revision for change in state.services["users"].changes]
    assert revisions == list(range(1, 22))


def test_a_lock_that_is_never_released_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LOCK_PATIENCE", 0.05)
    with store.lock_path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="locked by another process"):
            store.update(lambda state: split(state, 20))


def test_readers_never_see_half_a_state(store: Store) -> None:
    def read(_: int) -> int:
        return store.read().revision

    with ThreadPoolExecutor(2) as pool:
        seen = pool.map(read, range(60))
        for share in range(1, 16):
            store.update(lambda state, share=share: split(state, share))  # type: ignore[misc]
        revisions = list(seen)
    assert min(revisions) >= 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: b"[]",
        lambda text: text.replace(b'"v2": 5.0', b'"v2": 6.0'),
        lambda text: text.replace(b'"changes"', b'"chances"'),
        lambda text: b"\xff\xfe",
    ],
    ids=["empty", "half", "no state", "altered", "key", "no text"],
)
def test_a_damaged_file_is_told_and_stays_as_it_is(store: Store, damage: object) -> None:
    assert callable(damage)
    text = damage(store.path.read_bytes())
    store.path.write_bytes(text)
    for attempt in (store.read, lambda: store.update(lambda state: split(state, 20))):
        with pytest.raises(StoreError, match="is damaged") as caught:
            attempt()
        assert str(store.path) in str(caught.value)
        assert "move it away" in str(caught.value)
    assert store.path.read_bytes() == text


def test_a_newer_format_is_not_guessed_at(store: Store) -> None:
    store.path.write_bytes(store.path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(StoreError, match="is of format 2, this graylb knows 1"):
        store.read()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    missing = Store(tmp_path / "nowhere" / "x.state.json")
    with pytest.raises(StoreError, match=r"cannot be written: No such file or directory.*--state"):
        missing.put(State(1), expected=0)


def test_a_service_without_changes_is_no_state(store: Store) -> None:
    state = store.read()
    broken = replace(state, services={"users": replace(state.services["users"], changes=())})
    store.update(lambda _: broken)
    with pytest.raises(StoreError, match="service users has no changes"):
        store.read()
