"""Records of changes as keys in etcd: `history/SERVICE/…` below the prefix, one for each change of one service. No I/O.

A change made through graylb has its record in the same transaction, so the record's creation tells the revision. A
change past graylb is recorded later, under a key that names the revision, so that it is recorded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import orjson

from graylb.control import state as states
from graylb.control.config_store import Action, Record
from graylb.control.etcd.values import KeyValue

ROOT: Final = "history/"
LARGE: Final = 256 << 10
"""Bytes of a value, beyond which a record names the key only: a transaction of etcd is 1.5 MB at most."""


def key_of(service: str, revision: int, unique: str) -> str:
    """Of a change based on `revision`; in the order of names records are about in that of their making."""
    return f"{ROOT}{service}/{revision:016}-{unique}"


def put_key(service: str, revision: int) -> str:
    """Of the change that was made past graylb in `revision`."""
    return f"{ROOT}{service}/{revision:016}-put"


def encode(record: Record, *, revision: bool) -> bytes:
    """The value of a record's key. revision: where the key's creation does not tell it."""
    large = {key for side in (record.before, record.after) for key, each in side.items() if each and len(each) > LARGE}
    # lists and instances are data that nothing goes back to
    known = record.known and not any(_is_content(key) for key in large)
    data: dict[str, Any] = {
        "at": record.at,
        "who": record.who,
        "why": record.why,
        "action": record.action,
        "keys": sorted({*record.before, *record.after}),
        "before": _texts(record.before, large) if known else {},
        "after": _texts(record.after, large) if known else {},
    }
    if record.to is not None:
        data["to"] = record.to
    if not known:
        data["known"] = False
    if revision:
        data |= {"revision": record.revision, "previous": record.previous}
    return orjson.dumps(data)


def decode(item: KeyValue, prefix: str) -> Record | None:
    """None for what is no record. previous: as far as the record itself knows; `in_order` completes it."""
    service, _, _ = item.key[len(prefix) + len(ROOT) :].partition("/")
    try:
        data = orjson.loads(item.value)
        if data["action"] not in get_args(Action):
            return None
        return Record(
            service=service,
            revision=int(data.get("revision", item.create_revision)),
            previous=int(data.get("previous", 0)),
            at=str(data["at"]),
            who=str(data["who"]),
            why=str(data["why"]),
            action=data["action"],
            before=_values(data["keys"], data["before"]),
            after=_values(data["keys"], data["after"]),
            to=data.get("to"),
            known=data.get("known", True),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class Kept:
    """One record where it stands. revision: of the key's newest put."""

    key: str
    revision: int
    record: Record


def read(items: Iterable[KeyValue], prefix: str) -> dict[str, list[Kept]]:
    """service -> records, oldest first, each with the change before."""
    found: dict[str, list[Kept]] = {}
    for item in items:
        record = decode(item, prefix)
        if record is not None:
            found.setdefault(record.service, []).append(Kept(item.key, item.mod_revision, record))
    for service, kept in found.items():
        kept.sort(key=lambda each: each.record.revision)
        former = kept[0].record.previous
        for number, each in enumerate(kept):
            kept[number] = replace(each, record=replace(each.record, previous=former))
            former = each.record.revision
        found[service] = kept
    return found


def shown(found: Mapping[str, list[Kept]]) -> tuple[Record, ...]:
    """Newest first; what is not kept for ever is not told, trimmed or not."""
    records: list[Record] = []
    for kept in found.values():
        newest = kept[::-1][: states.KEEP_CHANGES]
        records += [each.record for each in newest[: states.KEEP_CONTENTS]]
        records += [forgotten(each.record) for each in newest[states.KEEP_CONTENTS :]]
    return tuple(sorted(records, key=lambda each: (-each.revision, each.service)))


def to_trim(kept: list[Kept]) -> tuple[list[Kept], list[tuple[Kept, bytes]]]:
    """(records to delete, records with the value that they should have instead)."""
    newest = kept[::-1]
    old = newest[states.KEEP_CONTENTS : states.KEEP_CHANGES]
    lean = [(each, encode(forgotten(each.record), revision=True)) for each in old if each.record.known]
    return newest[states.KEEP_CHANGES :], lean


def forgotten(record: Record) -> Record:
    """Without its values."""
    nothing = dict.fromkeys({*record.before, *record.after})
    return replace(record, before=nothing, after=nothing, known=False)


_DONE: Final = {
    "split": "set the split of {service}",
    "rollback": "rolled {service} back to revision {to}",
    "set": "set {keys}",
    "delete": "deleted {keys}",
    "apply": "applied a document to {service}",
    "rollout": "moved the rollout of {service}",
    "put": "somebody put or deleted {keys} past graylb",
}


def told(record: Record) -> str:
    """One change in words, for messages."""
    text = _DONE.get(record.action, "changed {service}")
    keys = ", ".join(sorted({*record.before, *record.after}))
    done = text.format(service=record.service, keys=keys, to=record.to)
    who = "" if record.action == "put" else record.who + " "
    return f"{who}{done} in revision {record.revision} at {record.at}" + (f" ({record.why})" if record.why else "")


def _is_content(key: str) -> bool:
    return key.split("/")[2] not in ("lists", "instances")


def _texts(values: Mapping[str, bytes | None], without: set[str]) -> dict[str, str | None]:
    return {key: None if value is None else value.decode() for key, value in values.items() if key not in without}


def _values(keys: Iterable[str], texts: Mapping[str, str | None]) -> dict[str, bytes | None]:
    return {key: text.encode() if (text := texts.get(key)) is not None else None for key in keys}
