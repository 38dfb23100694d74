"""Commands for the running proxy that have no other way than its admin API: drain, log-level."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graylb.cli import caller
from graylb.cli.caller import DEFAULT_ADMIN, BadAddress, NotAllowed, NotRunning
from graylb.cli.common import AdminOption, fail, user


def _yes_or_no(text: str | bool) -> bool:
    if text in ("yes", "no"):
        return text == "yes"
    raise typer.BadParameter(f"{text!r}: expected yes or no")


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


def ready(
    answer: Annotated[
        bool | None, typer.Argument(metavar="[yes|no]", parser=_yes_or_no, help="Default: show it.")
    ] = None,
    admin: AdminOption = None,
) -> None:
    """Show what `/ready` says, or let it say no while all goes on, so that balancers in front send nothing more."""
    if answer is None:
        found = _call(admin, "GET", "/ready", fine=(503,))
    else:
        found = _call(admin, "PUT", "/ready", {"ready": answer})
    print("ready" if found["ready"] else "not ready")


def _call(admin: str | None, method: str, path: str, body: Any = None, fine: tuple[int, ...] = ()) -> Any:
    try:
        answer = caller.call(admin or DEFAULT_ADMIN, method, path, body, user=user())
    except BadAddress as error:
        fail(str(error))
    except (NotRunning, NotAllowed) as error:
        fail(str(error), 1)
    if answer.status >= 400 and answer.status not in fine:
        fail(str(answer.data.get("message", answer.data)), 2 if answer.status == 422 else 1)
    return answer.data
