"""WebSockets through the proxy: a tunnel after the 101 and not before, otherwise ordinary answers."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

from tests.integration import proxies
from tests.integration.proxies import Proxy, until

OFFER = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"


class Echo:
    """A WebSocket server that sends everything back; its connections for a test to look at."""

    def __init__(self) -> None:
        self.connections: list[ServerConnection] = []
        self.closed = threading.Event()
        self.server: Server = serve(self.talk, "127.0.0.1", 0, max_size=None, compression=None)
        self.address = f"127.0.0.1:{self.server.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def talk(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        with contextlib.suppress(ConnectionClosedOK, ConnectionClosedError):
            for message in connection:
                connection.send(message)
        self.closed.set()

    def stop(self) -> None:
        self.server.shutdown()
        for connection in self.connections:
            connection.close()
        self.thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.stop()


@pytest.fixture
def proxy(tmp_path: Path, echo: Echo) -> Iterator[Proxy]:
    with proxies.running(tmp_path, proxies.document({"talk": proxies.service(echo.address)})) as running:
        yield running


def tunnels(proxy: Proxy) -> int:
    return sum(each["stats"]["tunnels"] for each in proxy.call("/stats"))


def opened(proxy: Proxy) -> ClientConnection:
    return connect(f"ws://{proxy.address}/ws", max_size=None, compression=None, proxy=None)


def test_messages_go_both_ways_and_the_close_handshake_ends_it(proxy: Proxy, echo: Echo) -> None:
    with opened(proxy) as client:
        assert client.response is not None
        assert client.response.status_code == 101
        assert client.response.headers["x-graylb-service"] == "talk"
        for message in ("hello", b"\0\xff" * 500, "ü" * 300_000):
            client.send(message)
            assert client.recv() == message
        assert client.ping().wait(10)
        assert tunnels(proxy) == 1
    assert echo.closed.wait(10)
    until(lambda: tunnels(proxy) == 0, "the tunnel to be gone")


def test_much_in_both_directions_at_once(proxy: Proxy) -> None:
    message, count = b"x" * 262_144, 40
    with opened(proxy) as client:
        sender = threading.Thread(target=lambda: [client.send(message) for _ in range(count)])
        sender.start()
        assert all(client.recv() == message for _ in range(count))
        sender.join()


def test_configuration_changes_never_touch_it(proxy: Proxy, echo: Echo) -> None:
    with opened(proxy) as client:
        for revision in range(5):
            proxy.edit(
                {
                    **proxy.document,
                    "services": {"talk": proxies.service(echo.address, sticky=[{"query": f"q{revision}"}])},
                }
            )
            client.send(f"still {revision}")
            assert client.recv() == f"still {revision}"
        # its instance is gone from the table
        proxy.edit({**proxy.document, "services": {"talk": proxies.service("127.0.0.1:1")}})
        client.send("and now")
        assert client.recv() == "and now"


def test_an_upstream_that_refuses_answers_as_ever(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with proxies.running(tmp_path, proxies.document({"talk": proxies.service(address)})) as proxy:
            asked: list[bytes] = []

            def refuse() -> None:
                made, _ = listener.accept()
                with made:
                    asked.append(made.recv(65536))
                    made.sendall(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno")

            thread = threading.Thread(target=refuse)
            thread.start()
            with pytest.raises(InvalidStatus) as refused:
                opened(proxy)
            assert refused.value.response.status_code == 403
            thread.join()
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in asked[0]


def exchange(proxy: Proxy, listener: socket.socket, sent: bytes) -> tuple[socket.socket, socket.socket, bytes]:
    """(client, upstream side, head that arrived there) after `sent`."""
    host, _, port = proxy.address.rpartition(":")
    client = socket.create_connection((host, int(port)), 10)
    client.sendall(sent)
    upstream, _ = listener.accept()
    upstream.settimeout(10)
    head = b""
    while b"\r\n\r\n" not in head:
        head += upstream.recv(65536)
    return client, upstream, head


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[tuple[Proxy, socket.socket]]:
    """A proxy before a listening socket that the test plays itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with proxies.running(tmp_path, proxies.document({"talk": proxies.service(address)})) as proxy:
            yield proxy, listener


def test_no_byte_goes_through_before_the_101_and_each_end_may_stop_first(bare: tuple[Proxy, socket.socket]) -> None:
    proxy, listener = bare
    client, upstream, head = exchange(proxy, listener, OFFER + KEY + b"early")
    with client, upstream:
        assert head.endswith(b"\r\n\r\n")
        upstream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        assert upstream.recv(100) == b"early"
        got = b""
        while not got.endswith(b"first"):
            got += client.recv(65536)
        assert got.startswith(b"HTTP/1.1 101 ")
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in got
        client.shutdown(socket.SHUT_WR)
        assert upstream.recv(100) == b""
        upstream.sendall(b"last words")
        upstream.close()
        got = b""
        while piece := client.recv(100):
            got += piece
        assert got == b"last words"


def test_a_client_that_vanishes_takes_its_tunnel_along(bare: tuple[Proxy, socket.socket]) -> None:
    proxy, listener = bare
    client, upstream, _ = exchange(proxy, listener, OFFER + KEY)
    with client, upstream:
        upstream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert client.recv(65536)
        until(lambda: tunnels(proxy) == 1, "the tunnel")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert upstream.recv(1) == b""
    until(lambda: tunnels(proxy) == 0, "the tunnel to be gone")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade,HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n" + KEY,
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n" + KEY,
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n" + KEY,
    ],
)
def test_other_offers_are_left_out_and_a_101_to_them_is_no_answer(
    bare: tuple[Proxy, socket.socket], sent: bytes
) -> None:
    proxy, listener = bare
    client, upstream, head = exchange(proxy, listener, sent)
    with client, upstream:
        assert b"upgrade" not in head.lower()
        upstream.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nsmuggled"
        )
        got = client.recv(65536)
        assert got.startswith(b"HTTP/1.1 502 ")
        assert b"smuggled" not in got
