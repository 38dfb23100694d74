"""What workers tell of requests, beside their counters: access log, live views, spans, on pipes of each worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graylb.control.access_log import Writer, open_pipe
from graylb.control.live_view import Views
from graylb.control.logs import log
from graylb.control.spans import Spans
from graylb.model.snapshot import Snapshot


class LogRefused(Exception):
    """The access log cannot be opened."""


class Reports:
    """folder: of the document. tell: gives every worker what live views want."""

    def __init__(self, folder: Path, tell: Callable[[list[dict[str, Any]]], None]) -> None:
        self._spans = Spans(folder)
        self.views = Views(tell, self._spans.add)
        self._log = Writer(folder)

    def start(self, snapshot: Snapshot) -> None:
        """Raises LogRefused where the access log cannot be opened."""
        self._spans.follow(snapshot.tracing)
        try:
            self._log.start(snapshot.access_log)
        except OSError as error:
            assert snapshot.access_log is not None
            path = snapshot.access_log.path
            raise LogRefused(f"access_log.path: {path} cannot be opened: {error.strerror}") from error

    def follow(self, snapshot: Snapshot) -> None:
        self._log.follow(snapshot.access_log)
        self._spans.follow(snapshot.tracing)

    def pipes(self) -> list[int]:
        """The writing ends of a new worker's pipes, which the caller closes: of the access log, of all else.

        Raises OSError.
        """
        ours, theirs = open_pipe()
        try:
            events, telling = open_pipe()
        except OSError:
            os.close(ours)
            os.close(theirs)
            raise
        self._log.add(ours)
        self.views.add(events)
        return [theirs, telling]

    def reopen(self) -> None:
        """For who has moved the file away."""
        log.info("SIGUSR1: opening the access log again")
        self._log.reopen()

    def figures(self) -> dict[str, Any]:
        return {"access_log": asdict(self._log.figures), "tracing": asdict(self._spans.figures)}

    async def close(self) -> None:
        """Once every worker has ended."""
        self.views.close()
        await asyncio.gather(asyncio.to_thread(self._log.close), asyncio.to_thread(self._spans.close))
