"""Nothing left: descriptors, room on the disk, a process's time. Nobody exits, and all comes back."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import proxies
from tests.integration.client import Client
from tests.integration.load import Load
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Upstream


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy for all of these: what it lives through is what is tested."""
    upstream = Upstream("only").start()
    doc = proxies.document({"users": proxies.service(upstream.address)}, workers=1, watchdog="500ms")
    with proxies.running(tmp_path_factory.mktemp("exhausted"), doc) as proxy:
        yield proxy
    upstream.stop()
    upstream.check()


@pytest.fixture
def proxy(whole: Proxy) -> Proxy:
    """With all that the test before broke in order again."""
    until(lambda: whole.status()["ready"] and len(whole.family()) == 2, "the worker and the spare one")
    until(lambda: ports_of(whole) == (whole.workers(), whole.revision), "the ports file")
    return whole


def ports_of(proxy: Proxy) -> tuple[list[int], int]:
    told = json.loads(proxy.ports_file.read_bytes())
    return told["workers"], told["revision"]


@contextlib.contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """A process's limit for the block."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def changed(proxy: Proxy) -> proxies.Document:
    """Its document with a change."""
    proxy.document = {**proxy.document, "decision_headers": not proxy.document["decision_headers"]}
    return proxy.document


def alarm(proxy: Proxy, name: str) -> int:
    return int(proxy.status()["alarms"][name])


def restarts(proxy: Proxy) -> int:
    return int(proxy.status()["workers"][0]["restarts"])


def test_a_hung_worker_is_replaced(proxy: Proxy) -> None:
    (worker,), before, hung = proxy.workers(), restarts(proxy), alarm(proxy, "worker_hung")
    os.kill(worker, signal.SIGSTOP)
    with proxy.client() as client:
        assert client.ask().status == 200
    (state,) = proxy.status()["workers"]
    assert state["pid"] != worker
    assert (state["hung"], state["restarts"]) == (hung + 1, before + 1)
    assert alarm(proxy, "worker_hung") == hung + 1
    proxy.wait_for_log("no sign of life for 0.5 s")


def test_a_busy_worker_is_not_taken_for_a_hung_one(proxy: Proxy) -> None:
    """Requests without pause for several times the bound; the worker's own thread has never an idle moment."""
    (worker,) = proxy.workers()
    with Load(proxy, threads=4, pause=0.0) as load:
        for _ in range(6):
            load.wait_more(300)
    load.check()
    assert proxy.workers() == [worker]


def test_a_worker_without_descriptors_goes_on_and_recovers(proxy: Proxy) -> None:
    (worker,) = proxy.workers()
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(proxy.client())
        assert known.ask().status == 200
        with limited(worker, resource.RLIMIT_NOFILE, descriptors(worker)):
            # its connection to the instance is there and can be used; whoever comes new has to wait for who is idle
            assert known.ask().status == 200
            waiting = [stack.enter_context(proxy.client()) for _ in range(3)]
            for client in waiting:
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: proxy.call("/stats")[0]["stats"]["shed"], "the idle connection gives way")
        assert 200 in [client.response().status for client in waiting]
        with proxy.client() as fresh:
            assert fresh.ask().status == 200
    assert proxy.workers() == [worker]


def test_a_control_process_without_descriptors_loses_no_change_and_no_worker(proxy: Proxy) -> None:
    before, died, alarms = proxy.revision, restarts(proxy), alarm(proxy, "descriptors_exhausted")
    (worker,) = proxy.workers()
    with Load(proxy) as load, limited(proxy.pid, resource.RLIMIT_NOFILE, 3):
        proxy.write(changed(proxy))
        proxy.wait_for_log("Too many open files")
        load.wait_more(20)
        load.done.set()
        os.kill(worker, signal.SIGKILL)
        until(lambda: f"(pid {worker}) ended" in proxy.log(), "its end is seen")
        with proxy.client() as client:
            assert client.ask().status == 200
    proxy.wait_revision(before + 1)
    status = proxy.status()
    assert status["refusal"] is None
    assert status["alarms"]["descriptors_exhausted"] > alarms
    assert status["workers"][0]["restarts"] == died + 1


def test_a_full_disk_refuses_changes_until_there_is_room(proxy: Proxy) -> None:
    """No file of the control process may grow: as on a full disk, and nothing has to be mounted for it."""
    before, died, ports = proxy.revision, restarts(proxy), proxy.ports_file.read_bytes()
    alarms = alarm(proxy, "store_errors")
    with Load(proxy) as load:
        with limited(proxy.pid, resource.RLIMIT_FSIZE, 0):
            proxy.write(changed(proxy))
            until(lambda: proxy.status()["refusal"], "the change is refused")
            refusal = proxy.status()["refusal"]["errors"]
            assert "graylb.yaml.state.json cannot be written: File too large" in refusal[0]["text"]
            load.wait_more(20)
            (worker,) = proxy.workers()
            load.done.set()
            os.kill(worker, signal.SIGKILL)
            until(lambda: restarts(proxy) > died and proxy.status()["ready"], "another worker")
            assert proxy.revision == before
            assert proxy.ports_file.read_bytes() == ports, "the file before stays whole"
        proxy.wait_revision(before + 1)
    status = proxy.status()
    assert status["refusal"] is None
    assert status["alarms"]["store_errors"] > alarms
    until(lambda: ports_of(proxy) == (proxy.workers(), before + 1), "the ports file")
    assert not list(proxy.folder.glob("*.tmp"))


def test_commands_on_a_full_disk_are_told(proxy: Proxy) -> None:
    with limited(proxy.pid, resource.RLIMIT_FSIZE, 0):
        done = proxies.cli("split", "users", "v1=100", "--admin", proxy.admin)
        assert done.returncode != 0
        assert "cannot be written: File too large" in done.stdout + done.stderr
        with proxy.client() as client:
            assert client.ask().status == 200


def test_a_frozen_control_process_stops_no_traffic_and_kills_no_worker(proxy: Proxy) -> None:
    (worker,) = proxy.workers()
    with Load(proxy) as load:
        os.kill(proxy.pid, signal.SIGSTOP)
        until(lambda: "T" in Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()[0], "stopped")
        load.wait_more(300)  # for longer than the watchdog's bound
        os.kill(proxy.pid, signal.SIGCONT)
        assert proxy.status()["ready"]
        load.wait_more(20)
    load.check()
    assert proxy.workers() == [worker]


def test_many_idle_callers_of_the_admin_api_do_not_stop_a_change(proxy: Proxy) -> None:
    """They use up the control process's descriptors, and say nothing."""
    before = proxy.revision
    with contextlib.ExitStack() as stack, limited(proxy.pid, resource.RLIMIT_NOFILE, descriptors(proxy.pid) + 8):
        for _ in range(30):
            stack.enter_context(Client(proxy.admin))
        proxy.write(changed(proxy))
        with proxy.client() as client:
            assert client.ask().status == 200
    proxy.wait_revision(before + 1)
