"""Commands that change a release, and its history: split, rollback, history."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graylb.cli.common import (
    AdminOption,
    AsJson,
    DocumentOption,
    NotRunning,
    Reason,
    StateOption,
    Target,
    ask,
    console,
    fail,
    locate,
    print_json,
    user,
)

if TYPE_CHECKING:
    from graylb.control.commands import Outcome

APPLY_PATIENCE = 10.0
"""Seconds that a command waits for the running proxy to apply its change."""


def _services(incomplete: str) -> list[str]:
    """For shell completion: the services of the proxy on the default admin address."""
    import os

    from graylb.cli.common import DEFAULT_ADMIN

    try:
        found = ask(os.environ.get("GRAYLB_ADMIN", DEFAULT_ADMIN), "/services")
        return [each["name"] for each in found if each["name"].startswith(incomplete)]
    except (NotRunning, typer.Exit):
        return []


ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="A service.", autocompletion=_services)]
Expect = Annotated[
    int | None, typer.Option("--expect", metavar="REVISION", help="Only if the store is at this revision.")
]


def split(
    service: ServiceName,
    weights: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT...", help="Such as v1=95 v2=5.")],
    reason: Reason = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    expect: Expect = None,
    as_json: AsJson = False,
) -> None:
    """Set the split of a service. It holds until the document's part for that service is edited."""
    from graylb.control import commands

    parsed = _parse_weights(weights)
    target = locate(document, state, admin)
    change = commands.Command(target.document, target.state, user(), reason, expect, target.preset)
    _report(lambda: change.set_split(service, parsed), target, as_json)


def rollback(
    service: ServiceName,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="REVISION", help="Default: what was in force before, so twice is back."),
    ] = None,
    reason: Reason = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    expect: Expect = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a former split, rules and settings of a service; its instances and lists stay as they are."""
    from graylb.control import commands

    target = locate(document, state, admin)
    change = commands.Command(target.document, target.state, user(), reason, expect, target.preset)
    _report(lambda: change.rollback(service, to), target, as_json)


def history(
    service: ServiceName,
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed a service, when and why, newest first."""
    from graylb.control import commands
    from graylb.control.state import UnknownTarget
    from graylb.control.store import Store, StoreError

    target = locate(document, state, admin)
    try:
        found = commands.history(Store(target.state), service)
    except UnknownTarget as error:
        fail(str(error))
    except StoreError as error:
        fail(str(error), 1)
    if as_json:
        print_json(found)
    else:
        _print_history(found)


def _parse_weights(pairs: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for pair in pairs:
        version, equals, text = pair.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not version or not equals or not 0 <= weight < float("inf"):
            fail(f"{pair!r}: expected VERSION=WEIGHT with a weight from 0 up, such as v1=95")
        if version in weights:
            fail(f"version {version} is given twice")
        weights[version] = weight
    return weights


def _report(change: Callable[[], Outcome], target: Target, as_json: bool) -> None:
    """Makes the change, waits until the running proxy has applied it, says so."""
    from graylb.control.state import UnknownTarget
    from graylb.control.store import StoreError
    from graylb.model.problems import ConfigErrors

    try:
        outcome = change()
    except UnknownTarget as error:
        fail(str(error))
    except ConfigErrors as error:
        fail("; ".join(str(e).removeprefix(f"{e.file}:{e.line}:{e.column}: ") for e in error.errors))
    except ValueError as error:
        fail(str(error))
    except StoreError as error:
        fail(str(error), 1)
    applied, problem = _wait(target, outcome.revision)
    if as_json:
        print_json({**outcome.to_data(), "applied": applied, "problem": problem})
    else:
        print(f"{outcome.service}: {outcome.after} (was {outcome.before}), revision {outcome.revision}")
        if applied:
            print("applied by the running proxy")
        elif target.admin is None:
            print("no proxy runs on this document; it applies at the next start")
        if outcome.note:
            print(f"note: {outcome.note}")
    if problem:
        fail(f"stored, but the running proxy has not applied it: {problem}", 1)


def _wait(target: Target, revision: int) -> tuple[bool, str | None]:
    """(applied by every worker, why not)."""
    if target.admin is None:
        return False, None
    deadline = time.monotonic() + APPLY_PATIENCE
    problem = f"no answer within {APPLY_PATIENCE:g} s"
    while time.monotonic() < deadline:
        try:
            status = ask(target.admin, "/status")
        except NotRunning as error:
            return False, str(error)
        revisions = [worker["revision"] or 0 for worker in status["workers"] if worker["ready"]]
        if revisions and min(revisions) >= revision:
            return True, None
        if status["refusal"]:
            problem = "; ".join(error["text"] for error in status["refusal"]["errors"])
        time.sleep(0.02)
    return False, problem


def _print_history(found: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("revision", Column("when", no_wrap=True), "who", "what", "split", "why")
    for change in found:
        what = change["action"] if change["action"] != "file" else ", ".join(change["what"])
        if change["to"] is not None:
            what += f" to {change['to']}"
        split = change["split"] if change["split"] == change["former"] else f"{change['former']} → {change['split']}"
        row = (
            str(change["revision"]),
            change["at"],
            change["who"],
            what,
            split,
            change["why"],
        )
        table.add_row(*map(escape, row))
    console().print(table)
