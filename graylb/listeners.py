"""Listening sockets: made here, handed over by a former process, or opened by systemd.

TCP: one socket for each worker on the same address (SO_REUSEPORT), among which the kernel spreads connections. A Unix
socket, and one that systemd opened, is shared by all workers. The supervisor keeps every socket open, so connections
that wait in a backlog outlive the workers, and are handed on at a roll with the sockets themselves.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from graylb.model.snapshot import Listener

BACKLOG: Final = 4096
UNIX: Final = "unix:"
PROBE_PATIENCE: Final = 1.0
"""Seconds to find out whether somebody listens on a Unix socket."""

Origin = Literal["made", "activated"]


class ListenError(Exception):
    """Why an address cannot be listened on, in one line."""


@dataclass(slots=True, eq=False)
class Given:
    """Sockets that this process did not make. `address`: as the former process's document named it, or the socket's."""

    address: str
    sockets: list[socket.socket]
    origin: Origin
    name: str = ""  # what systemd calls it


@dataclass(slots=True)
class Bound:
    """One listener and its sockets. `address` is where clients connect, in place of port 0."""

    listener: Listener
    address: str
    sockets: list[socket.socket]
    origin: Origin = "made"
    file: tuple[int, int] | None = None  # device and inode of the Unix socket that is ours to remove

    @property
    def shared(self) -> bool:
        """All workers accept from the same socket."""
        return self.origin == "activated" or self.address.startswith(UNIX)

    def of(self, worker: int, workers: int) -> list[socket.socket]:
        """The sockets that one of `workers` accepts from: together they accept from all."""
        return self.sockets if self.shared else self.sockets[worker::workers]

    def handed(self) -> dict[str, Any]:
        """What a process that inherits the descriptors must know, for `inherited`."""
        fds = [each.fileno() for each in self.sockets]
        return {"address": self.listener.address, "origin": self.origin, "fds": fds}

    def start(self) -> None:
        """From now on connections wait in every socket's backlog, also of those added to a former process's."""
        for each in self.sockets:
            if not _listens(each):
                each.listen(BACKLOG)

    def own(self) -> None:
        """The process that handed the sockets over is done with them: their file is ours to remove."""
        if self.origin == "made" and self.address.startswith(UNIX):
            self.file = _file(self.address.removeprefix(UNIX))

    def close(self, *, remove: bool = False) -> None:
        """remove: also the file of a Unix socket, if it is ours and still the one that we know."""
        for each in self.sockets:
            each.close()
        if remove and self.file is not None:
            path = self.address.removeprefix(UNIX)
            if _file(path) == self.file:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
        self.file = None


def open_listeners(wanted: Iterable[Listener], workers: int, given: list[Given]) -> list[Bound]:
    """Every listener's sockets, those that fit taken out of `given`. Raises ListenError, with nothing left open."""
    opened: list[Bound] = []
    try:
        for listener in wanted:
            found = _take(listener, given)
            opened.append(bind(listener, workers) if found is None else _adopt(listener, found, workers))
    except ListenError:
        for bound in opened:
            bound.close(remove=True)
        raise
    return opened


def bind(listener: Listener, workers: int) -> Bound:
    """New sockets: one for each worker, or the one of a Unix address. Raises ListenError."""
    if listener.address.startswith(UNIX):
        return _bind_unix(listener)
    family, target = _resolve(listener.address)
    sockets: list[socket.socket] = []
    try:
        # SO_REUSEPORT would let a second graylb share the port in silence, so ask without it first
        with _tcp(family) as probe:
            probe.bind(target)
        _more(sockets, family, target, workers)
        for each in sockets:
            each.listen(BACKLOG)
    except OSError as error:
        for each in sockets:
            each.close()
        raise _failed(listener.address, error) from error
    return Bound(listener, address_of(sockets[0]), sockets)


def inherited(record: dict[str, Any]) -> Given:
    """The sockets that a former process described by `Bound.handed`. Raises OSError for what is no socket."""
    return Given(record["address"], [_own(fd) for fd in record["fds"]], record["origin"])


def activated(fd: int, name: str) -> Given:
    """A socket that systemd opened. Raises ListenError for one that does not listen for streams."""
    try:
        made = _own(fd)
    except OSError as error:
        raise ListenError(f"descriptor {fd} ({name!r}) from systemd is no socket: {error.strerror}") from error
    if made.type != socket.SOCK_STREAM or not _listens(made):
        made.close()
        raise ListenError(f"the socket {name!r} from systemd is no listening stream socket; expected ListenStream=")
    return Given(address_of(made), [made], "activated", name)


