"""What the embedded store remembers, and the pure rules by which a document and commands change it.

For each service the state holds a line of changes. A change points at a content: the service's part of the document
(without instances and lists, which are data and always current) and its completed splits (salt and slots). The last
change is in force. A command's change overrides the document until a person edits that service's part; then the
document wins. Nothing here reads a file, a clock or a user name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from errno import ENOENT
from typing import Any

import orjson

from graylb.control.config_store import Action
from graylb.model import build, documents
from graylb.model.documents import Document
from graylb.release import slots

FORMAT = 1
KEEP_CONTENTS = 100
"""Changes of a service that can be rolled back to; older ones stay in the history without their content."""
KEEP_CHANGES = 1000

_DATA = ("instances", "lists")
SERVICE_SPLIT = ""
"""The key of a service's own split in `Content.splits`; other keys are names of rules."""


class UnknownTarget(LookupError):
    """A command names a service or revision that the state does not hold."""


@dataclass(frozen=True, slots=True)
class StoredSplit:
    """weights: version -> weight > 0. `slots` in the text form of `graylb.release.slots`."""

    weights: dict[str, float]
    salt: str
    slots: str


@dataclass(frozen=True, slots=True)
class Content:
    """What one service was at one time. part: plain data; stable: also where the document leaves it to be inferred."""

    part: dict[str, Any]
    stable: str
    splits: dict[str, StoredSplit]

    def digest(self) -> str:
        return digest(self)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a service's history. `at` is ISO 8601 in UTC; `what` names what differs from the change before."""

    revision: int
    previous: int
    at: str
    who: str
    why: str
    action: Action
    what: tuple[str, ...]
    weights: dict[str, float] | None  # of the service's own split; None: all to the stable version
    content: str | None  # digest of a content; None when the service was removed
    to: int | None = None  # of a rollback: the revision it restored


@dataclass(frozen=True, slots=True)
class ServiceState:
    """`part` and `data` are digests of what the document said last: settings, and instances with lists."""

    part: str
    data: str
    overridden: bool
    changes: tuple[Change, ...]
    contents: dict[str, Content]

    @property
    def in_force(self) -> Content | None:
        last = self.changes[-1].content
        return None if last is None else self.contents[last]


@dataclass(frozen=True, slots=True)
class State:
    revision: int = 0
    document: str = ""  # digest of the document completed last
    services: dict[str, ServiceState] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Completion:
    """A document with everything that the store adds. `splits`: (service, rule or SERVICE_SPLIT) -> completed split."""

    document: Document
    splits: dict[tuple[str, str], StoredSplit]
    state: State


