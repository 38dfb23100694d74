"""Commands that change a release, and its history: split, rollback, history."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graylb.cli.caller import DEFAULT_ADMIN, NotRunning
from graylb.cli.common import (
    AdminOption,
    AsJson,
    DocumentOption,
    Reason,
    StateOption,
    ask,
    console,
    fail,
    print_json,
)
from graylb.cli.desk import Expect, desk, telling, told


def _services(incomplete: str) -> list[str]:
    """For shell completion: the services of the proxy on the default admin address."""
    import os

    try:
        found = ask(os.environ.get("GRAYLB_ADMIN", DEFAULT_ADMIN), "/services")
        return [each["name"] for each in found if each["name"].startswith(incomplete)]
    except (NotRunning, typer.Exit):
        return []


ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="A service.", autocompletion=_services)]


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
    """Set the split of a service. In a state file it holds until the document's part for that service is edited."""
    parsed = _parse_weights(weights)
    at = desk(document, state, admin)
    with telling():
        outcome = at.set_split(service, parsed, why=reason, expected=expect)
    told(at, [outcome], as_json)


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
    at = desk(document, state, admin)
    with telling():
        outcome = at.rollback(service, to, why=reason, expected=expect)
    told(at, [outcome], as_json)


def history(
    service: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help="Default: all of them.", autocompletion=_services)
    ] = None,
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed a service, when and why, newest first."""
    at = desk(document, state, admin)
    with telling():
        found = at.history(service)
    if not found:
        fail("there is no history yet; it begins with the first start or change", 1)
    if as_json:
        print_json(found)
    else:
        _print_history(found, service is None)


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


def _print_history(found: list[dict[str, Any]], every: bool) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    services = ["service"] if every else []
    table = Table("revision", Column("when", no_wrap=True), *services, "who", "what", "split", "why")
    for change in found:
        what = change["action"] if change["action"] not in ("file", "put") else ", ".join(change["what"])
        if change["to"] is not None:
            what += f" to {change['to']}"
        elif change["action"] in ("set", "delete"):
            what += " " + ", ".join(key.removeprefix(f"services/{change['service']}/") for key in change["keys"])
        split = change["split"] if change["split"] == change["former"] else f"{change['former']} → {change['split']}"
        name = [change["service"]] if every else []
        row = (str(change["revision"]), change["at"], *name, change["who"], what, split, change["why"])
        table.add_row(*map(escape, row))
    console().print(table)
