"""The embedded store: one state file beside the document, written whole and atomically under a lock.

Writers read, change and write while they hold the lock, and say which revision they started from: who has read an older
one gets a Conflict that tells what happened since. Readers need no lock, as a rename replaces the file in one step.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import orjson
from pydantic import TypeAdapter, ValidationError

from graylb.control import alarms, config_store
from graylb.control.state import FORMAT, Change, State, changes_since

LOCK_PATIENCE: Final = 5.0
"""Seconds that a writer waits for the lock; writing takes milliseconds."""

_STATE: TypeAdapter[State] = TypeAdapter(State)


class StoreError(config_store.ConfigStoreError):
    """The state file cannot be read, understood, locked or written. The message says what to do."""


class Conflict(StoreError, config_store.Conflict):
    """The state moved on since the writer read it."""

    def __init__(self, expected: int, state: State) -> None:
        self.expected, self.revision = expected, state.revision
        told = "; ".join(described(service, change) for service, change in changes_since(state, expected)[-3:])
        what = told or "the document was edited"
        super().__init__(f"the store is at revision {state.revision}, not {expected}: {what}; look again")


def described(service: str, change: Change) -> str:
    """One change in words, for messages."""
    done = {
        "removed": f"{change.who} removed {service}",
        "split": f"{change.who} set the split of {service} to {weights_text(change.weights)}",
        "rollback": f"{change.who} rolled {service} back to revision {change.to}",
    }.get(change.action, f"{change.who} changed {service} ({', '.join(change.what)})")
    return f"{done} in revision {change.revision} at {change.at}" + (f" ({change.why})" if change.why else "")


def weights_text(weights: dict[str, float] | None) -> str:
    """`v1=95 v2=5`; `-` where there is no split."""
    return " ".join(f"{version}={weight:g}" for version, weight in weights.items()) if weights else "-"


def state_path(document: Path) -> Path:
    """Where the state of a document is kept unless told otherwise."""
    return document.with_name(document.name + ".state.json")


class Store:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_path = path.with_name(path.name.removesuffix(".json") + ".lock")

    def read(self) -> State:
        """The state, or an empty one when there is no file yet. Raises StoreError for a file that is not a state."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            alarms.note(error)
            raise StoreError(f"state file {self.path} cannot be read: {error.strerror}") from error
        try:
            raw = orjson.loads(text)
            if isinstance(raw, dict) and raw.get("format", FORMAT) != FORMAT:
                raise StoreError(
                    f"state file {self.path} is of format {raw['format']}, this graylb knows {FORMAT}: "
                    "run the graylb that wrote it, or move the file away"
                )
            state = _STATE.validate_python(raw)
            _check(state)
        except (orjson.JSONDecodeError, ValidationError, ValueError) as error:
            what = str(error).splitlines()[0]
            raise StoreError(
                f"state file {self.path} is damaged ({what}): it holds the revision and the slots of sticky callers. "
                "Restore it from a backup, or move it away to begin anew with slots computed from the document"
            ) from error
        return state

    def update(self, change: Callable[[State], State], *, expected: int | None = None) -> State:
        """Applies `change` to the state under the lock and writes the outcome, unless it is the same.

        Raises Conflict when `expected` is given and is not the stored revision, StoreError, and what `change` raises.
        """
        with self._locked():
            state = self.read()
            if expected is not None and state.revision != expected:
                raise Conflict(expected, state)
            after = change(state)
            if after != state:
                self._write(after)
            return after

    def put(self, state: State, *, expected: int) -> None:
        """Writes a state that was made from revision `expected`. Raises Conflict, StoreError."""
        self.update(lambda _: state, expected=expected)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"{self.lock_path} has been locked by another process for {LOCK_PATIENCE:g} s"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def _write(self, state: State) -> None:
        """A reader sees the old file or the new one, also after a power cut."""
        text = orjson.dumps(state, option=orjson.OPT_INDENT_2)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            mode = self.path.stat().st_mode & 0o777 if self.path.exists() else 0o644
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError:
        alarms.note(error)
        return StoreError(
            f"state file {self.path} cannot be written: {error.strerror}. It keeps the revision and the slots of "
            "sticky callers; make the directory writable or choose another place with --state"
        )


def _check(state: State) -> None:
    """What the types do not say. Raises ValueError."""
    for name, service in state.services.items():
        if not service.changes:
            raise ValueError(f"service {name} has no changes")
        last = service.changes[-1].content
        if last is not None and last not in service.contents:
            raise ValueError(f"service {name}: the content in force is missing")
        for key, content in service.contents.items():
            if content.digest() != key:
                raise ValueError(f"service {name}: content {key[:12]} was altered")
