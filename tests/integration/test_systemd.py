"""What a service manager sees: messages on a real datagram socket, sockets that it opened, a watchdog."""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import proxies
from tests.integration.client import Client
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Upstream

ACTIVATE = """
import os, sys
for at, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between fork and exec: the sockets become the descriptors from 3 on."""


class Manager:
    """Keeps (sender's process id, lines) of every message."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.said: list[tuple[int, list[str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            if not text:
                return
            pid = struct.unpack("iii", array.array("B", ancillary[0][2]).tobytes())[0]
            self.said.append((pid, text.decode().split("\n")))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()

    def wait(self, pid: int, line: str, after: int = 0) -> int:
        """How many messages there were once `pid` had said a line that begins so, later than `after` messages."""

        def look() -> int:
            return next(
                (
                    at + 1
                    for at, (sender, lines) in enumerate(self.said)
                    if at >= after and sender == pid and any(each.startswith(line) for each in lines)
                ),
                0,
            )

        return until(look, f"{line} of process {pid} in {self.said}")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream("only").start()
    yield made
    made.stop()
    made.check()


def document(upstream: Upstream, *listeners: str) -> proxies.Document:
    doc = proxies.document({"users": proxies.service(upstream.address)})
    return {**doc, "listeners": [{"address": address} for address in listeners]} if listeners else doc


def test_it_says_what_it_does(tmp_path: Path, manager: Manager, upstream: Upstream) -> None:
    pid_file = tmp_path / "graylb.pid"
    options = ("--pid-file", pid_file)
    proxy = Proxy(tmp_path, document(upstream), *options, environment={"NOTIFY_SOCKET": manager.address})
    try:
        first = proxy.pid
        at = manager.wait(first, "READY=1")
        assert at == 1, "nothing is said before it is ready"
        assert f"STATUS=revision 1 on {proxy.address}, 1 workers" in manager.said[0][1]
        os.kill(first, signal.SIGHUP)
        at = manager.wait(first, "RELOADING=1", at)
        assert manager.said[at - 1][1][1].startswith("MONOTONIC_USEC=")
        at = manager.wait(first, "READY=1", at)
        proxy.write("nonsense")
        os.kill(first, signal.SIGHUP)
        at = manager.wait(first, "RELOADING=1", at)
        at = manager.wait(first, "READY=1", at)
        assert "a newer configuration is refused" in manager.said[at - 1][1][1]
        proxy.edit({**proxy.document, "decision_headers": False})
        at = manager.wait(first, "STATUS=revision 2", at)
        os.kill(first, signal.SIGUSR2)
        at = manager.wait(first, "MAINPID=", at)
        second = int(manager.said[at - 1][1][0].removeprefix("MAINPID="))
        assert all(pid == first for pid, _ in manager.said[:at]), "the successor is not believed before"
        at = manager.wait(second, "READY=1", at)
        assert second == until(lambda: (pid := int(pid_file.read_text())) != first and pid, "the pid file")
        assert proxy.process is not None
        assert proxy.process.wait(proxies.PATIENCE) == 0
        assert not any("STOPPING=1" in lines for _, lines in manager.said), "the service goes on"
        os.kill(second, signal.SIGTERM)
        manager.wait(second, "STOPPING=1", at)
        until(lambda: not pid_file.exists(), "the end")
    finally:
        proxy.kill()


def test_the_watchdog_hears_of_a_worker_that_hangs(tmp_path: Path, manager: Manager, upstream: Upstream) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "150000"}
    proxy = Proxy(tmp_path, document(upstream), environment=environment)
    try:
        at = 0
        for _ in range(3):
            at = manager.wait(proxy.pid, "WATCHDOG=1", at)
        (worker,) = proxy.workers()
        os.kill(worker, signal.SIGSTOP)
        proxy.wait_for_log("worker 0 does not answer")
        said = len(manager.said)
        os.kill(worker, signal.SIGCONT)
        at = manager.wait(proxy.pid, "WATCHDOG=1", said)
        os.kill(worker, signal.SIGKILL)
        manager.wait(proxy.pid, "WATCHDOG=1", at)
        proxy.stop()
    finally:
        proxy.kill()


def test_a_watchdog_of_another_process_is_not_ours(tmp_path: Path, manager: Manager, upstream: Upstream) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    with proxies.running(tmp_path, document(upstream), environment=environment) as proxy:
        manager.wait(proxy.pid, "READY=1")
    assert not any("WATCHDOG=1" in lines for _, lines in manager.said)


# -- sockets that were opened for it ---------------------------------------------------------------------------------


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "web.sock"))
        made.listen()
        yield made


def activated(folder: Path, doc: proxies.Document, *sockets: socket.socket, start: bool = True) -> Proxy:
    fds = [made.fileno() for made in sockets]
    return Proxy(
        folder,
        doc,
        "--pid-file",
        folder / "graylb.pid",
        launcher=[sys.executable, "-c", ACTIVATE, ",".join(map(str, fds))],
        fds=fds,
        environment={"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(f"s{n}.socket" for n in range(len(fds)))},
        start=start,
    )


def test_sockets_of_the_manager(tmp_path: Path, upstream: Upstream, tcp: socket.socket, unix: socket.socket) -> None:
    """Shared by two workers, handed on at a roll, left where they are in the end; what waits in them is served."""
    address, path = f"127.0.0.1:{tcp.getsockname()[1]}", tmp_path / "web.sock"
    early = Client(address).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    proxy = activated(tmp_path, {**document(upstream, address, f"unix:{path}"), "workers": 2}, tcp, unix)
    try:
        assert early.response().status == 200
        early.close()
        pid_file = tmp_path / "graylb.pid"
        for roll in (True, False):
            with Client(address) as client, Client(f"unix:{path}") as local:
                assert (client.ask().status, local.ask().status) == (200, 200)
            old = int(pid_file.read_text())
            assert proxy.status()["listeners"] == [address, f"unix:{path}"]
            os.kill(old, signal.SIGUSR2 if roll else signal.SIGTERM)
            until(lambda old=old: not pid_file.exists() or int(pid_file.read_text()) != old, "what it was told")  # type: ignore[misc]
        assert path.exists()
        Client(address).close()  # it is still there
    finally:
        proxy.kill()


def test_the_admin_address_too(tmp_path: Path, upstream: Upstream, tcp: socket.socket) -> None:
    doc = {**document(upstream), "admin": {"address": f"127.0.0.1:{tcp.getsockname()[1]}"}}
    proxy = activated(tmp_path, doc, tcp)
    try:
        assert proxy.status()["admin"] == doc["admin"]["address"]
        proxy.stop()
    finally:
        proxy.kill()


def test_a_socket_that_no_listener_names_is_told(tmp_path: Path, upstream: Upstream, tcp: socket.socket) -> None:
    proxy = activated(tmp_path, document(upstream, "127.0.0.1:0"), tcp, start=False)
    with pytest.raises(AssertionError, match="exited with 1"):
        proxy.start()
    address = f"127.0.0.1:{tcp.getsockname()[1]}"
    assert proxy.log().strip() == (
        f"graylb: no listener has the address of the socket s0.socket ({address}) from systemd; there is 127.0.0.1:0"
    )
