"""A roll: one process starts its successor, hands it the listening sockets, and leaves once that one serves.

The successor is started from the command line of its predecessor, so whatever graylb is installed now is what starts.
It inherits the listening sockets as descriptors, described in one environment variable, and one end of a socket pair,
over which two lines go: the successor's `{"ready": PID}`, when all its workers accept, and the predecessor's `go`.
Either end closing before that means that there is no roll.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from graylb import listeners, systemd
from graylb.listeners import Bound, Given

VARIABLE: Final = "GRAYLB_HANDOVER"
END_PATIENCE: Final = 2.0
"""Seconds that a successor which is not wanted any more has to end by itself."""
MOST: Final = 4096


class HandoverFailed(Exception):
    """Why there is no roll, in one line."""


def command() -> list[str]:
    """The command line that started this process."""
    return [sys.executable, *sys.orig_argv[1:]]


class Successor:
    """The process that is to take over."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.process = process
        self._channel = channel

    @classmethod
    def start(cls, bound: Sequence[Bound], admin: Bound | None) -> Successor:
        """Raises HandoverFailed."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        told = {
            "channel": theirs.fileno(),
            "listeners": [each.handed() for each in bound],
            "admin": admin.handed() if admin else None,
        }
        sockets = [made for each in (*bound, *([admin] if admin else ())) for made in each.sockets]
        environment = {**os.environ, VARIABLE: orjson.dumps(told).decode()}
        systemd.for_successor(environment)
        with theirs:
            try:
                # in our process group and session: a terminal's Ctrl-C is for whoever serves
                process = subprocess.Popen(
                    command(),
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno(), *(made.fileno() for made in sockets)],
                )
            except OSError as error:
                ours.close()
                raise HandoverFailed(f"cannot start {command()[0]}: {error.strerror}") from error
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ready(self, seconds: float) -> int:
        """Returns its process id once it serves. Raises HandoverFailed."""
        try:
            async with asyncio.timeout(seconds):
                line = await _line(self._channel)
        except TimeoutError:
            raise HandoverFailed(f"process {self.pid} was not ready within {seconds:g} s") from None
        if not line:
            status = await asyncio.to_thread(self._wait)
            raise HandoverFailed(f"process {self.pid} ended with status {status} before it was ready")
        try:
            return int(orjson.loads(line)["ready"])
        except (ValueError, KeyError, TypeError):
            raise HandoverFailed(f"process {self.pid} says {line!r}; expected that it is ready") from None

    def go(self) -> None:
        """It is the proxy from now on; it outlives this process. Raises HandoverFailed when it is gone."""
        try:
            self._channel.send(b"go\n")
        except OSError as error:
            raise HandoverFailed(f"process {self.pid} ended: {error.strerror}") from error
        self._channel.close()
        self.process.returncode = 0  # nobody waits for it here; whoever adopts it will

    async def abandon(self) -> None:
        """There is no roll: it ends, by itself or else by force."""
        self._channel.close()
        self.process.terminate()
        await asyncio.to_thread(self._wait)

    def _wait(self) -> int:
        try:
            return self.process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@dataclass(slots=True)
class Predecessor:
    """The process that started this one to be relieved by it."""

    channel: socket.socket
    listeners: list[Given] = field(default_factory=list)
    admin: list[Given] = field(default_factory=list)

    @classmethod
    def from_environment(cls) -> Predecessor | None:
        """None when nobody is to be relieved. Raises HandoverFailed when what it says cannot be understood."""
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            told: dict[str, Any] = orjson.loads(text)
            channel = socket.socket(fileno=told["channel"])
            channel.set_inheritable(False)
            channel.setblocking(False)
            given = [listeners.inherited(each) for each in told["listeners"]]
            admin = [listeners.inherited(told["admin"])] if told["admin"] else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HandoverFailed(f"{VARIABLE} cannot be understood ({error!r}): {text[:200]}") from error
        return cls(channel, given, admin)

    async def relieve(self) -> None:
        """Tells that this process serves; returns when it is the proxy. Raises HandoverFailed."""
        with contextlib.suppress(OSError):
            self.channel.send(orjson.dumps({"ready": os.getpid()}) + b"\n")
        line = await _line(self.channel)
        self.channel.close()
        if line.strip() != b"go":
            raise HandoverFailed("the process that was to be relieved goes on, or is gone")


async def _line(channel: socket.socket) -> bytes:
    """One short line; empty when the other end closed."""
    loop = asyncio.get_running_loop()
    read = b""
    while not read.endswith(b"\n") and len(read) < MOST:
        try:
            piece = await loop.sock_recv(channel, MOST)
        except ConnectionError:
            return b""
        if not piece:
            return b""
        read += piece
    return read
