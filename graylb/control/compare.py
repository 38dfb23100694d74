"""The two sides of a comparison of documents as snapshots: as they are or would be in force."""

from __future__ import annotations

from pathlib import Path

from graylb.control import prepare
from graylb.control.state import State
from graylb.model.snapshot import Snapshot


def in_place(old: Path, new: Path, state: State) -> tuple[Snapshot, Snapshot]:
    """The document `old` on its state, and `new` as it would be in force if it took that document's place.

    So slots move as they would, and what commands have set holds for the services that `new` leaves as they are.
    Raises ConfigErrors.
    """
    before, snapshot = prepare.prepare(prepare.read(old), state, at=prepare.now())
    _, after = prepare.prepare(prepare.read(new), before.state, at=prepare.now())
    return snapshot, after
