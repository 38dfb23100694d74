"""A slow side slows the other: whatever the body's size, a worker's memory stays where it is."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.conftest import Site
from tests.integration.client import Client, Response
from tests.integration.proxies import until
from tests.integration.upstream import Call

MIB = 1 << 20
BLOCK = bytes(range(256)) * 1024  # 256 KiB
GROWTH = 4 * MIB
SLOW = 64 * MIB
HUGE = 1 << 30


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes in which every 256 KiB begins with its own number, so that a swap would change the digest."""
    for number in range(size // len(BLOCK)):
        yield number.to_bytes(8, "big") + BLOCK[8:]


def digest(size: int) -> str:
    total = hashlib.blake2b()
    for block in blocks(size):
        total.update(block)
    return total.hexdigest()


class Watch:
    """Growth of the workers' memory, sampled by whoever makes progress."""

    def __init__(self, site: Site) -> None:
        self.workers = [psutil.Process(pid) for pid in site.proxy.workers()]
        self.before = self.now()
        self.most = self.before

    def now(self) -> int:
        return sum(int(worker.memory_info().rss) for worker in self.workers)

    def look(self) -> None:
        self.most = max(self.most, self.now())

    def check(self) -> None:
        self.look()
        assert self.most - self.before < GROWTH, f"{(self.most - self.before) / MIB:.1f} MiB more"


def warm(site: Site) -> None:
    """Buffers that a worker keeps for good exist before the measurement."""
    site.on("/sink", sink)
    assert site.ask("POST", "/sink", body=b"x" * MIB).status == 200


def sink(call: Call) -> None:
    total = hashlib.blake2b()
    while piece := call.read(262144):
        total.update(piece)
    call.answer(200, total.hexdigest().encode())


class Meter:
    """Bytes sent by a sender that may be stalled."""

    def __init__(self) -> None:
        self.sent = 0

    def stalled(self) -> bool:
        """Nothing was sent during 30 looks, 10 ms apart."""
        last, same = -1, 0

        def look() -> bool:
            nonlocal last, same
            same = same + 1 if self.sent == last else 0
            last = self.sent
            return same >= 30

        return until(look, "a stalled sender")


FRAMINGS = ["length", "chunked"]


def download(call: Call, size: int, framing: str, meter: Meter) -> None:
    head = b"content-length: %d" % size if framing == "length" else b"transfer-encoding: chunked"
    call.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
    for block in blocks(size):
        call.send(block if framing == "length" else b"%x\r\n%b\r\n" % (len(block), block))
        meter.sent += len(block)
    if framing == "chunked":
        call.send(b"0\r\n\r\n")


def upload(client: Client, site: Site, path: str, size: int, framing: str, meter: Meter) -> Response:
    line = f"Content-Length: {size}" if framing == "length" else "Transfer-Encoding: chunked"
    client.send(site.request("POST", path, line))
    for block in blocks(size):
        client.send(block if framing == "length" else b"%x\r\n%b\r\n" % (len(block), block))
        meter.sent += len(block)
    if framing == "chunked":
        client.send(b"0\r\n\r\n")
    return client.response()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_slow_reader_of_a_download(site: Site, framing: str) -> None:
    meter = Meter()
    warm(site)
    site.on("/down", lambda call: download(call, SLOW, framing, meter))
    watch = Watch(site)
    client = site.client(receive_buffer=65536).send(site.request(target="/down"))
    assert meter.stalled()
    assert meter.sent < SLOW // 2, "the whole body went somewhere while nobody read"
    watch.check()
    total, pieces = hashlib.blake2b(), 0

    def read(piece: bytes) -> None:
        nonlocal pieces
        total.update(piece)
        pieces += 1
        if pieces % 16 == 0:
            watch.look()

    assert client.response(sink=read).size == SLOW
    assert total.hexdigest() == digest(SLOW)
    watch.check()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_slow_reader_of_an_upload(site: Site, framing: str) -> None:
    meter, gate = Meter(), site.upstream.gate()
    warm(site)

    def late(call: Call) -> None:
        gate.wait()
        sink(call)

    site.on("/late", late)
    watch = Watch(site)
    client = site.client()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(upload, client, site, "/late", SLOW, framing, meter)
        try:
            assert meter.stalled()
            assert meter.sent < SLOW // 2, "the whole body went somewhere while nobody read"
            watch.check()
        finally:
            gate.set()
        assert answer.result(30).body.decode() == digest(SLOW)
    watch.check()


def test_a_slow_reader_does_not_hold_up_others(site: Site) -> None:
    """While one download is stalled, the same worker serves everybody else."""
    meter = Meter()
    site.on("/down", lambda call: download(call, SLOW, "length", meter))
    stalled = site.client(receive_buffer=65536).send(site.request(target="/down"))
    assert meter.stalled()
    client = site.client()
    for _ in range(50):
        assert client.send(site.request()).response().body == b"hello"
    stalled.reset()


def test_many_slow_readers_share_little_memory(site: Site) -> None:
    """Sixteen stalled downloads: each holds a bounded buffer (2 MiB at most by the score-card)."""
    meter, readers = Meter(), 16
    warm(site)
    site.on("/down", lambda call: download(call, SLOW, "length", meter))
    watch = Watch(site)
    clients = [site.client(receive_buffer=65536).send(site.request(target="/down")) for _ in range(readers)]
    site.upstream.wait_requests(1 + readers)
    assert meter.stalled()
    assert meter.sent < readers * SLOW // 2
    watch.look()
    assert watch.most - watch.before < readers * 2 * MIB
    for client in clients:
        client.reset()


def test_pipelined_requests_are_not_read_ahead_without_end(site: Site) -> None:
    """A client that sends requests and reads no answers is not read any more."""
    gate = site.upstream.gate()
    site.on("/hold", lambda call: (gate.wait(), call.answer(200, b"held")))
    watch = Watch(site)
    client = site.client().send(site.request(target="/hold"))
    site.upstream.wait_requests(1)
    meter = Meter()
    batch = site.request(target="/more") * 1000
    client.sock.settimeout(1.0)
    stopped = False
    for _ in range(2000):
        try:
            client.send(batch)
            meter.sent += len(batch)
        except TimeoutError:
            stopped = True
            break
    assert stopped, f"{meter.sent} bytes of requests were taken while the first one was unanswered"
    watch.check()
    gate.set()
    client.reset()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_one_gibibyte_down(site: Site, framing: str) -> None:
    warm(site)
    site.on("/down", lambda call: download(call, HUGE, framing, Meter()))
    watch, total = Watch(site), hashlib.blake2b()
    client = site.client().send(site.request(target="/down"))
    pieces = 0

    def read(piece: bytes) -> None:
        nonlocal pieces
        total.update(piece)
        pieces += 1
        if pieces % 64 == 0:
            watch.look()

    assert client.response(sink=read).size == HUGE
    assert total.hexdigest() == digest(HUGE)
    watch.check()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_one_gibibyte_up(site: Site, framing: str) -> None:
    warm(site)
    watch, done = Watch(site), threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            watch.look()

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        answer = upload(site.client(patience=60), site, "/sink", HUGE, framing, Meter())
    finally:
        done.set()
        sampler.join()
    assert answer.body.decode() == digest(HUGE)
    watch.check()
