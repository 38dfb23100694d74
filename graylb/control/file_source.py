"""The embedded source: files that are read whole and watched for changes of any kind; each is one fragment.

What is watched are directories, because editors replace files by rename and ConfigMaps swap a symbolic link; whether
something changed is decided by a fingerprint of the files themselves. Events only hasten the look: it also happens
every second, for file systems that send none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Final, Self

from watchfiles import awatch

from graylb.control import alarms
from graylb.control.logs import log
from graylb.control.sources import Fragment, Health, Update

LOOK_EVERY: Final = 1.0
DEBOUNCE: Final = 0.05
"""Seconds. A burst of events counts as one change once it has been quiet for DEBOUNCE, or after a few of them."""

_Print = tuple[int, int, int, int, int] | None


class FileSource:
    """A source whose keys are paths. `files` may grow and shrink while it watches (list files that a document names).

    revision: counts up from 1, by one for each look that found something changed.
    """

    prefix = ""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = tuple(files)
        self._seen = self._fingerprints()
        self._told: dict[str, Fragment] = {}
        self._revision = 0
        self._unreadable = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held between two looks."""

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    def watch_also(self, files: Iterable[Path]) -> None:
        """Replaces the set of files; one that is new counts as changed only when it changes from now on."""
        wanted = tuple(dict.fromkeys(files))
        if wanted != self._files:
            self._seen |= {path: _fingerprint(path) for path in wanted if path not in self._seen}
            self._files = wanted

    async def updates(self) -> AsyncGenerator[Update]:
        """As `Source` has it. A file that is not there, or cannot be read, is a key that is not there.

        A change that left the bytes as they were is an update without changes: somebody may have waited for it.
        """
        yield await self._look(whole=True)
        async with aclosing(self.changes()) as changes:
            async for _ in changes:
                yield await self._look(whole=False)

    def health(self) -> Health:
        return Health("file", self._revision > 0 and not self._unreadable, self._revision, self._unreadable)

    async def changes(self) -> AsyncGenerator[None]:
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
            except (OSError, RuntimeError) as error:  # watchfiles has errors of its own for what inotify refuses
                if isinstance(error, OSError):
                    alarms.note(error)
                log.warning("cannot watch %s: %s", ", ".join(map(str, sorted(directories))), error)
                await asyncio.sleep(LOOK_EVERY)
                if self._moved():
                    yield

    async def _look(self, *, whole: bool) -> Update:
        self._revision += 1
        found, self._unreadable = await asyncio.to_thread(_read, self._files)
        here = {
            key: former if (former := self._told.get(key)) and former.value == value else self._fragment(key, value)
            for key, value in found.items()
        }
        changes: dict[str, Fragment | None] = {key: each for key, each in here.items() if self._told.get(key) != each}
        if not whole:
            changes |= dict.fromkeys(self._told.keys() - here.keys())
        self._told = here
        return Update(self._revision, changes, whole)

    def _fragment(self, key: str, value: bytes) -> Fragment:
        return Fragment(key, value, self._revision)

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


def _read(files: Iterable[Path]) -> tuple[dict[str, bytes], str]:
    """What can be read, by path; and why something that is there cannot."""
    found, problem = {}, ""
    for path in files:
        try:
            found[str(path)] = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = problem or f"{path} cannot be read: {error.strerror}"
    return found, problem


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
