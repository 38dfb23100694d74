"""The command diff: what differs between two documents or two revisions, and who moves by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graylb.cli.common import AdminOption, AsJson, DocumentOption, StateOption, console, fail, locate, print_json
from graylb.cli.desk import desk, telling

if TYPE_CHECKING:
    from graylb.release.diff import Callers, Diff


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A document, or a revision.")],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="Likewise. Default: for a revision, what is in force now; for a document, "
            "it is B, and A is what is in force now.",
        ),
    ] = None,
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two documents or revisions, and which share of callers changes version.

    Of two documents B is taken as if it came in the place of A, on A's state, so that slots move as they would.
    """
    if a.isdecimal():
        if b is not None and not b.isdecimal():
            fail(f"{b!r}: expected a revision, as {a} is one")
        found = _revisions(int(a), None if b is None else int(b), document, state, admin)
    else:
        if b is not None and b.isdecimal():
            fail(f"{b!r}: expected a document, as {a!r} is one")
        found = _documents(a, b, document, state, admin)
    if as_json:
        print_json(found.to_data())
    else:
        _print(found)


def _documents(a: str, b: str | None, document: Path | None, state: Path | None, admin: str | None) -> Diff:
    from graylb.control import compare
    from graylb.control.store import Store, StoreError, state_path
    from graylb.model.problems import ConfigErrors
    from graylb.release.diff import diff as compare_snapshots

    if b is None:
        target = locate(document, state, admin)
        old, new, state = target.document, Path(a), target.state
    else:
        if document is not None:
            fail("-c is for one document or for revisions; two documents are given")
        old, new = Path(a), Path(b)
        state = state or state_path(old)
    try:
        return compare_snapshots(*compare.in_place(old, new, Store(state).read()))
    except (ConfigErrors, StoreError) as error:
        fail(str(error), 1)


def _revisions(a: int, b: int | None, document: Path | None, state: Path | None, admin: str | None) -> Diff:
    at = desk(document, state, admin)
    with telling():
        return at.diff(a, b)


def _print(found: Diff) -> None:
    from rich.markup import escape

    out = console()
    colours = {"added": "green", "removed": "red", "changed": "yellow"}
    marks = {"added": "+", "removed": "-", "changed": "~"}
    for service in dict.fromkeys(change.service for change in found.changes):
        out.print(f"[bold]{escape(service or 'document')}[/]", soft_wrap=True)
        for change in found.changes:
            if change.service == service:
                mark = f"[{colours[change.action]}]{marks[change.action]}[/]"
                out.print(f"  {mark} {escape(change.text)}", soft_wrap=True)
        for callers in found.callers:
            if callers.service == service:
                out.print(f"  = {escape(moves_text(callers))}", soft_wrap=True)
    if not found.changes:
        out.print("no difference")
    for note in found.notes:
        out.print(f"note: {escape(note)}", soft_wrap=True)


def moves_text(callers: Callers) -> str:
    """`5.00 % of the callers that no rule decides change version: v1 → v2 5.00 %`"""
    from graylb.release.diff import percent

    who = f"of the callers that rule {callers.rule} decides" if callers.rule else "of the callers that no rule decides"
    if callers.note.startswith("for lack"):
        who = who.replace("callers", "requests")
    moves = ", ".join(f"{a} → {b} {percent(share)}" for a, b, share in callers.moves)
    about = "" if callers.exact else "about "
    note = f" ({callers.note})" if callers.note else ""
    return f"{about}{percent(callers.moved)} {who} change version: {moves}{note}"
