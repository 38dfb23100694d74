"""What a person does to a release: set a split, roll back, read the history. They write to the store; the change then
flows to the workers like anyone's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graylb.control import prepare
from graylb.control import state as states
from graylb.control.state import SERVICE_SPLIT, State, UnknownTarget
from graylb.control.store import Conflict, Store, StoreError, weights_text
from graylb.model import presets
from graylb.model.documents import Document
from graylb.model.problems import ConfigErrors

Change = Callable[[State, str], State]
"""(state, time) -> state after the command."""

TRIES = 5
"""How often a command starts again because the proxy or another command wrote to the store at the same time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change that was stored. `before` and `after`: the service's own split in words."""

    service: str
    revision: int
    before: str
    after: str
    note: str = ""

    def to_data(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "revision": self.revision,
            "former": self.before,
            "split": self.after,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Command:
    """Who does something to which document, and why. `expected`: the revision that this person looked at.

    `preset`: what the proxy was told to fill in.
    """

    document: Path
    state: Path
    who: str
    why: str = ""
    expected: int | None = None
    preset: presets.Name | None = None

    def set_split(self, service: str, weights: Mapping[str, float]) -> Outcome:
        """Raises UnknownTarget, ValueError, ConfigErrors (versions without instances), StoreError, Conflict."""
        return self._change(
            service,
            lambda state, at: states.set_split(state, service, weights, at=at, who=self.who, why=self.why),
            [version for version, weight in weights.items() if weight > 0],
        )

    def rollback(self, service: str, to: int | None = None) -> Outcome:
        """Raises UnknownTarget, ConfigErrors when the former rules no longer fit, StoreError, Conflict."""
        return self._change(
            service, lambda state, at: states.rollback(state, service, at=at, who=self.who, why=self.why, to=to)
        )

    def _change(self, service: str, change: Change, versions: Sequence[str] = ()) -> Outcome:
        """The change on top of what the document says now, checked as a whole before it is stored.

        A document that is not valid is no reason to refuse a rollback: the change then rests on the state alone.
        """
        store = Store(self.state)
        for _ in range(TRIES - 1):
            with contextlib.suppress(Conflict):
                return self._try(store, service, change, versions)
            if self.expected is not None:
                break
        return self._try(store, service, change, versions)

    def _try(self, store: Store, service: str, change: Change, versions: Sequence[str]) -> Outcome:
        start, at = store.read(), prepare.now()
        document: Document | None = None
        base, note = start, ""
        try:
            document = prepare.read(self.document, self.preset)
            base = prepare.prepare(document, start, at=at)[0].state
        except ConfigErrors as error:
            if not start.services:
                raise
            document = None
            note = f"the document is not valid, so this was not checked against it: {error.errors[0]}"
        after = change(base, at)
        if document is not None:
            prepare.prepare(document, after, at=at)
            _check_versions(document, service, versions)
        store.put(after, expected=start.revision if self.expected is None else self.expected)
        return Outcome(service, after.revision, _split_text(base, service), _split_text(after, service), note)


def history(store: Store, service: str) -> list[dict[str, Any]]:
    """Every recorded change of a service, newest first, each with the former and the new split in words.

    Raises UnknownTarget, StoreError.
    """
    state = store.read()
    found = state.services.get(service)
    if found is None:
        if state.revision == 0:
            raise StoreError(f"there is no history yet: {store.path} does not exist; it begins with the first start")
        raise UnknownTarget(f"no service {service!r}; there is {', '.join(sorted(state.services)) or 'none'}")
    former = "-"
    entries: list[dict[str, Any]] = []
    for change in found.changes:
        split = weights_text(change.weights)
        entries.append(
            {
                "revision": change.revision,
                "previous": change.previous,
                "at": change.at,
                "who": change.who,
                "why": change.why,
                "action": change.action,
                "what": list(change.what),
                "former": former,
                "split": split,
                "to": change.to,
            }
        )
        former = split
    return entries[::-1]


def _split_text(state: State, service: str) -> str:
    content = state.services[service].in_force
    split = content.splits.get(SERVICE_SPLIT) if content else None
    return weights_text(split.weights if split else None)


def _check_versions(document: Document, service: str, versions: Sequence[str]) -> None:
    """A document may prepare for versions to come; a command that names one is a slip of the pen. Raises ValueError."""
    known = sorted({instance.version for instance in document.services[service].instances})
    for version in versions:
        if known and version not in known:
            raise ValueError(f"{service} has no instance of version {version!r}; there is {', '.join(known)}")
