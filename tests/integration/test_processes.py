"""The process tree: workers that die, signals, draining, starting and stopping cleanly."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration import proxies
from tests.integration.client import Client
from tests.integration.load import Load
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Call, Upstream


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream("only").start()
    yield made
    made.stop()
    made.check()


def start(folder: Path, upstream: Upstream, workers: int = 1) -> Proxy:
    return Proxy(folder, proxies.document({"users": proxies.service(upstream.address)}, workers=workers))


@pytest.fixture
def proxy(tmp_path: Path, upstream: Upstream) -> Iterator[Proxy]:
    made = start(tmp_path, upstream)
    yield made
    made.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced(tmp_path: Path, upstream: Upstream, workers: int) -> None:
    proxy = start(tmp_path, upstream, workers)
    try:
        before = proxy.workers()
        assert len(set(before)) == workers
        os.kill(before[0], signal.SIGKILL)
        until(lambda: before[0] not in (now := proxy.workers()) and len(now) == workers, "another worker")
        until(lambda: all(worker["ready"] for worker in proxy.status()["workers"]), "all workers ready")
        for _ in range(10):
            with proxy.client() as client:
                answer = client.ask()
                assert (answer.status, answer.get("x-graylb-revision")) == (200, str(proxy.revision))
        proxy.stop()
    finally:
        proxy.kill()


def test_new_connections_wait_for_the_next_worker(proxy: Proxy) -> None:
    """The supervisor holds the listening sockets: nobody is refused between two workers."""
    for _ in range(3):
        (worker,) = proxy.workers()
        os.kill(worker, signal.SIGKILL)
        with proxy.client() as client:
            assert client.ask().status == 200
        until(lambda old=worker: proxy.workers() != [old] and proxy.status()["ready"], "another worker")  # type: ignore[misc]
    proxy.stop()


def test_workers_killed_under_load_nobody_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    proxy = start(tmp_path, upstream, 2)
    try:
        with Load(proxy, threads=4, keep_alive=False) as load:
            for turn in range(6):
                worker = proxy.status()["workers"][turn % 2]
                os.kill(worker["pid"], signal.SIGKILL)
                until(
                    lambda turn=turn, old=worker: (  # type: ignore[misc]
                        (now := proxy.status()["workers"][turn % 2])["restarts"] > old["restarts"] and now["ready"]
                    ),
                    "another worker",
                )
                load.wait_more(30)
        # what the dead one had accepted is lost: at most one request of each thread for each death
        assert not [failure for failure in load.failures if "refused" in failure.lower()]
        assert len(load.failures) <= 6 * 4, load.failures
        proxy.stop()
    finally:
        proxy.kill()


def test_the_spare_worker_can_be_left_out(tmp_path: Path, upstream: Upstream) -> None:
    doc = proxies.document({"users": proxies.service(upstream.address)})
    with proxies.running(tmp_path / "without", doc, "--no-spare") as proxy:
        assert [process.pid for process in proxy.family()] == proxy.workers()
        (worker,) = proxy.workers()
        os.kill(worker, signal.SIGKILL)
        with proxy.client() as client:
            assert client.ask().status == 200
    with proxies.running(tmp_path / "with", doc) as proxy:
        until(lambda: len(proxy.family()) == 2, "the spare worker")


def test_connections_spread_over_workers(tmp_path: Path, upstream: Upstream) -> None:
    """SO_REUSEPORT: the kernel hashes 1,000 connections between two; 40 to 60 % is six standard deviations."""
    proxy = start(tmp_path, upstream, 2)
    for _ in range(1000):
        proxy.client().close()
    until(lambda: sum(accepted(proxy)) >= 1000, "1,000 connections")
    share = accepted(proxy)[0] / sum(accepted(proxy))
    assert 0.4 <= share <= 0.6
    proxy.stop()


def accepted(proxy: Proxy) -> list[int]:
    return [worker["stats"]["accepted"] for worker in proxy.call("/stats")]


def test_workers_pinned_each_to_a_cpu(tmp_path: Path, upstream: Upstream) -> None:
    doc = proxies.document({"users": proxies.service(upstream.address)}, workers=3, pin_workers=True)
    cpus = sorted(os.sched_getaffinity(0))
    with proxies.running(tmp_path, doc) as proxy:
        workers = proxy.workers()
        assert [os.sched_getaffinity(pid) for pid in workers] == [{cpus[n % len(cpus)]} for n in range(3)]
        os.kill(workers[1], signal.SIGKILL)
        until(lambda: proxy.workers()[1] != workers[1] and proxy.status()["ready"], "another worker")
        assert os.sched_getaffinity(proxy.workers()[1]) == {cpus[1 % len(cpus)]}
        assert os.sched_getaffinity(proxy.pid) == set(cpus)


def test_the_admin_api_on_a_unix_socket(tmp_path: Path, upstream: Upstream) -> None:
    address = f"unix:{tmp_path}/admin.sock"
    doc = {**proxies.document({"users": proxies.service(upstream.address)}), "admin": {"address": address}}
    with proxies.running(tmp_path, doc) as proxy:
        with Client(address) as client:
            assert json.loads(client.ask(target="/ready").body) == {"ready": True}
        done = proxies.cli("status", "--admin", address, "--json")
        assert json.loads(done.stdout)["pid"] == proxy.pid
    assert not (tmp_path / "admin.sock").exists()


def test_a_replaced_worker_has_the_newest_table(proxy: Proxy, upstream: Upstream) -> None:
    doc = proxies.document({"users": proxies.service(upstream.address, hosts=["new.test"])})
    proxy.edit(doc)
    (worker,) = proxy.workers()
    os.kill(worker, signal.SIGKILL)
    with proxy.client() as client:
        assert client.ask(host="new.test").status == 200
        assert client.ask(host="old.test").status == 404
    proxy.stop()


@pytest.fixture
def clients(proxy: Proxy) -> Iterator[list[Client]]:
    """Three connections."""
    made = [proxy.client() for _ in range(3)]
    yield made
    for client in made:
        client.close()


def test_sigterm_lets_requests_finish(proxy: Proxy, upstream: Upstream, clients: list[Client]) -> None:
    gate = upstream.gate()

    def slow(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        gate.wait()
        call.send(b"world")

    upstream.on("/slow", slow)
    thinking = upstream.gate()
    upstream.on("/think", lambda call: (thinking.wait(), call.answer(200, b"thought")))
    idle, downloading, waiting = clients
    assert idle.ask().status == 200
    downloading.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    waiting.send(b"GET /think HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: upstream.of("/slow") and upstream.of("/think"), "both requests")
    family = proxy.family()
    assert proxy.process is not None
    proxy.process.send_signal(signal.SIGTERM)
    assert idle.closed(), "an idle connection is closed when draining begins"
    until(lambda: refused(proxy.address), "new connections to be refused")
    assert proxy.process.poll() is None
    thinking.set()
    answer = waiting.response()
    assert (answer.body, answer.get("connection")) == (b"thought", "close")
    assert waiting.closed()
    gate.set()
    answer = downloading.response()
    assert answer.body == b"helloworld"
    assert downloading.closed()
    assert proxy.process.wait(proxies.PATIENCE) == 0
    _, alive = psutil.wait_procs(family, timeout=2)
    assert not alive


def test_sigquit_drains_however_often_it_comes(proxy: Proxy, upstream: Upstream) -> None:
    gate = upstream.gate()
    upstream.on("/slow", lambda call: (gate.wait(), call.answer(200, b"done")))
    with proxy.client() as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        upstream.wait_requests(1)
        os.kill(proxy.pid, signal.SIGQUIT)
        until(lambda: refused(proxy.address), "draining")
        os.kill(proxy.pid, signal.SIGQUIT)
        proxy.wait_for_log("SIGQUIT: draining already")
        gate.set()
        assert client.response().body == b"done"
    assert proxy.process is not None
    assert proxy.process.wait(proxies.PATIENCE) == 0


def test_a_request_that_arrives_as_draining_begins_is_answered(proxy: Proxy, clients: list[Client]) -> None:
    """It is in the kernel, and the worker has not heard of it: its connection only looks idle."""
    (worker,) = proxy.workers()
    until(lambda: len(proxy.family()) == 2, "the spare worker")
    for client in clients:
        assert client.ask().status == 200
    os.kill(worker, signal.SIGSTOP)
    os.kill(proxy.pid, signal.SIGTERM)
    until(lambda: len(proxy.family()) == 1, "the end of the spare worker, after which workers are told")
    assert proxy.call("/live") == {"live": True}
    for client in clients:
        client.send(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
    os.kill(worker, signal.SIGCONT)
    for client in clients:
        answer = client.response()
        assert (answer.status, answer.get("connection")) == (200, "close")
    assert proxy.process is not None
    assert proxy.process.wait(proxies.PATIENCE) == 0


def test_signals_to_workers_are_for_the_supervisor(proxy: Proxy) -> None:
    """`systemctl kill` and the like reach every process of a service."""
    (worker,) = proxy.workers()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in numbers:
        os.kill(worker, number)
        with proxy.client() as client:
            assert client.ask().status == 200
    assert proxy.workers() == [worker]
    proxy.stop()


def test_the_access_log_has_every_request_and_usr1_opens_it_anew(proxy: Proxy, upstream: Upstream) -> None:
    folder = proxy.file.parent
    log, moved = folder / "access.log", folder / "access.log.1"
    proxy.edit({**proxy.document, "access_log": {"path": "access.log", "fields": ["path", "status", "worker"]}})
    with proxy.client() as client:
        for number in range(3):
            assert client.ask("GET", f"/{number}").status == 200
    until(lambda: log.exists() and log.read_text().count("\n") == 3, "three lines")
    log.rename(moved)
    os.kill(proxy.pid, signal.SIGUSR1)
    until(log.exists, "a new file")
    with proxy.client() as client:
        assert client.ask("GET", "/3").status == 200
    proxy.stop()  # what workers have not handed over yet is written at their end
    paths = [json.loads(line)["path"] for line in moved.read_text().splitlines() + log.read_text().splitlines()]
    assert paths == ["/0", "/1", "/2", "/3"]


def refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) != 0


def test_a_second_signal_ends_it_at_once(proxy: Proxy, upstream: Upstream) -> None:
    upstream.on("/never", lambda call: (call.wait_gone(), call.close()))
    with proxy.client() as client:
        client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        upstream.wait_requests(1)
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        until(lambda: refused(proxy.address), "draining")
        proxy.stop(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_cleanly(tmp_path: Path, upstream: Upstream, number: signal.Signals) -> None:
    proxy = start(tmp_path, upstream, 2)
    with proxy.client() as client:
        assert client.ask().status == 200
        proxy.stop(number)
        assert client.closed()
    assert "Traceback" not in proxy.log()
    assert refused(proxy.address)


def test_a_killed_supervisor_takes_its_workers_along(proxy: Proxy) -> None:
    family = proxy.family()
    assert len(family) >= 1
    os.kill(proxy.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, f"orphans: {alive}"


def test_hangup_reads_the_document_again(proxy: Proxy) -> None:
    with Load(proxy) as load:
        for _ in range(5):
            os.kill(proxy.pid, signal.SIGHUP)
            load.wait_more(20)
    load.check()
    proxy.stop()


def test_a_document_that_is_wrong_at_the_start_is_refused(tmp_path: Path) -> None:
    for name, text in {
        "missing": None,
        "unknown key": "listenrs: []\nservices: {}\n",
        "no listeners": "services: {}\n",
    }.items():
        file = tmp_path / f"{name.replace(' ', '-')}.yaml"
        if text is not None:
            file.write_text(text)
        done = proxies.cli("run", "-c", file, timeout=20)
        assert done.returncode not in (0, -signal.SIGTERM), name
        assert "Traceback" not in done.stderr, f"{name}: {done.stderr}"
        assert file.name in done.stderr or name == "no listeners", f"{name}: {done.stderr}"


def test_a_port_that_is_taken_is_told(tmp_path: Path, proxy: Proxy) -> None:
    other = tmp_path / "other"
    other.mkdir()
    doc = {**proxy.document, "listeners": [{"address": proxy.address}]}
    second = Proxy(other, doc, start=False)
    done = proxies.cli("run", "-c", second.file, timeout=20)
    assert done.returncode == 1
    assert proxy.address in done.stderr
    assert "Traceback" not in done.stderr
    with proxy.client() as client:
        assert client.ask().status == 200
    proxy.stop()


def test_several_listeners(tmp_path: Path, upstream: Upstream) -> None:
    doc = proxies.document({"users": proxies.service(upstream.address)})
    doc["listeners"] = [{"address": "127.0.0.1:0"}, {"address": "[::1]:0"}]
    with proxies.running(tmp_path, doc) as proxy:
        first, second = json.loads(proxy.ports_file.read_bytes())["listeners"]
        assert first != second
        with proxy.client() as client:
            assert client.ask().status == 200
        host, _, port = second.rpartition(":")
        assert host == "[::1]"
        with socket.create_connection(("::1", int(port)), timeout=5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = b""
            while piece := sock.recv(65536):
                got += piece
        assert got.startswith(b"HTTP/1.1 200 ")
        assert upstream.requests[-1].get("x-forwarded-for") == "::1"


def test_workers_may_open_as_many_descriptors_as_the_system_lets_them(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        proxy = Proxy(tmp_path, proxies.document({"users": proxies.service("127.0.0.1:1")}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = (Path("/proc") / str(proxy.workers()[0]) / "limits").read_text()
    proxy.stop()
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.removeprefix("Max open files").split()[:2] == [str(hard)] * 2
