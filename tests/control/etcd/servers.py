"""Real etcd processes of a test: one node or three, to be killed, frozen, wiped, cut off and brought back."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from graylb.control.etcd.messages import rpc, stubs  # isort: skip  before gRPC, which reads its environment once

import grpc

from tests.control.etcd.wire import Wire

T = TypeVar("T")
PATIENCE = 30.0
SOLO = ("--heartbeat-interval=10", "--election-timeout=100")
"""One node has nobody to wait for."""


def until(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first true answer of `look`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Tls:
    """PEM files. `client_ca` makes the server ask for client certificates."""

    cert: Path
    key: Path
    ca: Path
    client_ca: Path | None = None


class Node:
    """One etcd process. `endpoint` is where clients reach it, through `wire` if there is one."""

    def __init__(self, name: str, folder: Path, ports: tuple[int, int], members: str, *flags: str, **more: Any) -> None:
        self.name, self.folder, self.members, self.flags = name, folder, members, flags
        self.port, self.peer_port = ports
        self.tls: Tls | None = more.get("tls")
        self.wire: Wire | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return self.wire.address if self.wire else self.address

    def start(self, *flags: str) -> Node:
        scheme = "https" if self.tls else "http"
        command = ["etcd", f"--name={self.name}", f"--data-dir={self.folder / self.name}"]
        command += [
            f"--listen-client-urls={scheme}://{self.address}",
            f"--advertise-client-urls={scheme}://{self.address}",
        ]
        command += [f"--listen-peer-urls=http://127.0.0.1:{self.peer_port}"]
        command += [f"--initial-advertise-peer-urls=http://127.0.0.1:{self.peer_port}"]
        command += [f"--initial-cluster={self.members}", "--logger=zap", "--log-outputs=stderr", "--log-level=error"]
        if self.tls:
            command += [f"--cert-file={self.tls.cert}", f"--key-file={self.tls.key}"]
            if self.tls.client_ca:
                command += [f"--trusted-ca-file={self.tls.client_ca}", "--client-cert-auth"]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.flags, *flags], stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        """As by the kernel: no farewell."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process, self.frozen = None, False

    def restart(self) -> None:
        self.kill()
        self.start()
        self.wait()

    def wipe(self) -> None:
        """A new and empty store in its place, as after a lost disk."""
        self.kill()
        shutil.rmtree(self.folder / self.name)
        self.start("--initial-cluster-token=another")
        self.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.frozen = False

    def wait(self) -> None:
        """Until it answers with a quorum behind it."""

        def look() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(grpc.RpcError), self.channel() as channel:
                stubs.KVStub(channel).Range(rpc.RangeRequest(key=b"x"), timeout=1)
                return True
            return False

        if self.tls is None:
            until(look, f"{self.name} is up")
        else:  # who may ask is for the test to know
            until(self.listens, f"{self.name} listens")

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def channel(self) -> Any:
        """A channel past the wire, for what a test does behind graylb's back."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.tls is None:
            return grpc.insecure_channel(self.address, options)
        # the server's pair serves as a client's: it is signed by the same CA
        ca, key, cert = (path.read_bytes() for path in (self.tls.ca, self.tls.key, self.tls.cert))
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(ca, key, cert), options)

    @contextlib.contextmanager
    def store(self, **options: Any) -> Iterator[Any]:
        """etcd3's own client, past the wire: an oracle that shares no code with ours but the messages."""
        import etcd3  # after graylb's messages, which make it work

        client = etcd3.client("127.0.0.1", self.port, timeout=5, **options)
        try:
            yield client
        finally:
            client.close()

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")


class Cluster:
    """`size` nodes in `folder`, each behind a wire if `wired`."""

    def __init__(self, folder: Path, size: int = 1, *flags: str, wired: bool = False, tls: Tls | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * size)
        pairs = list(zip(ports[:size], ports[size:], strict=True))
        members = ",".join(f"n{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(pairs))
        flags = (*SOLO, *flags) if size == 1 else flags
        self.nodes = [Node(f"n{number}", folder, pair, members, *flags, tls=tls) for number, pair in enumerate(pairs)]
        if wired:
            for node in self.nodes:
                node.wire = Wire(node.port)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(node.endpoint for node in self.nodes)

    def start(self) -> Cluster:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait()
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
            if node.wire:
                node.wire.close()

    def leader(self) -> Node:
        """The node that leads, once one does."""

        def look() -> Node | None:
            for node in self.nodes:
                if node.process is None or node.frozen:
                    continue
                with contextlib.suppress(grpc.RpcError), node.channel() as channel:
                    status = stubs.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1)
                    if status.leader and status.leader == status.header.member_id:
                        return node
            return None

        return until(look, "a leader")


@contextlib.contextmanager
def running(folder: Path, size: int = 1, *flags: str, **more: Any) -> Iterator[Cluster]:
    cluster = Cluster(folder, size, *flags, **more)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def secure(node: Node, password: str = "secret", *, reader: tuple[str, str, str] | None = None) -> None:
    """Turns authentication on: user root with `password`, and a (user, password, prefix) that may read that prefix."""
    with node.channel() as channel:
        auth = stubs.AuthStub(channel)
        auth.RoleAdd(rpc.AuthRoleAddRequest(name="root"))
        auth.UserAdd(rpc.AuthUserAddRequest(name="root", password=password))
        auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        if reader:
            user, secret, prefix = reader
            auth.RoleAdd(rpc.AuthRoleAddRequest(name="reader"))
            permission = {
                "permType": 0,
                "key": prefix.encode(),
                "range_end": prefix[:-1].encode() + bytes([ord(prefix[-1]) + 1]),
            }
            auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name="reader", perm=permission))
            auth.UserAdd(rpc.AuthUserAddRequest(name=user, password=secret))
            auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=user, role="reader"))
        auth.AuthEnable(rpc.AuthEnableRequest())
