"""Large bodies, many at once and with slow ends: every byte in its place, memory bounded, nobody's bytes elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.integration import proxies
from tests.integration.engines import Ask, Caller, OriginLink, Rig, gather, request, run, service, until
from tests.integration.upstream import Call, Upstream

MIB = 1 << 20
SIZES = [MIB, MIB + 1, 3 * MIB - 7, 5 * MIB, 20 * MIB]
FRAMINGS = ["length", "chunked"]
SLOW = 65536
"""Receive buffer of a slow reader, bytes."""


def stream(seed: int, size: int) -> Iterator[bytes]:
    """`size` bytes that no other seed has, in pieces; a piece in the wrong place changes the digest."""
    block = hashlib.shake_128(b"%d" % seed).digest(65536)
    for number in range(0, size, len(block)):
        yield (b"%016d" % number + block[16:])[: size - number]


def digest(seed: int, size: int) -> str:
    total = hashlib.sha256()
    for piece in stream(seed, size):
        total.update(piece)
    return total.hexdigest()


def framed(pieces: Iterator[bytes], framing: str) -> Iterator[bytes]:
    for piece in pieces:
        yield piece if framing == "length" else b"%x\r\n%b\r\n" % (len(piece), piece)
    if framing == "chunked":
        yield b"0\r\n\r\n"


def line(size: int, framing: str) -> str:
    return f"Content-Length: {size}" if framing == "length" else "Transfer-Encoding: chunked"


# ---- the whole program -----------------------------------------------------------------------------------------------


def swallow(call: Call, slow: bool) -> None:
    """Answers with the digest of what came."""
    total = hashlib.sha256()
    pause = threading.Event()
    count = 0
    while piece := call.read(32768 if slow else 262_144):
        total.update(piece)
        count += 1
        if slow and count % 8 == 0:
            pause.wait(0.002)
    call.answer(200, total.hexdigest().encode())


def pour(call: Call) -> None:
    """A body as the target asks: /down?SEED,SIZE,FRAMING."""
    seed, size, framing = call.request.target.partition("?")[2].split(",")
    call.send(f"HTTP/1.1 200 OK\r\n{line(int(size), framing)}\r\n\r\n".encode())
    for piece in framed(stream(int(seed), int(size)), framing):
        call.send(piece)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream().start()
    made.on("/slow", lambda call: swallow(call, True))
    made.on("/fast", lambda call: swallow(call, False))
    made.on("/down", pour)
    yield made
    made.stop()
    made.check()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[proxies.Proxy]:
    doc = proxies.document({"users": proxies.service(upstream.address)})
    with proxies.running(tmp_path_factory.mktemp("large"), doc) as made:
        yield made


def download(proxy: proxies.Proxy, seed: int, size: int, framing: str, slow: bool) -> None:
    total, pause = hashlib.sha256(), threading.Event()
    count = 0

    def take(piece: bytes) -> None:
        nonlocal count
        total.update(piece)
        count += 1
        if slow and count % 4 == 0:
            pause.wait(0.002)

    with proxy.client(receive_buffer=SLOW if slow else 0) as client:
        client.send(b"GET /down?%d,%d,%b HTTP/1.1\r\nHost: x\r\n\r\n" % (seed, size, framing.encode()))
        assert client.response(sink=take).size == size
        assert total.hexdigest() == digest(seed, size)
        assert client.ask(target="/after").status == 200


def upload(proxy: proxies.Proxy, seed: int, size: int, framing: str, slow: bool) -> None:
    with proxy.client() as client:
        path = "/slow" if slow else "/fast"
        client.send(f"POST {path} HTTP/1.1\r\nHost: x\r\n{line(size, framing)}\r\n\r\n".encode())
        client.send(*framed(stream(seed, size), framing))
        assert client.response().body.decode() == digest(seed, size)
        assert client.ask(target="/after").status == 200


@pytest.mark.parametrize("framing", FRAMINGS)
def test_many_at_once_with_slow_and_fast_ends(proxy: proxies.Proxy, framing: str) -> None:
    (pid,) = proxy.workers()
    worker = psutil.Process(pid)
    upload(proxy, 99, MIB, framing, True)
    download(proxy, 98, MIB, framing, True)
    before = worker.memory_info().rss
    fds = worker.num_fds()
    jobs: list[tuple[Any, ...]] = []
    for number, size in enumerate(SIZES[:4] * 2 + SIZES[4:]):
        jobs += [
            (work, proxy, 2 * number + slow, size, framing, bool(slow))
            for work in (upload, download)
            for slow in (0, 1)
        ]
    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(*job) for job in jobs]
        most = before
        while not all(job.done() for job in running):
            most = max(most, worker.memory_info().rss)
            threading.Event().wait(0.01)
        for job in running:
            job.result()
    assert most - before < 12 * MIB, f"{(most - before) / MIB:.1f} MiB more for 12 bodies under way"
    proxies.until(lambda: worker.num_fds() <= fds + 40, "descriptors")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_stalled_readers_hold_a_block_each(proxy: proxies.Proxy, upstream: Upstream, framing: str) -> None:
    """Fifty downloads of which nobody reads a byte: at most 256 KiB each, and others are served."""
    (pid,) = proxy.workers()
    worker = psutil.Process(pid)
    download(proxy, 1, MIB, framing, True)
    before = worker.memory_info().rss
    asked = len(upstream.of("/down"))
    clients = [proxy.client(receive_buffer=SLOW) for _ in range(50)]
    for number, client in enumerate(clients):
        client.send(b"GET /down?%d,%d,%b HTTP/1.1\r\nHost: x\r\n\r\n" % (number, 20 * MIB, framing.encode()))
    upstream.wait(lambda: len(upstream.of("/down")) == asked + 50, "their requests")
    for _ in range(20):
        with proxy.client() as client:
            assert client.ask(target="/after").status == 200
        assert worker.memory_info().rss - before < 50 * (MIB // 4) + 4 * MIB
    # half of them go on, half of them go away
    for client in clients[25:]:
        client.reset()
    for number, client in enumerate(clients[:4]):
        total = hashlib.sha256()
        assert client.response(sink=total.update).size == 20 * MIB
        assert total.hexdigest() == digest(number, 20 * MIB)
    for client in clients[:25]:
        client.close()


# ---- ends that go in the middle --------------------------------------------------------------------------------------


def test_nobody_gets_what_was_on_its_way_to_one_that_went(proxy: proxies.Proxy, upstream: Upstream) -> None:
    """Instances that reset in the middle of an upload, clients in the middle of a download, when buffers are full: what
    comes next is whole and has not a byte of theirs."""
    gate = threading.Event()

    def leave(call: Call) -> None:
        gate.wait(10)
        call.reset()

    upstream.on("/leave", leave)
    for turn in range(6):
        gate.clear()
        uploads = [proxy.client() for _ in range(6)]
        for number, client in enumerate(uploads):
            client.send(f"PUT /leave HTTP/1.1\r\nHost: x\r\n{line(8 * MIB, 'length')}\r\n\r\n".encode())
            client.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for piece in stream(1000 + number, 8 * MIB):
                    client.sock.sendall(piece)
        downloads = [proxy.client(receive_buffer=SLOW) for _ in range(6)]
        for number, client in enumerate(downloads):
            client.send(b"GET /down?%d,%d,length HTTP/1.1\r\nHost: x\r\n\r\n" % (2000 + number, 8 * MIB))
        upstream.wait(lambda: len(upstream.of("/leave")) == 6 * (turn + 1), "uploads")  # noqa: B023
        gate.set()
        for client in downloads:
            client.reset()
        for number in range(4):
            upload(proxy, 10 * turn + number, MIB + 13, "length", False)
            download(proxy, 10 * turn + number, MIB + 17, "length", True)
        for client in uploads:
            client.close()
    stats = proxy.call("/stats")[0]["stats"]
    proxies.until(lambda: proxy.call("/stats")[0]["stats"]["exchanges"] == 0, f"no exchange to be left of {stats}")


# ---- in the test's own loop ------------------------------------------------------------------------------------------


async def take_slowly(link: Caller | OriginLink, size: int) -> bytes:
    """Stops reading again and again, so that what is on its way fills every buffer."""
    got = bytearray()
    while len(got) < size:
        link.transport.pause_reading()
        await asyncio.sleep(0)
        link.transport.resume_reading()
        while not link.buffer:
            assert await link.more()
        got += link.take(min(size - len(got), len(link.buffer)))
    return bytes(got)


@pytest.mark.parametrize("size", [49_151, 49_152, 49_153, 65_536, 262_143, 262_144, 262_145, 1_048_576, 1_048_577])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_sizes_at_the_edges_of_buffers(size: int, framing: str) -> None:
    """There and back, several times over one connection and over several; each body has a stranger's behind it."""

    async def back(ask: Ask) -> None:
        body = await ask.read_body()
        if framing == "length":
            ask.answer(body)
        else:
            ask.link.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in framed(iter([body]), framing):
                ask.link.write(piece)

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/back"] = back
        rig.swap(service(origin))

        async def one(seed: int) -> None:
            caller = await rig.caller()
            for turn in range(3):
                body = b"".join(stream(seed + turn, size))
                caller.write(request("POST", "/back", line(size, framing)) + b"".join(framed(iter([body]), framing)))
                if turn == 1:
                    caller.write(request(target="/next"))
                assert (await caller.answer()).body == body
                if turn == 1:
                    assert (await caller.answer()).body == b"hello"

        await gather(one(10 * seed) for seed in range(4))
        assert rig.stats["errors"] == {}
        found = rig.stats["versions"][0]
        assert (found["bytes_in"], found["bytes_out"]) == (12 * size, 12 * size + 4 * 5)

    run(test)


