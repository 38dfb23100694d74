"""What workers tell of requests, beside their counters: access log, live views, spans, on pipes of each worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graylb import _ring
from graylb.control.access_log import Writer
from graylb.control.live_view import Views, open_pipe
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
        """What a new worker tells through, for the caller to close: the access log's ring and its bell, a pipe for all
        else.

        Raises OSError.
        """
        with contextlib.ExitStack() as undo:
            ring = _ring.create()
            undo.callback(os.close, ring)
            lines = _ring.Reader(ring)
            undo.callback(lines.close)
            bell, ringing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, bell)
            undo.callback(os.close, ringing)
            events, telling = open_pipe()
            undo.pop_all()
        self._log.add(lines, bell)
        self.views.add(events)
        return [ring, ringing, telling]

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
