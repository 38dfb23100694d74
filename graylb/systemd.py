"""The service manager's side: readiness and watchdog messages, sockets that it opened (sd_notify(3), sd_listen_fds(3)).

Both protocols are environment variables and datagrams of a few lines, stable by promise; the libraries for them are
either unmaintained or need systemd's headers.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

FIRST_FD: Final = 3
SEND_PATIENCE: Final = 1.0
"""Seconds. systemd reads at once; a manager that does not must not stop the proxy."""


class Notifier:
    """Tells the service manager what this process does; without one it does nothing.

    `error` is why the last message was not delivered.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.error = ""

    @classmethod
    def from_environment(cls) -> Notifier:
        return cls(os.environ.get("NOTIFY_SOCKET", ""))

    def ready(self, status: str) -> None:
        self.send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """To be followed by `ready`. The time is how `Type=notify-reload` tells an answer from an older message."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self.send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        self.send(f"STATUS={status}")

    def main_process(self, pid: int) -> None:
        """Another process is the service from now on."""
        self.send(f"MAINPID={pid}")

    def alive(self) -> None:
        self.send("WATCHDOG=1")

    def send(self, *lines: str) -> None:
        """One message. An error is kept in `error` and not raised: traffic does not depend on the manager."""
        if not self.address:
            return
        where = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
                made.settimeout(SEND_PATIENCE)
                made.sendto(text.encode(), where)
            self.error = ""
        except OSError as error:
            self.error = f"{self.address}: {error.strerror or error}"


def watchdog_seconds() -> float | None:
    """How often the manager expects `alive` at least; None when it does not. Raises ValueError."""
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"WATCHDOG_USEC={text!r}: expected microseconds, 1 or more")
    return int(text) / 1e6


def activated_sockets() -> list[tuple[int, str]]:
    """(descriptor, name) of the sockets that systemd opened for this process. Raises ValueError.

    The variables are removed from the environment: whatever this process starts is not meant by them.
    """
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):
        return []
    if not count.isdigit():
        raise ValueError(f"LISTEN_FDS={count!r}: expected the number of sockets")
    given = names.split(":") if names else []
    return [(FIRST_FD + n, given[n] if n < len(given) else "unknown") for n in range(int(count))]


def for_successor(environment: MutableMapping[str, str]) -> None:
    """Makes an environment fit for the process that becomes the service in our place: the watchdog is its then."""
    for name in ("WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
