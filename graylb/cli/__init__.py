"""The commands: parse arguments, call, print. `main` is the entry point; everything else loads when it is needed."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line of this process and exits."""
    from graylb.cli.commands import COMMANDS, made

    named = sys.argv[1] if len(sys.argv) > 1 else ""
    made(named if named in COMMANDS else None)()
