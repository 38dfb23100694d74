"""Commands for the running proxy that have no other way than its admin API: drain, log-level."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graylb.cli import caller
from graylb.cli.caller import DEFAULT_ADMIN, BadAddress, NotAllowed, NotRunning
from graylb.cli.common import AdminOption, fail, user


def drain(
    seconds: Annotated[
        float | None, typer.Option(min=0, help="That requests may take to finish. Default: as `graylb run --drain`.")
    ] = None,
    admin: AdminOption = None,
) -> None:
    """Let the proxy stop accepting, finish its requests and end; returns at once. `graylb stop` waits for the end."""
    found = _call(admin, "POST", "/drain", {"seconds": seconds})
    print(f"draining for at most {found['seconds']:g} s")


def log_level(
    level: Annotated[str | None, typer.Argument(metavar="[debug|info|warning|error]", help="Default: show it.")] = None,
    admin: AdminOption = None,
) -> None:
    """Show or set which lines the running proxy leaves out of its log, until its next start."""
    if level is None:
        found = _call(admin, "GET", "/log-level")
    else:
        found = _call(admin, "PUT", "/log-level", {"level": level})
    print(found["level"])


def _call(admin: str | None, method: str, path: str, body: Any = None) -> Any:
    try:
        answer = caller.call(admin or DEFAULT_ADMIN, method, path, body, user=user())
    except BadAddress as error:
        fail(str(error))
    except (NotRunning, NotAllowed) as error:
        fail(str(error), 1)
    if answer.status >= 400:
        fail(str(answer.data.get("message", answer.data)), 2 if answer.status == 422 else 1)
    return answer.data
