"""A TCP relay that a test can stall or cut: what a network does that no process does to itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Wire:
    """Relays 127.0.0.1:`port` to 127.0.0.1:`target`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._flows = threading.Event()
        self._flows.set()
        self._whole = True
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        self._moved = time.monotonic()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def quiet_for(self) -> float:
        """Seconds since anything was relayed."""
        return time.monotonic() - self._moved

    def stall(self) -> None:
        """Connections stay and carry nothing, as when packets are dropped."""
        self._flows.clear()

    def cut(self) -> None:
        """Connections are reset, and new ones too."""
        self._whole = False
        self._flows.set()
        self._reset()

    def snap(self) -> None:
        """Connections are reset; new ones are welcome."""
        self._reset()

    def mend(self) -> None:
        self._whole = True
        self._flows.set()

    def close(self) -> None:
        self._whole = False
        self._flows.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset()

    def _reset(self) -> None:
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if not self._whole:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            done = threading.Barrier(2)
            for here, there in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(here, there, done), daemon=True).start()

    def _relay(self, here: socket.socket, there: socket.socket, done: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                self._flows.wait()
                there.sendall(data)
                self._moved = time.monotonic()
        for each in (here, there):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(threading.BrokenBarrierError):
            if done.wait() == 0:  # the last of the two closes both
                with self._lock:
                    self._sockets -= {here, there}
                here.close()
                there.close()
