"""The command line: every command registered, nothing loaded that a command does not need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graylb.cli import (
    caller,
    diff,
    documents,
    explain,
    keys,
    lint,
    live,
    processes,
    register,
    releases,
    replay,
    running,
)

_ADMIN = "Calls of the admin API"

app = typer.Typer(
    name="graylb",
    help="A proxy for gray releases: exact rules, weighted splits, sticky slots.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
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
    caller.use(caller.Access(admin_token_file, admin_ca, admin_cert, admin_key))


app.command()(running.run)
app.command()(running.demo)
app.command()(running.status)
app.command()(processes.reload)
app.command()(processes.roll)
app.command()(processes.stop)
app.command()(live.drain)
app.command()(live.log_level)
app.command(context_settings=register.CONTEXT)(register.register)
app.command()(documents.check)
app.command()(lint.lint)
app.command()(documents.schema)
app.command()(explain.explain)
app.command()(releases.split)
app.command()(releases.rollback)
app.command()(releases.history)
app.command()(keys.get)
app.command("set")(keys.put)
app.command()(keys.delete)
app.command()(keys.edit)
app.command()(keys.apply)
app.command()(keys.export)
app.command()(diff.diff)
app.command()(replay.replay)
app.command()(documents.version)
