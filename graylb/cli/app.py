"""The whole command line."""

from __future__ import annotations

from graylb.cli.commands import made

app = made()
