"""What a person does to a release, on whatever store keeps it: split, rollback, get, put, apply, export, history.

Each operation reads a view, makes an edit of it, and writes that on the revision of the view. Without `expected` it
starts again when somebody else wrote meanwhile; with it (the revision that the person looked at) the Conflict is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import orjson

from graylb.control import splits, views
from graylb.control.config_store import Action, ConfigStore, ConfigStoreError, Conflict, Edit, Item, Record, View
from graylb.control.plans import in_parts, plan
from graylb.control.state import UnknownTarget, complete_split, positive
from graylb.control.store import weights_text
from graylb.model import keys
from graylb.model.documents import Document

T = TypeVar("T")

TRIES: Final = 5
AT_ONCE: Final = 120
"""Of 128 operations and comparisons that a transaction of etcd may have."""

Items = Mapping[str, bytes | None]
"""Key -> value, None to delete it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was written. before, after: the service's own split in words; keys: those that differ now.

    Without keys there was nothing to write; revision is then that of the store.
    """

    service: str
    revision: int
    before: str
    after: str
    keys: tuple[str, ...] = ()
    note: str = ""

    def to_data(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "revision": self.revision,
            "former": self.before,
            "split": self.after,
            "keys": list(self.keys),
            "note": self.note,
        }


async def set_split(
    store: ConfigStore,
    service: str,
    weights: Mapping[str, float],
    *,
    who: str,
    why: str = "",
    expected: int | None = None,
) -> Outcome:
    """Gives a service these weights (0 allowed, but not for all); salt and slots follow from the former split.

    The stable version is written down with it: left to be inferred, it would flip in the middle of a ramp. Raises
    UnknownTarget, ValueError (no split, or a version without instances), ConfigErrors, ConfigStoreError.
    """

    async def attempt(view: View) -> Outcome:
        own = _known(view, service)
        if not positive(weights) or any(not 0 <= weight < float("inf") for weight in weights.values()):
            raise ValueError(f"split of {service}: weights must be finite, not negative, and one of them positive")
        known = views.versions_of(view, service)
        for version in positive(weights):
            if known and version not in known:
                raise ValueError(f"{service} has no instance of version {version!r}; there is {', '.join(known)}")
        split, settings = keys.suffix_of(service, "split"), keys.suffix_of(service, "service")
        bare = orjson.dumps({"weights": {version: float(weight) for version, weight in weights.items()}})
        items: dict[str, bytes | None] = {split: _completed(view, split, bare)}
        stable = views.stable_of(view, service) or max(weights, key=lambda version: weights[version])
        data = orjson.loads(own[settings]) if settings in own else {}
        if "stable" not in data:
            items[settings] = orjson.dumps({**data, "stable": stable})
        return await _write(store, view, items, "split", who, why, expected)

    return await _retried(store, attempt, expected)


async def rollback(
    store: ConfigStore, service: str, *, to: int | None = None, who: str, why: str = "", expected: int | None = None
) -> Outcome:
    """Settings, rules and splits of a service, with salt and slots, as they were at revision `to`.

    Without `to`: at the newest record whose content differs from what is in force, so that a second rollback takes
    back the first. Instances and lists are data and stay as they are. Raises UnknownTarget, ConfigErrors when the
    former rules no longer fit, ConfigStoreError.
    """

    async def attempt(view: View) -> Outcome:
        _known(view, service)
        now = views.items_of(view, service)
        record, target = _target(view, service, now, await store.history(service), to)
        items: dict[str, bytes | None] = {key: None for key in now if key not in target}
        items |= {key: value for key, value in target.items() if view.ordered or now.get(key) != value}
        return await _write(store, view, items, "rollback", who, why, expected, to=record.revision)

    return await _retried(store, attempt, expected)


async def get(store: ConfigStore, key: str = "") -> dict[str, Item]:
    """The items of `look`."""
    return dict((await look(store, key)).items)


async def look(store: ConfigStore, key: str = "") -> View:
    """All keys, those of a service (`services/users`) or below a folder (`services/users/rules`), or one.

    Raises UnknownTarget when there is none.
    """
    view = await store.read()
    items = view.items
    wanted = key.strip("/")
    found = {each: item for each, item in items.items() if not wanted or each == wanted or _is_below(each, wanted)}
    if wanted and not found:
        raise UnknownTarget(f"there is no key {wanted}")
    return replace(view, items=found)


async def put(
    store: ConfigStore,
    items: Items,
    *,
    who: str,
    why: str = "",
    expected: int | None = None,
    action: Action = "set",
) -> Outcome:
    """Writes and deletes keys, all or none. A bare split, or one of a rule, is completed from the former one.

    Raises UnknownTarget when a key to delete is not there, ConfigErrors, ConfigStoreError.
    """

    async def attempt(view: View) -> Outcome:
        complete: dict[str, bytes | None] = {}
        missing: list[str] = []
        for key, value in items.items():
            if value is None and key not in view.items:
                missing.append(key)
            complete[key] = _completed(view, key, value) if value is not None else None
        if missing and view.ordered:
            raise UnknownTarget(f"there is no key {missing[0]}")
        outcome = await _write(store, view, complete, action, who, why, expected)
        if missing and not outcome.keys:
            raise UnknownTarget(f"there is no key {missing[0]}")
        return outcome

    return await _retried(store, attempt, expected)


async def apply(
    store: ConfigStore,
    document: Document,
    *,
    prune: bool = False,
    who: str,
    why: str = "",
    expected: int | None = None,
    dry_run: bool = False,
) -> list[Outcome]:
    """The services of a document as keys, in one change; one outcome for each service that differs.

    What is more than etcd takes in one transaction is written part by part, a service's instances last; where a part
    fails the error tells which services were written. Keys that the document does not have stay, unless `prune`: then
    rules, lists, split and settings of its services go. Instances are never deleted, and services that it does not name
    are left alone. dry_run: nothing is written, but checked as if it were. Raises ConfigErrors, ConfigStoreError.
    """

    async def attempt(view: View) -> list[Outcome]:
        first.append(view)
        items = plan(view, document, prune, lambda key, value: _completed(view, key, value))
        if dry_run and items:
            await store.check(Edit(items, view.revision if expected is None else max(expected, 0), who, why, "apply"))
        for part in [] if dry_run else in_parts(items, None if view.ordered else AT_ONCE):
            services = set(map(views.service_of, part))
            # what was written just now is no conflict
            based_on = max([view.revision if expected is None else expected, *(revisions.get(s, 0) for s in services)])
            try:
                revision = await store.write(Edit(part, based_on, who, why, "apply"))
            except ConfigStoreError as error:
                if not revisions or (expected is None and isinstance(error, Conflict)):
                    raise
                told = f"{error}; of the services, {', '.join(sorted(revisions))} had been written before"
                raise type(error)(told) from error
            revisions.update(dict.fromkeys(services, revision))
            written.update(part)
        found: dict[str, dict[str, bytes | None]] = {}
        for key, value in (items if dry_run else written).items():
            found.setdefault(views.service_of(key), {})[key] = value
        return [_outcome(first[0], own, own, revisions.get(name, view.revision)) for name, own in found.items()]

    revisions: dict[str, int] = {}
    written: dict[str, bytes | None] = {}
    first: list[View] = []
    return await _retried(store, attempt, expected)


async def export(store: ConfigStore) -> dict[str, Any]:
    """The services in force as one document's data, which `apply` takes back: splits with salt and slots."""
    return views.document_of(await store.read())


