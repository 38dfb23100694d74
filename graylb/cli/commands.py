"""Every command: where it is, and a command line of all of them or of one; nothing is loaded that is not asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer

_ADMIN = "Calls of the admin API"

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("running", "run"),
    "demo": ("running", "demo"),
    "status": ("running", "status"),
    "reload": ("processes", "reload"),
    "roll": ("processes", "roll"),
    "stop": ("processes", "stop"),
    "drain": ("live", "drain"),
    "ready": ("live", "ready"),
    "log-level": ("live", "log_level"),
    "tail": ("watching", "tail"),
    "top": ("watching", "top"),
    "mirror": ("mirror", "mirror"),
    "register": ("register", "register"),
    "check": ("documents", "check"),
    "lint": ("lint", "lint"),
    "mark": ("marks", "mark"),
    "doctor": ("doctor", "doctor"),
    "schema": ("documents", "schema"),
    "explain": ("explain", "explain"),
    "split": ("releases", "split"),
    "rollback": ("releases", "rollback"),
    "history": ("releases", "history"),
    "get": ("keys", "get"),
    "set": ("keys", "put"),
    "delete": ("keys", "delete"),
    "edit": ("keys", "edit"),
    "apply": ("keys", "apply"),
    "export": ("keys", "export"),
    "diff": ("diff", "diff"),
    "replay": ("replay", "replay"),
    "version": ("documents", "version"),
}
"""Name, as it is typed -> (module of this package, function in it)."""


def options(
    admin_token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="GRAYLB_ADMIN_TOKEN_FILE",
            help="Its first line is the token to send. Default: the token in GRAYLB_ADMIN_TOKEN.",
            rich_help_panel=_ADMIN,
        ),
    ] = None,
    admin_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="GRAYLB_ADMIN_CA",
            help="PEM file of who signed the proxy's certificate. Default: whom the system trusts.",
            rich_help_panel=_ADMIN,
        ),
    ] = None,
    admin_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="GRAYLB_ADMIN_CERT",
            help="PEM file of a certificate to show.",
            rich_help_panel=_ADMIN,
        ),
    ] = None,
    admin_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="GRAYLB_ADMIN_KEY", help="PEM file of its key.", rich_help_panel=_ADMIN),
    ] = None,
) -> None:
    from graylb.cli import caller

    caller.use(caller.Access(admin_token_file, admin_ca, admin_cert, admin_key))


def made(only: str | None = None) -> typer.Typer:
    """only: one command; to make all takes longer than most commands do."""
    app = typer.Typer(
        name="graylb",
        help="A proxy for gray releases: exact rules, weighted splits, sticky slots.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in COMMANDS if only is None else (only,):
        place, function = COMMANDS[name]
        module = import_module(f"graylb.cli.{place}")
        app.command(name, context_settings=getattr(module, "CONTEXT", None))(getattr(module, function))
    return app
