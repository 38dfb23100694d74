"""A proxy that stops says goodbye to HTTP/2 clients in two steps, and finishes what it has taken."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from graylb import builds
from tests import h2_frames as h2
from tests.integration import proxies
from tests.integration.upstream import Call, running

pytestmark = pytest.mark.skipif(not builds.has("h2"), reason="this build has no HTTP/2")


class Wire:
    """A connection whose frames are looked at one by one."""

    def __init__(self, proxy: proxies.Proxy) -> None:
        host, port = proxy.address.rsplit(":", 1)
        self.sock = socket.create_connection((host, int(port)), timeout=proxies.PATIENCE)
        self.coder = h2.Coder()
        self.data = b""
        self.sock.sendall(h2.PREFACE + h2.settings())

    def ask(self, stream: int, path: str) -> None:
        self.sock.sendall(self.coder.headers(stream, h2.request(path=path)))

    def next(self) -> h2.Frame | None:
        """None: the end."""
        while len(self.data) < 9 or len(self.data) < (size := 9 + int.from_bytes(self.data[:3])):
            more = self.sock.recv(65536)
            if not more:
                assert not self.data, "a frame is not whole"
                return None
            self.data += more
        (frame,) = h2.frames(self.data[:size])
        self.data = self.data[size:]
        return frame

    def find(self, kind: int, stream: int = 0) -> h2.Frame:
        while frame := self.next():
            if frame.kind == kind and frame.stream == stream and not (kind == h2.SETTINGS and frame.flags & h2.ACK):
                return frame
        raise AssertionError(f"the end before frame {kind} of stream {stream}")


def last_stream(goaway: h2.Frame) -> int:
    assert goaway.error == h2.NO_ERROR
    return int.from_bytes(goaway.payload[:4])


def test_streams_finish_between_two_goodbyes_and_after(tmp_path: Path) -> None:
    with running("slow") as (upstream,):
        gate = upstream.gate()

        def held(call: Call) -> None:
            gate.wait()
            call.answer(200, b"late")

        upstream.on("/held", held)
        doc = proxies.document({"slow": proxies.service(upstream.address)})
        proxy = proxies.Proxy(tmp_path, doc)
        try:
            wire = Wire(proxy)
            wire.ask(1, "/held")
            upstream.wait_requests(1)
            assert proxy.process is not None
            proxy.process.send_signal(signal.SIGTERM)
            assert last_stream(wire.find(h2.GOAWAY)) == 0x7FFFFFFF
            wire.ask(3, "/")  # crosses with it
            assert wire.find(h2.HEADERS, 3).flags & h2.END_HEADERS
            assert last_stream(wire.find(h2.GOAWAY)) == 3
            gate.set()
            assert wire.find(h2.DATA, 1).payload == b"late"
            while wire.next():
                pass
            wire.sock.close()
            assert proxy.process.wait(proxies.PATIENCE) == 0
        finally:
            proxy.kill()
