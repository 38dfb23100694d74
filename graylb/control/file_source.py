"""The embedded source: files that are read whole and watched for changes of any kind.

What is watched are directories, because editors replace files by rename and ConfigMaps swap a symbolic link; whether
something changed is decided by a fingerprint of the files themselves. Events only hasten the look: it also happens
every second, for file systems that send none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from watchfiles import awatch

from graylb.control.logs import log

LOOK_EVERY: Final = 1.0
DEBOUNCE: Final = 0.05
"""Seconds. A burst of events counts as one change once it has been quiet for DEBOUNCE, or after a few of them."""

_Print = tuple[int, int, int, int, int] | None


class FileSource:
    """`files` may grow and shrink while it watches (list files that a document names)."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = tuple(files)
        self._seen = self._fingerprints()

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    def watch_also(self, files: Iterable[Path]) -> None:
        """Replaces the set of files; one that is new counts as changed only when it changes from now on."""
        wanted = tuple(dict.fromkeys(files))
        if wanted != self._files:
            self._seen |= {path: _fingerprint(path) for path in wanted if path not in self._seen}
            self._files = wanted

    async def changes(self) -> AsyncIterator[None]:
        """One item for each time that files differ from what they were at the item before (at first: at the start)."""
        while True:
            directories = self._directories()
            try:
                events = awatch(
                    *directories,
                    watch_filter=None,
                    recursive=False,
                    debounce=int(DEBOUNCE * 1000 * 4),
                    step=int(DEBOUNCE * 1000),
                    rust_timeout=int(LOOK_EVERY * 1000),
                    yield_on_timeout=True,
                )
                async with aclosing(events):
                    async for _ in events:
                        if self._moved():
                            yield
                        if self._directories() != directories:
                            break
            except OSError as error:
                log.warning("cannot watch %s: %s", ", ".join(map(str, sorted(directories))), error)
                await asyncio.sleep(LOOK_EVERY)
                if self._moved():
                    yield

    def _moved(self) -> bool:
        now = self._fingerprints()
        changed = any(self._seen.get(path) != now[path] for path in now)
        self._seen = now
        return changed

    def _fingerprints(self) -> dict[Path, _Print]:
        return {path: _fingerprint(path) for path in self._files}

    def _directories(self) -> set[Path]:
        """Of every file and of every link on the way to it; of the nearest parent that exists."""
        found = set()
        for path in self._files:
            for step in (path.absolute(), *_links(path.absolute())):
                found.add(next(parent for parent in step.parents if parent.is_dir()))
        return found


def _fingerprint(path: Path) -> _Print:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _links(path: Path) -> list[Path]:
    """Where each symbolic link leads, one after the other; at most 40, as in the kernel."""
    steps: list[Path] = []
    while path.is_symlink() and len(steps) < 40:
        path = Path(os.path.normpath(path.parent / path.readlink()))
        steps.append(path)
    # the last one with directories that are links resolved too
    return [*steps, Path(os.path.realpath(path))]
