"""`graylb register` as a process, with a service of its own, before a real etcd."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.control.etcd import servers
from tests.control.etcd.servers import Cluster, until

SERVICE = """
import os, signal, socket, sys
port, notes = int(sys.argv[1]), sys.argv[2]
def note(text):
    with open(notes, "a") as file:
        file.write(text + "\\n")
def listen(*_):
    global server
    server = socket.create_server(("127.0.0.1", port))
def end(*_):
    note("ended")
    sys.exit(9)
note(str(os.getpid()))
note("grpc " + str("GRPC_ENABLE_FORK_SUPPORT" in os.environ))
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, lambda *_: server.close())
signal.signal(signal.SIGUSR2, listen)
listen()
while True:
    signal.pause()
"""

ENVIRONMENT = {name: each for name, each in os.environ.items() if not name.startswith("GRPC_")}
"""Without what graylb sets for gRPC of its own, in this process too."""

ORDER = """
import signal, socket, sys
port, notes, etcd, key = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
from graylb.control.etcd.messages import rpc, stubs
import grpc
def end(*_):
    with grpc.insecure_channel(etcd) as channel:
        found = stubs.KVStub(channel).Range(rpc.RangeRequest(key=key.encode()), timeout=5).kvs
    with open(notes, "w") as file:
        file.write("present" if found else "absent")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
server = socket.create_server(("127.0.0.1", port))
while True:
    signal.pause()
"""


class Registered:
    """`graylb register` with the service above."""

    def __init__(self, folder: Path, etcd: Cluster, prefix: str) -> None:
        self.folder, self.etcd, self.prefix = folder, etcd, prefix
        (self.port,) = servers.free_ports(1)
        self.key = f"{prefix}services/users/instances/127.0.0.1:{self.port}"
        self.notes, self.log = folder / "notes", folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, code: str = SERVICE, more: tuple[str, ...] = ()) -> Registered:
        command = [sys.executable, "-m", "graylb.cli", "register", "--service", "users", "--version", "v2"]
        command += ["--address", f"127.0.0.1:{self.port}", "--etcd", ",".join(self.etcd.endpoints)]
        command += ["--prefix", self.prefix, "--meta", "env=gray", "--zone", "a", *options, "--", sys.executable]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "-c", code, str(self.port), str(self.notes), *more], stderr=log, env=ENVIRONMENT
            )
        return self

    def lease(self) -> int:
        """Of its key; 0 when there is none."""
        with self.etcd.nodes[0].store() as store:
            value, about = store.get(self.key)
        if value is not None:
            assert orjson.loads(value)["metadata"] == {"env": "gray"}
        return int(about.lease_id) if value is not None else 0

    def registered(self) -> Registered:
        until(self.lease, f"registered; {self.log.read_text()}")
        return self

    def gone(self) -> bool:
        return not self.lease()

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=servers.PATIENCE)

    def service(self) -> int:
        """Its process id."""
        return int(self.notes.read_text().split()[0])

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.notes.exists() and (first := self.notes.read_text().split()[:1]) and first[0].isdigit():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(first[0]), signal.SIGKILL)


@pytest.fixture
def users(etcd: Cluster, prefix: str, tmp_path: Path) -> Iterator[Registered]:
    registered = Registered(tmp_path, etcd, prefix)
    yield registered
    registered.close()


def test_taken_out_before_the_service_is_told_to_end(tmp_path: Path, prefix: str) -> None:
    """The way to etcd is slow for the registrar, and not for the service, which looks whether it is still there."""
    with servers.running(tmp_path / "etcd", wired=True) as cluster:
        users, node = Registered(tmp_path, cluster, prefix), cluster.nodes[0]
        try:
            users.start(code=ORDER, more=(node.address, users.key)).registered()
            assert node.wire is not None
            node.wire.stall()
            users.send(signal.SIGTERM)
            until(
                lambda: "SIGTERM: taking it out of etcd first" in users.log.read_text(), "it is about to be taken out"
            )
            node.wire.mend()
            assert users.wait() == 0
            assert users.notes.read_text() == "absent"
        finally:
            users.close()


def test_the_service_s_own_end_is_passed_on(users: Registered) -> None:
    users.start().registered()
    os.kill(users.service(), signal.SIGTERM)
    assert users.wait() == 9
    assert users.gone()
    assert "grpc False" in users.notes.read_text()
    assert f"graylb: registered as {users.key}" in users.log.read_text()


def test_a_service_that_is_killed(users: Registered) -> None:
    users.start().registered()
    os.kill(users.service(), signal.SIGKILL)
    assert users.wait() == 128 + signal.SIGKILL
    assert users.gone()


def test_a_registrar_that_is_killed_is_forgotten_after_the_time_of_its_lease(users: Registered) -> None:
    users.start("--ttl", "2").registered()
    users.send(signal.SIGKILL)
    users.wait()
    until(users.gone, "the key is gone")
    os.kill(users.service(), 0)  # the service goes on


def test_time_to_drain_and_a_second_signal(users: Registered) -> None:
    users.start("--drain", "1h").registered()
    users.send(signal.SIGTERM)
    until(users.gone, "taken out")
    assert "ended" not in users.notes.read_text()
    users.send(signal.SIGTERM)
    assert users.wait() == 9


def test_a_port_that_stops_answering(users: Registered) -> None:
    """SIGUSR1 and SIGUSR2 are passed on: the service closes its port, and opens it."""
    users.start("--check", "200ms").registered()
    users.send(signal.SIGUSR1)
    until(users.gone, "taken out")
    users.send(signal.SIGUSR2)
    until(users.lease, "registered again")
    users.send(signal.SIGINT)
    assert users.wait() == 128 + signal.SIGINT


def test_a_port_that_never_answers(users: Registered) -> None:
    (elsewhere,) = servers.free_ports(1)
    users.start("--wait", "3s", "--probe", f"127.0.0.1:{elsewhere}")
    assert users.wait() == 1
    assert f"graylb: 127.0.0.1:{elsewhere} did not answer within 3 s" in users.log.read_text()
    assert "ended" in users.notes.read_text()
    assert users.gone()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--address", "x", "true"], 2, 'register: address "x": expected HOST:PORT'),
        (["--address", "a:1", "--meta", "env", "true"], 2, "--meta env: expected KEY=VALUE, such as env=gray"),
        (["--address", "a:1", "--wait", "soon", "true"], 2, 'wait "soon": expected a time'),
        (["--address", "a:1", "--etcd", "ftp://x", "true"], 2, "etcd: endpoints begin with http:// or https://"),
        (["--address", "a:1", "--password-file", "/none", "true"], 2, "--password-file /none cannot be read"),
        (["--address", "a:1", "/no/such/service"], 127, "/no/such/service: No such file"),
        (["--address", "127.0.0.1:1", "sh", "-c", "exit 5"], 5, ""),
    ],
)
def test_errors_and_statuses(arguments: list[str], status: int, said: str) -> None:
    command = [sys.executable, "-m", "graylb.cli", "register", "--service", "users", "--version", "v2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=servers.PATIENCE)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == status
