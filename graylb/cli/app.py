"""The command line: every command registered, nothing loaded that a command does not need."""

from __future__ import annotations

import typer

from graylb.cli import diff, documents, explain, keys, lint, processes, register, releases, replay, running

app = typer.Typer(
    name="graylb",
    help="A proxy for gray releases: exact rules, weighted splits, sticky slots.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(running.run)
app.command()(running.demo)
app.command()(running.status)
app.command()(processes.reload)
app.command()(processes.roll)
app.command()(processes.stop)
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