async def history(store: ConfigStore, service: str | None = None) -> list[dict[str, Any]]:
    """Newest first, of all services or one; JSON-ready. former, split: the service's own split in words.

    Raises UnknownTarget for a service that there is not and never was.
    """
    records = await store.history(service)
    if service is not None and not records:
        _known(await store.read(), service)
    in_words: dict[str, str] = {}
    entries: list[dict[str, Any]] = []
    for record in reversed(records):
        split = keys.suffix_of(record.service, "split")
        former = _split_words(record.before[split]) if split in record.before else in_words.get(record.service, "-")
        now = _split_words(record.after[split]) if split in record.after else former
        in_words[record.service] = now
        entries.append(
            {
                "service": record.service,
                "revision": record.revision,
                "previous": record.previous,
                "at": record.at,
                "who": record.who,
                "why": record.why,
                "action": record.action,
                "what": list(record.what or _what(record)),
                "former": former,
                "split": now,
                "keys": sorted(views.differ(record.before, record.after) or record.after),
                "to": record.to,
                "known": record.known,
            }
        )
    return entries[::-1]


# -- how they are made ---------------------------------------------------------------------------------------------


async def _retried(store: ConfigStore, attempt: Callable[[View], Awaitable[T]], expected: int | None) -> T:
    for _ in range(TRIES - 1 if expected is None else 0):
        try:
            return await attempt(await store.read())
        except Conflict:
            continue
    return await attempt(await store.read())