def discard(given: Iterable[Given]) -> None:
    """Ends what a former process listened on and nobody wants any more."""
    for each in given:
        bound = Bound(Listener(each.address), address_of(each.sockets[0]), each.sockets, each.origin)
        bound.own()
        bound.close(remove=True)


def address_of(made: socket.socket) -> str:
    """`host:port`, `[host]:port` or `unix:/path`."""
    name = made.getsockname()
    if made.family == socket.AF_UNIX:
        return UNIX + (name if isinstance(name, str) else name.decode(errors="replace"))
    host, port = name[:2]
    return f"[{host}]:{port}" if made.family == socket.AF_INET6 else f"{host}:{port}"


def is_address(text: str) -> bool:
    """Whether it has the form of an address to listen on; not whether that is possible."""
    return text.startswith(UNIX + "/") or text.rpartition(":")[2].isdigit()


def _take(listener: Listener, given: list[Given]) -> Given | None:
    """By the address as it was written; then by the address that it came to be, unless the system shall choose."""
    for each in given:
        if each.address == listener.address and each.origin == "made":
            given.remove(each)
            return each
    address = listener.address
    if not address.startswith(UNIX):
        family, target = _resolve(address)
        address = f"[{target[0]}]:{target[1]}" if family == socket.AF_INET6 else f"{target[0]}:{target[1]}"
    for each in given:
        if address_of(each.sockets[0]) == address:
            given.remove(each)
            return each
    return None


def _adopt(listener: Listener, given: Given, workers: int) -> Bound:
    """More workers than sockets get new ones, which do not listen before `Bound.start`: the roll may still fail.

    No socket is closed, for connections wait in the backlog of each.
    """
    sockets = given.sockets
    bound = Bound(listener, address_of(sockets[0]), sockets, given.origin)
    if not bound.shared and len(sockets) < workers:
        try:
            _more(sockets, sockets[0].family, sockets[0].getsockname(), workers)
        except OSError as error:
            raise _failed(bound.address, error) from error
    return bound


def _more(sockets: list[socket.socket], family: int, target: Any, workers: int) -> None:
    """Until there is one for each worker; the first chooses the port for all."""
    while len(sockets) < workers:
        made = _tcp(family)
        sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(target)
        target = made.getsockname()


def _bind_unix(listener: Listener) -> Bound:
    path = listener.address.removeprefix(UNIX)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        _clear(path, listener.address)
        # made with the mode it shall have: between bind and chmod anybody might connect
        mask = None if listener.mode is None else os.umask(0o777 & ~listener.mode)
        try:
            made.bind(path)
        finally:
            if mask is not None:
                os.umask(mask)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise _failed(listener.address, error) from error
    except ListenError:
        made.close()
        raise
    return Bound(listener, listener.address, [made], file=_file(path))


def _clear(path: str, address: str) -> None:
    """Removes the socket that a process left which is gone. Raises ListenError when it is in use or no socket."""
    file = Path(path)
    if not file.exists():
        return
    if not file.is_socket():
        raise ListenError(f"cannot listen on {address}: there is a file of that name, which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_PATIENCE)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            file.unlink()
            return
        except (BlockingIOError, TimeoutError):
            pass  # its backlog is full
    raise ListenError(f"cannot listen on {address}: another process listens there")


def _resolve(address: str) -> tuple[int, Any]:
    host, _, port = address.rpartition(":")
    try:
        if not 0 <= int(port) <= 65535:
            raise ValueError("expected a port from 0 to 65535")
        family, _, _, _, target = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, ValueError) as error:
        raise _failed(address, error) from error
    return family, target


def _tcp(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # as in nginx and Envoy: [::] is IPv6 only, and beside it 0.0.0.0 can be listened on
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _own(fd: int) -> socket.socket:
    """An inherited socket, no longer inherited by whatever this process starts."""
    made = socket.socket(fileno=fd)
    made.set_inheritable(False)
    made.setblocking(False)
    return made


def _listens(made: socket.socket) -> bool:
    return bool(made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _file(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _failed(address: str, error: OSError | ValueError) -> ListenError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ListenError(f"cannot listen on {address}: {reason}")
