"""Floods over real sockets: the connection is closed with its reason, memory stays, and a bystander is served."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, repeat

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded

from graylb import builds
from tests import h2_frames as h2
from tests.integration import proxies
from tests.integration.upstream import Upstream, running

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")

MIB = 1 << 20
MOST = 64 * MIB
"""Bytes of a flood after which it counts as not stopped."""
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
GROWTH = (512 if SANITIZED else 10) * MIB
"""Score-card row 17. A sanitizer keeps what was freed, up to 256 MiB of it in each process."""


def connect(proxy: proxies.Proxy) -> socket.socket:
    host, port = proxy.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=proxies.PATIENCE)


class Bystander:
    """An honest client's connection."""

    def __init__(self, proxy: proxies.Proxy) -> None:
        self.sock = connect(proxy)
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()

    def get(self) -> str:
        """The status of a GET."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, h2.request(), end_stream=True)
        status = ""
        while True:
            self.sock.sendall(self.h2.data_to_send())
            data = self.sock.recv(65536)
            assert data, "the bystander's connection was closed"
            for event in self.h2.receive_data(data):
                if isinstance(event, ResponseReceived):
                    status = dict(event.headers)[b":status"].decode()
                if isinstance(event, StreamEnded):
                    self.sock.sendall(self.h2.data_to_send())
                    return status


@dataclass
class Scene:
    proxy: proxies.Proxy
    upstream: Upstream
    bystander: Bystander


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running("plain") as (upstream,):
        doc = proxies.document({"plain": proxies.service(upstream.address)}, limits={"h2": {"streams": 100}})
        with proxies.running(tmp_path_factory.mktemp("abuse"), doc) as proxy:
            bystander = Bystander(proxy)
            assert bystander.get() == "200"
            yield Scene(proxy, upstream, bystander)
            bystander.sock.close()


def resets() -> Iterator[bytes]:
    coder = h2.Coder()
    return (coder.headers(n, h2.request()) + h2.reset(n) for n in count(1, 2))


def unlawful() -> Iterator[bytes]:
    coder = h2.Coder()
    return (coder.headers(n, h2.request(("Bad", "name"))) for n in count(1, 2))


def posts(frame: bytes) -> Callable[[], Iterator[bytes]]:
    def make() -> Iterator[bytes]:
        yield h2.Coder().headers(1, h2.request(method="POST"), end=False)
        yield from repeat(frame)

    return make


def continuations() -> Iterator[bytes]:
    yield h2.frame(h2.HEADERS, h2.END_STREAM, 1, h2.Coder().block(h2.request()))
    yield from repeat(h2.frame(h2.CONTINUATION, 0, 1))


def bombs() -> Iterator[bytes]:
    """Each a few hundred bytes that say 400 KB."""
    plain = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in h2.request()])
    yield h2.frame(h2.HEADERS, 5, 1, plain + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000)
    for n in count(3, 2):
        yield h2.frame(h2.HEADERS, 5, n, plain + b"\xbe" * 40)


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "rapid reset": resets,
    "provoked resets": unlawful,
    "CONTINUATION": continuations,
    "SETTINGS": lambda: repeat(h2.settings((4, 65535))),
    "PING": lambda: repeat(h2.frame(h2.PING, payload=bytes(8))),
    "PRIORITY": lambda: repeat(h2.frame(h2.PRIORITY, stream=3, payload=bytes(4) + b"\x10")),
    "WINDOW_UPDATE": posts(h2.frame(h2.WINDOW_UPDATE, stream=1, payload=(1).to_bytes(4))),
    "empty DATA": posts(h2.frame(h2.DATA, stream=1)),
    "unknown frames": lambda: repeat(h2.frame(0xBE, payload=b"x")),
    "HPACK bombs": bombs,
}


def told(sock: socket.socket, data: bytes, *, wait: bool) -> bytes:
    """What has arrived, behind this; all until the end where wait is set."""
    sock.settimeout(proxies.PATIENCE if wait else 0)
    try:
        while more := sock.recv(65536):
            data += more
    except (BlockingIOError, ConnectionError):
        pass
    finally:
        sock.settimeout(proxies.PATIENCE)
    return data


def flood(scene: Scene, frames: Iterator[bytes], *, reads: bool = True) -> bytes:
    """Sends until the proxy has had enough; everything that it said."""
    answer = b""
    with connect(scene.proxy) as sock:
        piece, sent = h2.PREFACE + h2.settings(), 0
        while sent < MOST:
            while len(piece) < 16384:
                piece += next(frames)
            try:
                sock.sendall(piece)
            except ConnectionError:
                break
            sent += len(piece)
            piece = b""
            if reads and (answer := told(sock, answer, wait=False)) and goaway(answer):
                break
        assert sent < MOST, "nothing has stopped it"
        return told(sock, answer, wait=True)


def goaway(data: bytes) -> list[int]:
    """Errors of the GOAWAY frames among whole frames."""
    found = []
    while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3])):
        if data[3] == h2.GOAWAY:
            found.append(int.from_bytes(data[13:17]))
        data = data[size:]
    return found


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_stopped(scene: Scene, name: str) -> None:
    before = scene.proxy.rss()
    for _ in range(3):
        answer = flood(scene, FLOODS[name]())
        assert set(goaway(answer)) <= {h2.CALM, h2.PROTOCOL_ERROR}
        assert goaway(answer)
        assert scene.bystander.get() == "200"
    assert scene.proxy.rss() - before < GROWTH


@pytest.mark.parametrize("name", ["PING", "SETTINGS", "rapid reset"])
def test_a_flood_by_one_who_does_not_read_is_stopped(scene: Scene, name: str) -> None:
    before = scene.proxy.rss()
    flood(scene, FLOODS[name](), reads=False)
    assert scene.bystander.get() == "200"
    assert scene.proxy.rss() - before < GROWTH


def test_rapid_reset_costs_the_instance_little(scene: Scene) -> None:
    """Requests that were reset in the batch they came with never reach it."""
    before = len(scene.upstream.requests)
    flood(scene, resets())
    assert scene.bystander.get() == "200"
    assert len(scene.upstream.requests) - before <= 600