async def _write(
    store: ConfigStore,
    view: View,
    items: Items,
    action: Action,
    who: str,
    why: str,
    expected: int | None,
    *,
    to: int | None = None,
) -> Outcome:
    """Writes what differs; to: of a rollback, which is written as it is.

    Where a key may hold what is not in force, because it is not valid, only the store knows what differs.
    """
    based_on = view.revision if expected is None else expected
    differing = {key: value for key, value in items.items() if not views.same(key, _value(view, key), value)}
    if view.ordered and to is None:
        if not differing:
            return _outcome(view, items, differing, view.revision)
        return _outcome(view, items, differing, await store.write(Edit(differing, based_on, who, why, action, to)))
    revision = await store.write(Edit(items, based_on, who, why, action, to))
    if revision in (based_on, view.revision):
        return _outcome(view, items, {}, view.revision)
    return _outcome(view, items, differing or items, revision)


def _known(view: View, service: str) -> dict[str, bytes]:
    """Its keys. Raises UnknownTarget."""
    own = {key: item.value for key, item in view.items.items() if views.service_of(key) == service}
    if not own:
        raise UnknownTarget(f"no service {service!r}; there is {', '.join(views.services_of(view)) or 'none'}")
    return own


def _completed(view: View, key: str, value: bytes) -> bytes:
    """The value with salt and slots, from those of the split in force. Raises ConfigErrors."""
    entry = keys.decode(key, value)
    split = entry.split
    if split is None or entry.complete:
        return value
    former = splits.complete_in(key, view.items[key].value) if key in view.items else None
    before = splits.stored(former) if former is not None else None
    made = complete_split(splits.request(entry, split, views.stable_of(view, entry.service), before), before)
    return keys.completed(value, entry, made.salt, made.slots)


def _target(
    view: View, service: str, now: Mapping[str, bytes], records: Sequence[Record], to: int | None
) -> tuple[Record, dict[str, bytes]]:
    """The record to go back to, and the keys as it left them. Raises UnknownTarget."""

    def is_in_force(items: dict[str, bytes]) -> bool:
        return items == now and (not view.ordered or _rules(items) == _rules(now))

    for record, items in views.points(now, records):
        if to is not None and record.revision > to:
            continue
        if not record.known:
            if to is None:
                break
            raise UnknownTarget(f"{service} at revision {to} is no longer kept")
        if to is None and (not items or is_in_force(items)):
            continue
        if not items:
            raise UnknownTarget(f"{service} was not there at revision {to}")
        if is_in_force(items):
            raise UnknownTarget(f"{service} is already as it was at revision {to}")
        return record, items
    if to is None:
        raise UnknownTarget(f"{service} has no former split, rules or settings to go back to")
    if not records and to >= view.revision:
        raise UnknownTarget(f"{service} is already as it was at revision {to}")
    began = f"its history begins at {records[-1].revision}" if records else "there is no history of it yet"
    raise UnknownTarget(f"{service} has no revision {to}; {began}")


def _rules(items: Mapping[str, bytes]) -> list[str]:
    return [key for key in items if views.part_of(key) == "rules"]


def _outcome(view: View, asked: Items, items: Items, revision: int) -> Outcome:
    """asked: all keys that were meant; items: those that were written."""
    services = dict.fromkeys(map(views.service_of, asked))
    first = keys.suffix_of(next(iter(services)), "split") if services else ""
    before = _value(view, first)
    after = items.get(first, before)
    differing = tuple(key for key, value in items.items() if _value(view, key) != value)
    return Outcome(
        ", ".join(services), revision, _split_words(before), _split_words(after), differing or tuple(items), view.note
    )


def _value(view: View, key: str) -> bytes | None:
    return view.items[key].value if key in view.items else None


def _is_below(key: str, folder: str) -> bool:
    return key.startswith(folder + "/")


def _split_words(value: bytes | None) -> str:
    """`v1=95 v2=5`; `-` where there is no split."""
    data = orjson.loads(value) if value is not None else {}
    return weights_text(positive(data.get("weights", data)))


def _what(record: Record) -> list[str]:
    """split, rules, settings, …; new for a service's first record."""
    if record.previous == 0 and not any(value is not None for value in record.before.values()):
        return ["new"]
    found = dict.fromkeys(views.part_of(key) for key in record.after)
    return ["settings" if part == "service" else part for part in found]
