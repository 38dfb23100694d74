"""The command mirror: what becomes of the copies of a service's requests."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

import typer

from graylb.cli import caller
from graylb.cli.caller import DEFAULT_ADMIN, BadAddress, NotAllowed, NotRunning
from graylb.cli.common import AdminOption, AsJson, console, fail, print_json

LATE: Final = 15.0
"""Seconds that the answer may take beyond the time that was asked for."""


class What(StrEnum):
    diff = "diff"


def mirror(
    what: Annotated[What, typer.Argument(help="diff: compare both answers to mirrored requests.")],
    service: Annotated[str, typer.Argument(help="A service with a mirror.")],
    duration: Annotated[str, typer.Option(metavar="TIME", help="How long to look, such as 30s; at most 10m.")] = "30s",
    requests: Annotated[int, typer.Option(min=1, max=100_000, help="End after so many.")] = 1000,
    headers: Annotated[
        str, typer.Option(metavar="NAMES", help="Headers to compare, separated by commas.")
    ] = "content-type",
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Place in JSON bodies that may differ: $.time, $.items[*].id, $..id."),
    ] = None,
    as_json: AsJson = False,
    admin: AdminOption = None,
) -> None:
    """Compare the answers that clients get with those that the mirrored version would have given.

    Exits with status 1 when they differ.
    """
    seconds = _seconds(duration)
    names = [name.strip() for name in headers.split(",") if name.strip()]
    query = urlencode({"seconds": seconds, "requests": requests, "header": names, "mask": mask or []}, doseq=True)
    path = f"/services/{quote(service, safe='')}/mirror/diff?{query}"
    try:
        answer = caller.call(admin or DEFAULT_ADMIN, "GET", path, patience=seconds + LATE)
    except BadAddress as error:
        fail(str(error))
    except (NotRunning, NotAllowed) as error:
        fail(str(error), 1)
    if answer.status != 200:
        fail(answer.data["message"], 2 if answer.status == 422 else 1)
    if as_json:
        print_json(answer.data)
    else:
        _print(answer.data)
    if answer.data["different"]:
        raise typer.Exit(1)


def _seconds(duration: str) -> float:
    from pydantic_core import PydanticCustomError

    from graylb.model import values

    try:
        seconds = values.duration(duration)
    except PydanticCustomError:
        seconds = 0.0
    if not 0 < seconds <= 600:
        fail(f"--duration {duration!r}: expected a time up to 10m, such as 30s")
    return seconds


def _print(found: dict[str, Any]) -> None:
    out = console()
    out.width = 10_000
    for line in _lines(found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['service']}: {found['compared']} compared, {found['different']} differ"]
    if not found["compared"]:
        lines[0] += " (no request was mirrored: is there traffic, and a share above 0?)"
    for name, text in (("bodies_not_compared", "bodies too long to compare"), ("dropped", "too fast to compare")):
        if found[name]:
            lines.append(f"  {found[name]} {text}")
    for of in found["paths"]:
        if not of["different"]:
            continue
        lines += ["", f"{of['path']}  {of['different']} of {of['compared']} differ"]
        for each in of["differences"]:
            where = f" {each['where']}" if each["where"] else ""
            lines.append(f"  {each['count']:>6}  {each['kind']}{where}: {each['primary']} -> {each['mirror']}")
            lines.append(f"          {each['request']}")
    return lines
