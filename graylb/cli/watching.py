"""Commands that look on: `tail`, requests as they end, and `top`, versions side by side."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from graylb.cli import caller
from graylb.cli.caller import DEFAULT_ADMIN, BadAddress, NotAllowed, NotRunning
from graylb.cli.common import AdminOption, AsJson, ask, console, fail, print_json
from graylb.cli.figures import Counts, Key, Row, counts, rows

if TYPE_CHECKING:
    from rich.table import Table


def tail(
    service: Annotated[str | None, typer.Option(metavar="NAME", help="Of this service.")] = None,
    version: Annotated[str | None, typer.Option(metavar="VERSION", help="Served by this version.")] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="404, 5xx or 400-499; 499: the client went away.")
    ] = None,
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="Decided by this rule.")] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, with every field.")] = False,
    admin: AdminOption = None,
) -> None:
    """Show requests of the running proxy as they end, also without an access log. Traffic does not feel it."""
    query = {"service": service, "version": version, "status": status, "rule": rule}
    shown = 0
    try:
        for line in caller.stream(admin or DEFAULT_ADMIN, "/tail", query):
            if not line:
                continue
            found = orjson.loads(line)
            if "missed" in found:
                print(f"graylb: {found['missed']} more were too many to show", file=sys.stderr)
                continue
            print(line.decode() if as_json else _shown(found), flush=True)
            shown += 1
            if shown == count:
                return
    except (BadAddress, ValueError) as error:
        fail(str(error))
    except (NotRunning, NotAllowed) as error:
        fail(str(error), 1)
    except (KeyboardInterrupt, BrokenPipeError):
        return
    fail("the proxy has ended", 1)


def _shown(line: dict[str, Any]) -> str:
    """One request in one line, plain: for grep as for people. Control characters stay escaped."""
    target = line.get("path", "-") + (f"?{line['query']}" if line.get("query") else "")
    why = f"rule {line['rule']}" if "rule" in line else f"slot {line['slot']}" if "slot" in line else ""
    service = f"{line.get('service', '-')} {line.get('version', '-')}"
    more = [why, f"wanted {line['fallback']}" if "fallback" in line else "", line.get("instance", "")]
    more += [f"attempt {line['attempts']}" if line.get("attempts", 1) > 1 else "", line.get("error", "")]
    more.append(f"ended by the {line['aborted']}" if "aborted" in line else "")
    text = " ".join(
        [
            line["time"][11:23],
            str(line.get("status", "-")),
            f"{line['duration'] * 1000:8.1f} ms",
            service,
            line.get("method", "-"),
            line.get("host", "-") + target,
            *filter(None, more),
        ]
    )
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def top(
    service: Annotated[str | None, typer.Option(metavar="NAME", help="Of this service alone.")] = None,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval and end.")] = False,
    as_json: AsJson = False,
    admin: AdminOption = None,
) -> None:
    """Show the versions of services side by side, live: requests, errors, latency, and shares wanted and served.

    With --json one list for each interval, in a line of its own unless --once.
    """
    address = admin or DEFAULT_ADMIN
    try:
        before, at = counts(ask(address, "/stats")), time.monotonic()
        with contextlib.ExitStack() as stack:
            screen: Any = None
            if not once and not as_json:
                from rich.live import Live

                screen = stack.enter_context(Live(console=console(), screen=sys.stdout.isatty(), auto_refresh=False))
            while True:
                time.sleep(interval)
                before, at, found = _look(address, before, at, service)
                if as_json and once:
                    print_json([row.data() for row in found])
                elif as_json:
                    print(orjson.dumps([row.data() for row in found]).decode(), flush=True)
                elif once:
                    console().print(_table(found))
                else:
                    screen.update(_table(found), refresh=True)
                if once:
                    return
    except NotRunning as error:
        fail(str(error), 1)
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _look(
    address: str, before: dict[Key, Counts], at: float, service: str | None
) -> tuple[dict[Key, Counts], float, list[Row]]:
    """(counters, when, what has been since)."""
    splits = {each["name"]: each["split"] for each in ask(address, "/services")}
    now, then = counts(ask(address, "/stats")), time.monotonic()
    found = rows(before, now, then - at, splits)
    return now, then, [row for row in found if service is None or row.service == service]


def _table(found: list[Row]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("service", "version", box=SIMPLE)
    for name in ("requests/s", "errors", "p50 ms", "p95 ms", "p99 ms", "in flight", "wanted", "served"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for row in found:
        table.add_row(
            row.service if row.service != last else "",
            row.version or "-",
            f"{row.requests:,.1f}",
            f"[red]{row.errors:.2f}%[/]" if row.errors else "0%",
            *(f"{each:,.1f}" if each is not None else "-" for each in (row.p50, row.p95, row.p99)),
            str(row.in_flight),
            *(f"{each:.2f}%" if each is not None else "-" for each in (row.wanted, row.served)),
        )
        last = row.service
    return table
