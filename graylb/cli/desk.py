"""The seam between commands and what they do: a desk has the operations as plain calls, wherever the store is.

`LocalDesk` opens the store itself; `RemoteDesk` asks the running proxy. Each change is reported in the same words,
whoever made it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from graylb.cli.common import Target, fail, locate, print_json, user

if TYPE_CHECKING:
    from pathlib import Path

    from graylb.control.config_store import Action, ConfigStore, View
    from graylb.control.operations import Outcome
    from graylb.model.documents import Document
    from graylb.release.diff import Diff

T = TypeVar("T")

APPLY_PATIENCE = 10.0
"""Seconds that a command waits for the running proxy to apply its change."""

Expect = Annotated[
    int | None,
    typer.Option("--expect", metavar="REVISION", help="Only if nobody changed the service since that revision."),
]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a change. done: every running proxy that is known has it; words: that, said to a person."""

    done: bool
    words: str
    problem: str | None = None


class Desk(Protocol):
    """Every method raises what `control.operations` says; those that write take `why` and `expected`."""

    def look(self, key: str = "") -> View: ...

    def set_split(self, service: str, weights: Mapping[str, float], *, why: str, expected: int | None) -> Outcome: ...

    def rollback(self, service: str, to: int | None, *, why: str, expected: int | None) -> Outcome: ...

    def put(self, items: Mapping[str, bytes | None], *, action: Action, why: str, expected: int | None) -> Outcome: ...

    def apply(
        self, document: Document, *, prune: bool, dry_run: bool, why: str, expected: int | None
    ) -> list[Outcome]: ...

    def export(self) -> dict[str, Any]: ...

    def history(self, service: str | None) -> list[dict[str, Any]]: ...

    def diff(self, a: int, b: int | None) -> Diff:
        """Of two revisions; b: None for what is in force now."""
        ...

    def nodes(self) -> Sequence[dict[str, Any]]: ...

    def applied(self, revision: int) -> Applied:
        """Waits until the running proxy has it, or every one that tells etcd of itself."""
        ...


class LocalDesk:
    """A desk on the store of a document, in this very process."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def look(self, key: str = "") -> View:
        from graylb.control import operations

        return self._run(lambda store: operations.look(store, key))

    def set_split(self, service: str, weights: Mapping[str, float], *, why: str, expected: int | None) -> Outcome:
        from graylb.control import operations

        return self._run(
            lambda store: operations.set_split(store, service, weights, who=user(), why=why, expected=expected)
        )

    def rollback(self, service: str, to: int | None, *, why: str, expected: int | None) -> Outcome:
        from graylb.control import operations

        return self._run(
            lambda store: operations.rollback(store, service, to=to, who=user(), why=why, expected=expected)
        )

    def put(self, items: Mapping[str, bytes | None], *, action: Action, why: str, expected: int | None) -> Outcome:
        from graylb.control import operations

        return self._run(
            lambda store: operations.put(store, items, who=user(), why=why, expected=expected, action=action)
        )

    def apply(self, document: Document, *, prune: bool, dry_run: bool, why: str, expected: int | None) -> list[Outcome]:
        from graylb.control import operations

        return self._run(
            lambda store: operations.apply(
                store, document, prune=prune, dry_run=dry_run, who=user(), why=why, expected=expected
            )
        )

    def export(self) -> dict[str, Any]:
        from graylb.control import operations

        return self._run(operations.export)

    def history(self, service: str | None) -> list[dict[str, Any]]:
        from graylb.control import operations

        return self._run(lambda store: operations.history(store, service))

    def diff(self, a: int, b: int | None) -> Diff:
        from graylb.control import revisions

        return self._run(lambda store: revisions.diff(store, a, b))

    def nodes(self) -> Sequence[dict[str, Any]]:
        return self._run(lambda store: store.nodes())

    def applied(self, revision: int) -> Applied:
        return self._run(lambda store: _by_nodes(store, revision))

    def _run(self, operation: Callable[[ConfigStore], Awaitable[T]]) -> T:
        from graylb.control.open_store import open_store

        async def run() -> T:
            async with open_store(self.target.document, self.target.state, self.target.preset) as store:
                return await operation(store)

        return asyncio.run(run())


async def _by_nodes(store: ConfigStore, revision: int) -> Applied:
    """By what they tell, which they do once a second."""
    late: list[str] = []
    try:
        async with asyncio.timeout(APPLY_PATIENCE):
            while nodes := await store.nodes():
                late = [each["node"] for each in nodes if (each.get("revision") or 0) < revision]
                if not late:
                    names = ", ".join(each["node"] for each in nodes)
                    return Applied(True, f"applied by {names}")
                await asyncio.sleep(0.1)
    except TimeoutError:
        return Applied(False, "", f"{', '.join(late)} did not say so within {APPLY_PATIENCE:g} s; see graylb status")
    return Applied(False, "no proxy runs on this document; it applies at the next start")


def desk(document: Path | None, state: Path | None, admin: str | None) -> Desk:
    """By a command's options: at the proxy that runs there, else on the store itself. Fails in one line."""
    from graylb.cli.remote import RemoteDesk

    target = locate(document, state, admin)
    return LocalDesk(target) if target.admin is None else RemoteDesk(target.admin)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """What goes wrong becomes one line: status 2 for bad input, 1 where the store is not as one wishes."""
    from graylb.control.config_store import ConfigStoreError
    from graylb.control.state import UnknownTarget
    from graylb.model.problems import ConfigErrors

    try:
        yield
    except ConfigErrors as error:
        fail(one_line(error))
    except (UnknownTarget, ValueError) as error:
        fail(str(error))
    except ConfigStoreError as error:
        fail(str(error), 1)


def one_line(error: Exception) -> str:
    """All errors of a ConfigErrors, without positions that mean nothing in a key."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(str(each).replace(f"{each.file}:1:1: ", f"{each.file}: ", 1) for each in errors)


def told(at: Desk, outcomes: Sequence[Outcome], as_json: bool, *, many: bool = False) -> None:
    """Says what was done, and waits until the running proxy has applied it. many: JSON of a list, even of one."""
    written = [outcome for outcome in outcomes if outcome.keys]
    with telling():
        applied = at.applied(max(each.revision for each in written)) if written else Applied(False, "")
    if as_json:
        data = [{**outcome.to_data(), "applied": applied.done, "problem": applied.problem} for outcome in outcomes]
        print_json(data if many else data[0])
    else:
        for outcome in outcomes:
            print(_words(outcome))
        if applied.words:
            print(applied.words)
        for note in dict.fromkeys(outcome.note for outcome in outcomes if outcome.note):
            print(f"note: {note}")
    if applied.problem:
        fail(f"stored, but not yet applied: {applied.problem}", 1)


def _words(outcome: Outcome) -> str:
    if not outcome.keys:
        return f"{outcome.service}: nothing to change"
    parts = [key.removeprefix(f"services/{outcome.service}/") for key in outcome.keys]
    if outcome.before != outcome.after:
        what = f"{outcome.after} (was {outcome.before})"
        others = [part for part in parts if part not in ("split", "service")]
        what += f", and {', '.join(others)}" if others else ""
    else:
        what = ", ".join(parts)
    return f"{outcome.service}: {what}, revision {outcome.revision}"