@pytest.mark.parametrize("cut", [0, 1, 60_000, 400_000, 2_999_999])
@pytest.mark.parametrize("way", ["reset", "close"])
@pytest.mark.parametrize("side", ["client", "instance"])
def test_an_upload_that_ends_in_the_middle(side: str, way: str, cut: int) -> None:
    """The other side is told; nothing is left, and what comes next is whole."""

    async def stop(ask: Ask) -> None:
        if side == "instance":
            await ask.link.exactly(cut)
            if way == "reset":
                ask.link.reset()
            raise EOFError
        await ask.read_body()
        ask.answer()

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers["/stop"] = stop
        rig.swap(service(origin))
        body = b"".join(stream(5, 3_000_000))
        for _ in range(3):
            head = request("PUT", "/stop", "Content-Length: 3000000")
            caller = await rig.send(head if side == "client" else head + body)
            await origin.asked(1)
            if side == "client":
                caller.write(body[:cut])
                await until(lambda: len(origin.asks[-1].link.raw) > cut, "what was sent")
                if way == "reset":
                    caller.reset()
                else:
                    caller.close()
                await until(lambda: origin.asks[-1].link.eof, "the instance to be told")
            else:
                assert (await caller.answer()).status == 502
            origin.asks.clear()
            got = await rig.ask("POST", "/", body=body)
            assert got.status == 200
            assert origin.asks[-1].body == body
            origin.asks.clear()

    run(test)