def digest(value: object) -> str:
    """Hex SHA-256 of canonical JSON; the order of maps does not count."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True)
class _Written:
    """One service of a document as plain data. data: instances and lists."""

    part: dict[str, Any]
    data: dict[str, Any]

    @classmethod
    def services(cls, whole: Mapping[str, Any]) -> dict[str, _Written]:
        found = {}
        for name, service in whole.get("services", {}).items():
            part = {key: value for key, value in service.items() if key not in _DATA}
            found[name] = cls(part, {key: service[key] for key in _DATA if key in service})
        return found


def complete(document: Document, state: State, *, at: str, who: str = "file", why: str = "") -> Completion:
    """The document with every split completed, and the state after it.

    The state's revision grows by one when the document says something new; otherwise the state comes back as it is.
    Raises ConfigErrors when a command's override no longer fits the document's instances or lists.
    """
    whole = document.to_data()
    written = _Written.services(whole)
    effective, parts = _effective(document, whole, written, state)
    splits: dict[tuple[str, str], StoredSplit] = {}
    for request in build.split_requests(effective).values():
        content = _last_content(state.services.get(request.service))
        rule = request.rule or SERVICE_SPLIT
        before = content.splits.get(rule) if content else None
        splits[request.service, rule] = complete_split(request, before)
    author = _Author(at, who, why)
    services = _observe(effective, parts, written, splits, state, author)
    seen = hashlib.sha256(orjson.dumps(whole)).hexdigest()
    if services == state.services and seen == state.document:
        return Completion(effective, splits, state)
    return Completion(effective, splits, State(state.revision + 1, seen, services))


def complete_split(request: build.SplitRequest, previous: StoredSplit | None) -> StoredSplit:
    """Salt and slots for one split: as the document gives them, else kept, else moved as little as the laws allow."""
    weights = dict(request.weights)
    name = f"{request.service}/{request.rule}" if request.rule else request.service
    salt = request.salt or slots.default_salt(
        name, previous.weights if previous else None, weights, previous.salt if previous else None
    )
    if request.slots is not None:
        return StoredSplit(weights, salt, request.slots)
    if previous is not None and previous.weights == weights:
        return StoredSplit(weights, salt, previous.slots)
    owners = slots.allocate(slots.Slots.parse(previous.slots) if previous else None, weights, request.stable)
    return StoredSplit(weights, salt, str(owners))


def change(state: State, contents: Mapping[str, Content], *, action: Action, at: str, who: str, why: str = "") -> State:
    """The state after a command gave each of these services another content, all in one revision.

    Raises UnknownTarget when the state has no such service.
    """
    author = _Author(at, who, why)
    services = dict(state.services)
    for name, new in contents.items():
        services[name] = _changed(state, *_service(state, name), new, action, author)
    return replace(state, revision=state.revision + 1, services=services)


def content_of(state: State, service: str) -> Content:
    """What is in force. Raises UnknownTarget when the state has no such service."""
    return _service(state, service)[1]


def rollback(state: State, service: str, *, at: str, who: str, why: str = "", to: int | None = None) -> State:
    """The state after `service` went back to what it was at revision `to`: split with slots and salt, rules, settings.

    Without `to`: to the newest recorded change whose content differs from what is in force, so that a second rollback
    takes back the first. Instances and lists are data and stay as they are. Raises UnknownTarget.
    """
    old, content = _service(state, service)
    in_force = content.digest()
    if to is None:
        candidates = [c for c in old.changes if c.content in old.contents and c.content != in_force]
        missing = f"{service} has no former split, rules or settings to go back to"
    else:
        candidates = [c for c in old.changes if c.revision <= to]
        missing = f"{service} has no revision {to}; its history begins at {old.changes[0].revision}"
    if not candidates:
        raise UnknownTarget(missing)
    target = candidates[-1]
    if target.content is None:
        raise UnknownTarget(f"{service} was not in the document at revision {to}")
    if target.content not in old.contents:
        raise UnknownTarget(f"{service} at revision {to} is no longer kept (the last {KEEP_CONTENTS} changes are)")
    if target.content == in_force:
        raise UnknownTarget(f"{service} is already as it was at revision {to}")
    new = old.contents[target.content]
    return _command(state, service, old, new, "rollback", _Author(at, who, why), target.revision)


def positive(weights: Mapping[str, float]) -> dict[str, float]:
    return {version: float(weight) for version, weight in weights.items() if weight > 0}


def changes_since(state: State, revision: int) -> list[tuple[str, Change]]:
    """(service, change) of every change after `revision`, oldest first."""
    found = [(name, c) for name, s in state.services.items() for c in s.changes if c.revision > revision]
    return sorted(found, key=lambda pair: pair[1].revision)


def _service(state: State, name: str) -> tuple[ServiceState, Content]:
    old = state.services.get(name)
    content = old.in_force if old else None
    if old is None or content is None:
        known = ", ".join(sorted(n for n, s in state.services.items() if s.in_force)) or "none"
        raise UnknownTarget(f"no service {name!r}; there is {known}")
    return old, content


def _last_content(service: ServiceState | None) -> Content | None:
    """What was in force last, also of a service that left the document: its callers keep their slots if it returns."""
    if service is None:
        return None
    return next((service.contents[c.content] for c in reversed(service.changes) if c.content in service.contents), None)


@dataclass(frozen=True, slots=True)
class _Author:
    at: str
    who: str
    why: str


def _effective(
    document: Document, whole: Mapping[str, Any], written: Mapping[str, _Written], state: State
) -> tuple[Document, dict[str, dict[str, Any]]]:
    """The document with the parts that commands override, and the part in force of each service."""
    parts = {name: each.part for name, each in written.items()}
    overrides = {}
    for name, each in written.items():
        old = state.services.get(name)
        content = old.in_force if old else None
        if old and old.overridden and content and old.part == digest(each.part):
            overrides[name] = content.part
    if not overrides:
        return document, parts
    services = {name: {**service, **_lists_by_file(document, name)} for name, service in whole["services"].items()}
    for name, part in overrides.items():
        services[name] = {**part, **written[name].data, **_lists_by_file(document, name)}
    lists = [each for service in document.services.values() for each in service.lists.values()]
    read = {each.file: "\n".join(each.ids) for each in lists if each.file is not None}
    read |= {each.name: each.text for each in document.pems}

    def read_file(name: str) -> str:
        if name not in read:
            raise FileNotFoundError(ENOENT, "the document names no such file")
        return read[name]

    text = orjson.dumps({**whole, "services": services})
    effective = documents.load(text, "the document with what commands changed", read_file)
    return effective, parts | overrides


def _lists_by_file(document: Document, service: str) -> dict[str, Any]:
    """The lists of a service, those of files by their names again: 100,000 ids need no second way through YAML."""
    lists = document.services[service].lists
    if not lists:
        return {}
    named = {name: list(each.ids) if each.file is None else {"file": each.file} for name, each in lists.items()}
    return {"lists": named}


def _observe(
    effective: Document,
    parts: Mapping[str, dict[str, Any]],
    written: Mapping[str, _Written],
    splits: Mapping[tuple[str, str], StoredSplit],
    state: State,
    author: _Author,
) -> dict[str, ServiceState]:
    """Every service's state after this document, with a change for each service that the document changed."""
    own: dict[str, dict[str, StoredSplit]] = {}
    for (service, rule), split in splits.items():
        own.setdefault(service, {})[rule] = split
    after: dict[str, ServiceState] = {}
    for name, part in parts.items():
        old = state.services.get(name)
        stable = effective.services[name].stable_version() or ""  # other sources may know the instances
        content = Content(part, stable, own.get(name, {}))
        seen, data = digest(written[name].part), digest(written[name].data)
        what = _differences(old, content, seen, data)
        if old and not what:
            after[name] = old
            continue
        change = _change(state, content, "file", what, author)
        after[name] = _append(old, change, content, part=seen, data=data, overridden=digest(part) != seen)
    for name, old in state.services.items():
        if name not in after and old.in_force is None:
            after[name] = old
        elif name not in after:
            change = _change(state, None, "removed", ("removed",), author)
            after[name] = _append(old, change, None, part="", data="", overridden=False)
    return after


