"""`python -m benchmarks.load.drip KIND PORT COUNT SECONDS`: clients that are slow on purpose, for `slow` beside it.

heads: a head that never ends, a byte a second; bodies: a body, a byte a second; readers: a download of 16 MiB of which
a little is read each second. Says `open` once all are connected. In the end, after SECONDS or when all were closed, one
line of JSON: how many were closed by the other side, and how long the last of them had lived (seconds).
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

import orjson

START = {
    "heads": b"GET /128 HTTP/1.1\r\nHost: slow\r\nX-Drip: ",
    "bodies": b"POST /128 HTTP/1.1\r\nHost: slow\r\nContent-Length: 1000000\r\n\r\n",
    "readers": b"GET /16777216 HTTP/1.1\r\nHost: slow\r\n\r\n",
}
READ = 1024


class Crowd:
    """All clients of one kind. Each has a turn once a second, spread evenly over it."""

    def __init__(self, kind: str, port: int, count: int) -> None:
        self.kind = kind
        self.lives: list[float] = []
        self.clients: dict[socket.socket, float] = {}
        self.turns: list[socket.socket] = []
        self.watch = selectors.EpollSelector()
        for _ in range(count):
            client = socket.socket()
            if kind == "readers":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
            self.clients[client] = time.monotonic()
            client.send(START[kind])
            if kind != "readers":  # whose end is seen when they read
                self.watch.register(client, selectors.EVENT_READ)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        due = time.monotonic()
        while self.clients and time.monotonic() < end:
            if not self.turns:
                self.turns = list(self.clients)
            client = self.turns.pop()
            if client in self.clients:
                self.turn(client)
            due += 1.0 / max(1, len(self.clients))
            self.look(max(0.0, due - time.monotonic()))

    def look(self, seconds: float) -> None:
        for key, _ in self.watch.select(seconds):
            self.read(key.fileobj)  # type: ignore[arg-type]

    def turn(self, client: socket.socket) -> None:
        if self.kind == "readers":
            self.read(client)
            return
        try:
            client.send(b"x")
        except BlockingIOError:
            pass
        except OSError:
            self.gone(client)

    def read(self, client: socket.socket) -> None:
        try:
            if not client.recv(READ):
                self.gone(client)
        except BlockingIOError:
            pass
        except OSError:
            self.gone(client)

    def gone(self, client: socket.socket) -> None:
        self.lives.append(time.monotonic() - self.clients.pop(client))
        if self.kind != "readers":
            self.watch.unregister(client)
        client.close()


def main() -> None:
    kind, port, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    crowd = Crowd(kind, port, count)
    print("open", flush=True)
    crowd.run(seconds)
    print(orjson.dumps({"closed": len(crowd.lives), "longest": max(crowd.lives, default=0.0)}).decode(), flush=True)


if __name__ == "__main__":
    main()