@pytest.mark.parametrize("cut", [0, 1, 60_000, 400_000, 2_999_999])
@pytest.mark.parametrize("way", ["reset", "close"])
@pytest.mark.parametrize("side", ["client", "instance"])
def test_a_download_that_ends_in_the_middle(side: str, way: str, cut: int) -> None:
    body = b"".join(stream(6, 3_000_000))

    async def down(ask: Ask) -> None:
        ask.link.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + body[: cut if side == "instance" else None]
        )
        if side == "instance":
            if way == "reset":
                await asyncio.sleep(0)
                ask.link.reset()
            raise EOFError

    async def whole(ask: Ask) -> None:
        ask.answer(body)

    async def test(rig: Rig) -> None:
        origin = await rig.origin()
        origin.handlers |= {"/down": down, "/whole": whole}
        rig.swap(service(origin))
        for _ in range(3):
            caller = await rig.send(request(target="/down"))
            if side == "client":
                head = await caller.until(b"\r\n\r\n")
                assert b" 200 " in head
                assert await take_slowly(caller, cut) == body[:cut]
                if way == "reset":
                    caller.reset()
                else:
                    caller.close()
            else:
                got = await caller.ended()
                if way == "close":
                    assert b" 200 " in got[:20]
                    assert got.endswith(body[:cut])
                    assert len(got) < cut + 500
            caller = await rig.caller()
            caller.write(request(target="/whole"))
            await caller.until(b"\r\n\r\n")
            assert await take_slowly(caller, len(body)) == body

    run(test)
