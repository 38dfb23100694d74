"""What a listener that speaks HTTP/2 alone does with the rest (RFC 9113 section 3.4)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from graylb import builds
from tests.h2_frames import PREFACE, SETTINGS, frames, settings
from tests.integration import proxies
from tests.integration.proxies import Proxy

pytestmark = pytest.mark.skipif(bool(builds.lacks("h2")), reason="built without HTTP/2")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    document = proxies.document({"nobody": proxies.service("127.0.0.1:1")})
    document["listeners"] = [{"address": "127.0.0.1:0", "protocols": ["h2"]}]
    with proxies.running(tmp_path_factory.mktemp("h2"), document) as started:
        yield started


def connected(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    client = socket.create_connection((host, int(port)), 20)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def told(proxy: Proxy, *pieces: bytes) -> bytes:
    """All that comes back before the connection is closed."""
    with connected(proxy) as client:
        for piece in pieces:
            client.sendall(piece)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return received


def test_a_request_of_http1_is_told_that_its_version_is_not_spoken(proxy: Proxy) -> None:
    assert told(proxy, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").startswith(b"HTTP/1.1 505 ")


@pytest.mark.parametrize(
    "nonsense", [b"INVALID CONNECTION PREFACE\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n", b"\0" * 64]
)
def test_what_is_no_preface_is_closed_without_a_word(proxy: Proxy, nonsense: bytes) -> None:
    assert told(proxy, nonsense) == b""


def test_a_preface_may_come_a_byte_at_a_time(proxy: Proxy) -> None:
    with connected(proxy) as client:
        for each in PREFACE + settings():
            client.sendall(bytes([each]))
        received = b""
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3]):
            received += client.recv(65536)
    assert frames(received[: 9 + int.from_bytes(received[:3])])[0].kind == SETTINGS
