"""The two sides of a comparison as snapshots: documents as they are or would be in force, and former revisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graylb.control import prepare
from graylb.control.state import SERVICE_SPLIT, Content, State, UnknownTarget
from graylb.model import build
from graylb.model.documents import Document
from graylb.model.snapshot import Snapshot, Split


def in_place(old: Path, new: Path, state: State) -> tuple[Snapshot, Snapshot]:
    """The document `old` on its state, and `new` as it would be in force if it took that document's place.

    So slots move as they would, and what commands have set holds for the services that `new` leaves as they are.
    Raises ConfigErrors.
    """
    before, snapshot = prepare.prepare(prepare.read(old), state, at=prepare.now())
    _, after = prepare.prepare(prepare.read(new), before.state, at=prepare.now())
    return snapshot, after


def now(document: Path, state: State) -> tuple[Document, State, Snapshot]:
    """The document as it is in force: with what commands changed, its state, its snapshot. Raises ConfigErrors."""
    completion, snapshot = prepare.prepare(prepare.read(document), state, at=prepare.now())
    return completion.document, completion.state, snapshot


def at_revision(document: Document, state: State, revision: int) -> Snapshot:
    """What was in force at a revision, as far as the history keeps it: each service's split, rules and settings.

    Instances and lists are data that the history does not keep, nor does it keep anything beyond the services: those
    of `document` stand in. The snapshot has the services of that revision and no routes but their short forms. Raises
    UnknownTarget.
    """
    if not 0 < revision <= state.revision:
        raise UnknownTarget(f"no revision {revision}; the history is at revision {state.revision}")
    data = document.to_data().get("services", {})
    services: dict[str, Any] = {}
    splits: dict[build.SplitId, Split] = {}
    for name in sorted(state.services):
        content = _content(state, name, revision)
        if content is None:
            continue
        kept = {key: data[name][key] for key in ("instances", "lists") if key in data.get(name, {})}
        services[name] = {**content.part, "stable": content.stable, **kept}
        for rule, split in content.splits.items():
            id_ = (name, None if rule == SERVICE_SPLIT else rule)
            splits[id_] = Split(tuple(split.weights.items()), split.salt, split.slots)
    # what a document must be as a whole, a service of the past need not: its list may be gone by now
    whole = Document.model_validate({"listeners": [{"address": "127.0.0.1:0"}], "services": services})
    return build.build(whole, splits, revision)


def _content(state: State, service: str, revision: int) -> Content | None:
    """None when there was no such service. Raises UnknownTarget when its content is no longer kept."""
    found = state.services[service]
    changes = [change for change in found.changes if change.revision <= revision]
    if not changes:
        if found.changes[0].action == "file" and "new" in found.changes[0].what:
            return None
        raise UnknownTarget(f"the history of {service} no longer reaches back to revision {revision}")
    digest = changes[-1].content
    if digest is None:
        return None
    if digest not in found.contents:
        raise UnknownTarget(f"{service} at revision {revision} is no longer kept")
    return found.contents[digest]
