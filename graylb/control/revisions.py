"""What differs between two revisions of a store, as far as its history tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from graylb.control import views
from graylb.control.config_store import ConfigStore, Item, Record, View
from graylb.control.state import UnknownTarget
from graylb.model import build
from graylb.model.documents import Document
from graylb.model.snapshot import Snapshot, Split
from graylb.release.diff import Diff
from graylb.release.diff import diff as compare

NOT_KEPT: Final = "instances and lists are those of now; routes and settings beyond services are not in the history"


async def diff(store: ConfigStore, a: int, b: int | None = None) -> Diff:
    """Of two revisions; b: None for what is in force now. Raises UnknownTarget, ConfigErrors, ConfigStoreError."""
    view = await store.read()
    records = await store.history()
    found = compare(*(at_revision(view, records, each) for each in (a, view.revision if b is None else b)))
    return replace(found, notes=(*found.notes, NOT_KEPT))


def at_revision(view: View, records: tuple[Record, ...], revision: int) -> Snapshot:
    """What was in force then, as far as the history keeps it: each service's split, rules and settings.

    Instances and lists are data that the history does not keep, nor does it keep anything beyond the services: those
    of the view stand in. The snapshot has the services of that revision and no routes but their short forms. Raises
    UnknownTarget.
    """
    if not 0 < revision <= view.revision:
        raise UnknownTarget(f"no revision {revision}; the history is at revision {view.revision}")
    items: dict[str, Item] = {}
    for service in sorted({*views.services_of(view), *(record.service for record in records)}):
        found = _at(view, service, [record for record in records if record.service == service], revision)
        if found:
            data = views.items_of(view, service, ("instances", "lists"))
            items |= {key: Item(value, revision) for key, value in (found | data).items()}
    services = views.document_of(replace(view, items=items))["services"]
    splits: dict[build.SplitId, Split] = {}
    for name, service in services.items():
        for rule, split in _splits(service):
            splits[name, rule] = Split(
                tuple((version, weight) for version, weight in split["weights"].items() if weight > 0),
                split["salt"],
                split["slots"],
            )
    # what a document must be as a whole, a service of the past need not: its list may be gone by now
    whole = Document.model_validate({"listeners": [{"address": "127.0.0.1:0"}], "services": services})
    return build.build(whole, splits, revision)


def _at(view: View, service: str, records: list[Record], revision: int) -> dict[str, bytes]:
    """Settings, split and rules of a service; nothing where there was none. Raises UnknownTarget."""
    now = views.items_of(view, service)
    if not records:
        return now
    for record, items in views.points(now, records):
        if record.revision <= revision:
            if not record.known:
                raise UnknownTarget(f"{service} at revision {revision} is no longer kept")
            return items
    if records[-1].previous == 0:
        return {}
    raise UnknownTarget(f"the history of {service} no longer reaches back to revision {revision}")


def _splits(service: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    found: list[tuple[str | None, dict[str, Any]]] = [(None, service["split"])] if "split" in service else []
    return found + [(rule["name"], rule["split"]) for rule in service.get("rules", ()) if "split" in rule]
