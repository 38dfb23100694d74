"""From files to a table: read → validate → complete → build → compile. For the running plane and for commands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EIO, EMFILE, ENFILE, ENOMEM
from pathlib import Path
from typing import TYPE_CHECKING, Final

from graylb import table
from graylb.control import alarms
from graylb.control import state as states
from graylb.control.assembly import Assembly, base_of
from graylb.control.fragments import Fragments
from graylb.control.store import Store
from graylb.model import build, documents
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.snapshot import Split

if TYPE_CHECKING:
    from graylb.control.state import Completion, State
    from graylb.model import presets
    from graylb.model.documents import Document
    from graylb.model.snapshot import Snapshot


SHORT: Final = (EMFILE, ENFILE, ENOMEM, EIO)
"""Errors of the system that pass without a change of the files."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One revision, ready for workers. `document` is what the file says, before the commands' overrides."""

    document: Document
    snapshot: Snapshot
    image: bytes
    digest: str
    state: State
    at: str

    @property
    def revision(self) -> int:
        return self.snapshot.revision


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Passing(ConfigErrors):
    """Files that could not be read for a reason that may be gone in a moment: no descriptors, no memory."""


def read(path: Path, preset: presets.Name | None = None) -> Document:
    """The document in a file with the list files that it names, and with what its preset fills in.

    preset: one that the command line asks for. Raises ConfigErrors, also when the file cannot be read; then Passing
    where it is worth another try.
    """
    passing = False
    try:
        text = path.read_bytes()
    except OSError as error:
        alarms.note(error)
        why = f"the document cannot be read: {error.strerror}"
        kind = Passing if error.errno in SHORT else ConfigErrors
        raise kind([ConfigError(str(path), 1, 1, "", message=why, expected="a readable file")]) from error

    def read_file(name: str) -> str:
        nonlocal passing
        try:
            return (path.parent / name).read_text(encoding="utf-8")
        except OSError as error:
            alarms.note(error)
            passing = passing or error.errno in SHORT
            raise

    try:
        return documents.load(text, str(path), read_file, preset, now=int(time.time()))
    except ConfigErrors as error:
        if passing:
            raise Passing(error.errors) from error
        raise


def list_files(path: Path, document: Document) -> list[Path]:
    """The files beside the document itself that it is made of."""
    return [path.parent / name for name in document.files]


def snapshot_of(completion: Completion) -> Snapshot:
    """Raises ConfigErrors. Of a document with other sources: what it is without them."""
    if completion.document.partial:
        alone = Assembly(Fragments(""))
        alone.update(base_of(completion.document, completion.splits, "the document"), {})
        return alone.snapshot(completion.state.revision)
    splits: dict[build.SplitId, Split] = {
        (service, rule or None): Split(tuple(each.weights.items()), each.salt, each.slots)
        for (service, rule), each in completion.splits.items()
    }
    return build.build(completion.document, splits, completion.state.revision)


def prepare(document: Document, state: State, *, at: str) -> tuple[Completion, Snapshot]:
    """Completes and builds, without writing anything. Raises ConfigErrors."""
    completion = states.complete(document, state, at=at)
    return completion, snapshot_of(completion)


def apply(document: Document, store: Store, *, unless: Applied | None = None) -> Applied:
    """Completes, builds, compiles and then stores, so that what is stored is known to be sound.

    Gives `unless` back when it is what would be applied. Raises ConfigErrors, StoreError; Conflict when another writer
    came between, and then nothing is stored.
    """
    state = store.read()
    at = now()
    completion, snapshot = prepare(document, state, at=at)
    digest = snapshot.digest()
    if unless is not None and unless.digest == digest:
        return unless
    image = table.compile(snapshot)
    if completion.state != state:
        store.put(completion.state, expected=state.revision)
    return Applied(document, snapshot, image, digest, completion.state, at)
