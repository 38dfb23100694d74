"""The command replay: a log decided by what is in force and by what may be, and who would change version."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graylb.cli.common import AdminOption, AsJson, DocumentOption, StateOption, console, fail, locate, print_json

if TYPE_CHECKING:
    from graylb.release.access_log import Fields, Format
    from graylb.release.replay import Matrix
    from graylb.replay import Replay, Report

BATCH = 1 << 22
"""Bytes of lines that are decided together."""
SHOWN = 10
"""Lines of a list of changes."""


def replay(
    logs: Annotated[list[str], typer.Argument(metavar="ACCESS_LOG...", help="Access logs, also gzipped; - for stdin.")],
    new: Annotated[Path, typer.Option("--file", "-f", metavar="NEW", help="The document that may come in its place.")],
    document: DocumentOption = None,
    log_format: Annotated[
        str,
        typer.Option("--format", metavar="auto|json|combined", help="JSON lines, or nginx's and Apache's combined."),
    ] = "auto",
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=FIELD",
            help="Where the log has method, host, path, query, client_ip, headers, listener, header.NAME; repeatable.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Host of lines that name none.")] = "localhost",
    listener: Annotated[str | None, typer.Option(metavar="NAME", help="Listener of lines that name none.")] = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Decide every request of access logs by the document in force (-c) and by NEW; show who would change version."""
    from graylb.release.access_log import Fields

    if log_format not in ("auto", "json", "combined"):
        fail(f"--format {log_format}: expected auto, json or combined")
    try:
        fields = Fields.of(field or (), host)
    except ValueError as error:
        fail(f"--field {error}")
    target = locate(document, state, admin)
    work = _prepare(target.document, target.state, new, fields, log_format, listener)
    for name in logs:
        _feed(work, name)
    found = work.report()
    if as_json:
        print_json(found.to_data())
    else:
        _print(found)
    if found.lines and not found.requests:
        fail("no line of the log is a request", 1)


def _prepare(old: Path, state: Path, new: Path, fields: Fields, log_format: str, listener: str | None) -> Replay:
    from graylb import table
    from graylb.control import compare
    from graylb.control.store import Store, StoreError
    from graylb.explain import choose_listener
    from graylb.model.problems import ConfigErrors
    from graylb.replay import Replay

    try:
        snapshots = compare.in_place(old, new, Store(state).read())
        images = [table.compile(each) for each in snapshots]
    except (ConfigErrors, StoreError, ValueError) as error:
        fail(str(error), 1)
    try:
        listener = choose_listener(snapshots[0], listener)
    except ValueError as error:
        fail(f"--listener: {error}")
    kinds: dict[str, Format | None] = {"json": "json", "combined": "combined"}
    sides = list(zip(snapshots, images, strict=True))
    return Replay(sides[0], sides[1], fields, kinds.get(log_format), listener)


def _feed(work: Replay, name: str) -> None:
    number = 1
    try:
        with _open(name) as file:
            while lines := file.readlines(BATCH):
                work.feed("stdin" if name == "-" else name, lines, number)
                number += len(lines)
    except (OSError, EOFError) as error:
        fail(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", 1)


@contextmanager
def _open(name: str) -> Iterator[Any]:
    """Decompressed when it begins as gzip does, whatever its name."""
    import gzip

    descriptor = sys.stdin.fileno() if name == "-" else Path(name)
    with open(descriptor, "rb", closefd=name != "-") as raw:
        if raw.peek(2)[:2] == b"\x1f\x8b":
            with gzip.open(raw) as file:
                yield file
        else:
            yield raw


def _print(found: Report) -> None:
    print(f"{found.requests:,} requests of {found.lines:,} lines")
    for bad in found.bad:
        name, number = bad.first
        print(f"left out: {bad.count:,} lines, first {name}:{number}: {bad.reason}")
    if found.unaddressed:
        print(f"{found.unaddressed:,} requests without the client's address: no condition on it holds")
    for matrix in found.matrices:
        _print_matrix(matrix)


def _print_matrix(matrix: Matrix) -> None:
    from graylb.release.diff import percent
    from graylb.release.replay import NO_SERVICE

    name = "without a service" if matrix.service == NO_SERVICE else matrix.service
    share = percent(matrix.changed / matrix.requests)
    print(f"\n{name}: {matrix.requests:,} requests, {_count(matrix.changed)} change version ({share})")
    if matrix.failing:
        print(f"  {_count(matrix.failing)} would no longer be answered")
    _print_moves(matrix)
    _print_changes("decided by", matrix.by, matrix.requests)
    _print_changes("route", matrix.routes, matrix.requests)
    if matrix.drawn:
        why = "the log shows no sticky key of theirs" if matrix.sticky else "the service has no sticky key"
        print(f"  {matrix.drawn:,} requests are drawn, as {why}: shares to be expected")


def _print_moves(matrix: Matrix) -> None:
    from rich.table import Column, Table

    columns = list(dict.fromkeys(sorted(to for _, to in matrix.moves)))
    rows = sorted({before for before, _ in matrix.moves})
    table = Table("from \\ to", *(Column(name, justify="right") for name in columns), Column("share", justify="right"))
    for before in rows:
        counts = [matrix.moves.get((before, to), 0.0) for to in columns]
        table.add_row(before, *map(_count, counts), f"{sum(counts) / matrix.requests:.2%}")
    totals = [sum(matrix.moves.get((before, to), 0.0) for before in rows) for to in columns]
    table.add_section()
    table.add_row("share", *(f"{total / matrix.requests:.2%}" for total in totals), "")
    out = console()
    out.width = max(out.width, 40 + 14 * len(columns))
    out.print(table, markup=False)


def _print_changes(what: str, counts: dict[tuple[str, str], int], requests: int) -> None:
    changed = sorted(((n, a, b) for (a, b), n in counts.items() if a != b), key=lambda each: (-each[0], each[1:]))
    for count, before, after in changed[:SHOWN]:
        print(f"  {what}: {before} → {after}: {count:,} ({count / requests:.2%})")
    if len(changed) > SHOWN:
        print(f"  {what}: {len(changed) - SHOWN} more, see --json")


def _count(value: float) -> str:
    """Whole requests as such; expected ones with one digit."""
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-6 else f"{value:,.1f}"