def _differences(old: ServiceState | None, new: Content, seen: str, data: str) -> tuple[str, ...]:
    before = old.in_force if old else None
    if old is None or before is None:
        return ("new",)
    what = [*_content_differences(before, new)]
    if not what and old.part != seen:
        what.append("document")  # it now says itself what a command had set
    if old.data != data:
        what.append("instances")
    return tuple(what)


def _content_differences(before: Content, after: Content) -> Iterable[str]:
    def other(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in ("split", "rules")}

    def rules(content: Content) -> tuple[Any, dict[str, StoredSplit]]:
        return content.part.get("rules"), {k: v for k, v in content.splits.items() if k != SERVICE_SPLIT}

    if (before.part.get("split"), before.splits.get(SERVICE_SPLIT)) != (
        after.part.get("split"),
        after.splits.get(SERVICE_SPLIT),
    ):
        yield "split"
    if rules(before) != rules(after):
        yield "rules"
    if other(before.part) != other(after.part):
        yield "settings"


def _command(
    state: State,
    service: str,
    old: ServiceState,
    new: Content,
    action: Action,
    author: _Author,
    to: int | None = None,
) -> State:
    before = old.in_force
    assert before is not None
    changed = _changed(state, old, before, new, action, author, to)
    return replace(state, revision=state.revision + 1, services={**state.services, service: changed})


def _changed(
    state: State,
    old: ServiceState,
    before: Content,
    new: Content,
    action: Action,
    author: _Author,
    to: int | None = None,
) -> ServiceState:
    change = _change(state, new, action, tuple(_content_differences(before, new)), author, to)
    return _append(old, change, new, part=old.part, data=old.data, overridden=digest(new.part) != old.part)


def _change(
    state: State,
    content: Content | None,
    action: Action,
    what: tuple[str, ...],
    author: _Author,
    to: int | None = None,
) -> Change:
    split = content.splits.get(SERVICE_SPLIT) if content else None
    return Change(
        revision=state.revision + 1,
        previous=state.revision,
        at=author.at,
        who=author.who,
        why=author.why,
        action=action,
        what=what,
        weights=split.weights if split else None,
        content=content.digest() if content else None,
        to=to,
    )


def _append(
    old: ServiceState | None, change: Change, content: Content | None, *, part: str, data: str, overridden: bool
) -> ServiceState:
    changes = ((*old.changes, change) if old else (change,))[-KEEP_CHANGES:]
    contents = dict(old.contents) if old else {}
    if content is not None and change.content is not None:
        contents[change.content] = content
    # the last content stays even after a removal, for the slots
    kept = {c.content for c in [c for c in changes if c.content][-KEEP_CONTENTS:]}
    return ServiceState(part, data, overridden, changes, {k: v for k, v in contents.items() if k in kept})
