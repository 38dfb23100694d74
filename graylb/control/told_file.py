"""Files that tell others of this process, each written in one step: whoever reads finds the old or the new."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from graylb.control import alarms
from graylb.control.logs import log

AGAIN: Final = 0.5
"""Seconds until a file that could not be written is tried again."""


class ToldFile:
    """A file that is written whenever something changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = False
        self._late: asyncio.TimerHandle | None = None

    def write(self, data: bytes, again: Callable[[], None]) -> None:
        """Raises OSError the first time. Later a failure is told, and `again` called soon, for there may be room then:
        traffic does not depend on it.
        """
        try:
            replace_file(self.path, data)
        except OSError as error:
            if not self._written:
                raise
            alarms.note(error)
            if self._late is None:
                log.error("%s cannot be written: %s; it stays as it was", self.path, error.strerror)
                self._late = asyncio.get_running_loop().call_later(AGAIN, self._again, again)
        else:
            self._written = True

    def _again(self, again: Callable[[], None]) -> None:
        self._late = None
        again()


def replace_file(path: Path, data: bytes) -> None:
    """Raises OSError; then the file is as it was."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
