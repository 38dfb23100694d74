"""The commands: parse arguments, call, print. `main` is the entry point; everything else loads when it is needed."""

from __future__ import annotations


def main() -> None:
    """Runs the command line of this process and exits."""
    from graylb.cli.app import app

    app()
