"""Commands that tell a running proxy what signals tell it: reload, roll, stop."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from graylb.cli.caller import DEFAULT_ADMIN, NotRunning
from graylb.cli.common import AdminOption, ask, fail

LOOK_EVERY = 0.1
"""Seconds between two looks at a roll."""

PidFileOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Find the proxy by its pid file, not by its admin address.")
]


def reload(admin: AdminOption = None, pid_file: PidFileOption = None) -> None:
    """Let the proxy read its document again at once (SIGHUP)."""
    _signal(_find(admin, pid_file), signal.SIGHUP)


def roll(
    admin: AdminOption = None,
    pid_file: PidFileOption = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the new process.")] = 70.0,
) -> None:
    """Let a new process, of the graylb that is installed now, take over without refusing a connection (SIGUSR2)."""
    old = _find(admin, pid_file)
    _signal(old, signal.SIGUSR2)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        time.sleep(LOOK_EVERY)
        if pid_file is not None:
            now, failed = _read(pid_file), None
        else:
            status = _status_again(admin)
            now, failed = status.get("pid", old), None if status.get("rolling", True) else status["roll_failed"]
        if now not in (old, None):
            print(f"process {now} has taken over from {old}")
            return
        if failed:
            fail(f"no roll: {failed}; process {old} goes on", 1)
    fail(f"process {old} was not relieved within {timeout:g} s; its log says why", 1)


def stop(
    admin: AdminOption = None,
    pid_file: PidFileOption = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for requests to finish.")] = False,
) -> None:
    """Let the proxy finish its requests and end (SIGTERM); returns when it has."""
    pid = _find(admin, pid_file)
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        fail(f"no process {pid}", 1)
    try:
        _signal(pid, signal.SIGTERM)
        # the first begins to drain, which takes a moment; the next ends that
        while now and not select.select([watched], [], [], LOOK_EVERY)[0]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched, signal.SIGTERM)
        select.select([watched], [], [])
    finally:
        os.close(watched)


def _find(admin: str | None, pid_file: Path | None) -> int:
    """The process id of the supervisor."""
    if pid_file is not None:
        pid = _read(pid_file)
        if pid is None:
            fail(f"{pid_file}: expected a file with the process id of graylb", 1)
        return pid
    try:
        return int(ask(admin or DEFAULT_ADMIN, "/status")["pid"])
    except NotRunning as error:
        fail(f"{error}; name the proxy with --admin ADDRESS or --pid-file PATH", 1)


def _status_again(admin: str | None) -> dict[str, Any]:
    """Between two processes nobody may answer for a moment."""
    try:
        found: dict[str, Any] = ask(admin or DEFAULT_ADMIN, "/status")
    except NotRunning:
        return {}
    return found


def _read(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError):
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        fail(f"no process {pid}", 1)
    except PermissionError:
        fail(f"process {pid} belongs to another user", 1)
