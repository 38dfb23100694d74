"""Rolling to a new process: nobody is refused or cut off, and a roll that fails has not happened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import proxies
from tests.integration.client import Client
from tests.integration.load import Load
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Upstream

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True)
def _adopting() -> Iterator[None]:
    """Processes whose parent has gone become ours, so that they can be waited for."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream("only").start()
    yield made
    made.stop()
    made.check()


@pytest.fixture
def proxy(tmp_path: Path, upstream: Upstream) -> Iterator[Proxy]:
    """Two workers, a TCP and a Unix listener."""
    made = Proxy(tmp_path, document(tmp_path, upstream), "--pid-file", tmp_path / "graylb.pid")
    yield made
    made.kill()


def document(folder: Path, upstream: Upstream, **top: Any) -> proxies.Document:
    doc = proxies.document({"users": proxies.service(upstream.address)}, workers=2, **top)
    doc["listeners"].append({"address": f"unix:{folder}/graylb.sock"})
    return doc


def serving(proxy: Proxy) -> int:
    """The process id of the supervisor that serves."""
    return int((proxy.folder / "graylb.pid").read_text())


def roll(proxy: Proxy) -> int:
    old = serving(proxy)
    os.kill(old, signal.SIGUSR2)
    until(lambda: serving(proxy) != old, "another process")
    return serving(proxy)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stop(proxy: Proxy) -> None:
    """Whoever serves ends with status 0 and leaves nothing behind."""
    pid = serving(proxy)
    os.kill(pid, signal.SIGTERM)
    if proxy.process is not None and proxy.process.pid == pid:
        assert proxy.process.wait(proxies.PATIENCE) == 0
    else:
        until(lambda: gone(pid), "the end")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for name in ("graylb.pid", "ports.json", "graylb.sock"):
        assert not (proxy.folder / name).exists(), name
    assert "Traceback" not in proxy.log_file.read_text()


def successor(proxy: Proxy) -> int:
    """Of the roll that was just begun."""
    found = until(lambda: re.findall(r"process (\d+) starts, to take over", proxy.log()), "a new process")
    return int(found[-1])


def test_under_load_nobody_notices(proxy: Proxy, upstream: Upstream) -> None:
    gate = upstream.gate()
    upstream.on("/slow", lambda call: (gate.wait(), call.answer(200, b"done")))
    first = serving(proxy)
    with (
        Load(proxy, threads=3) as kept,
        Load(proxy, threads=2, keep_alive=False) as fresh,
        Load(proxy, threads=1, keep_alive=False, address=f"unix:{proxy.folder}/graylb.sock") as local,
        proxy.client() as slow,
        proxy.client() as idle,
    ):
        assert idle.ask().status == 200
        slow.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: upstream.of("/slow"), "the slow request")
        second = roll(proxy)
        assert second != first
        for load in (kept, fresh, local):
            load.wait_more(30)
        last = idle.ask()
        assert (last.status, last.get("connection")) == (200, "close")
        assert idle.closed()
        assert not gone(first), "it has a request yet"
        gate.set()
        answer = slow.response()
        assert (answer.body, answer.get("connection")) == (b"done", "close")
        until(lambda: gone(first), "the end of the first process")
        third = roll(proxy)
        assert third not in (first, second)
        for load in (kept, fresh, local):
            load.wait_more(30)
        until(lambda: gone(second), "the end of the second process")
    for load in (kept, fresh, local):
        load.check()
    assert proxy.process is not None
    assert proxy.process.wait(1) == 0
    status = proxy.status()
    assert (status["pid"], status["ready"], status["roll_failed"]) == (third, True, None)
    stop(proxy)


def test_another_number_of_workers_accepts_from_all_sockets(proxy: Proxy, upstream: Upstream) -> None:
    """One worker takes over the sockets of two, then three those of one: connections wait in each of them."""
    with Load(proxy, threads=2, keep_alive=False) as load:
        for workers in (1, 3):
            proxy.write({**proxy.document, "workers": workers})
            until(lambda: proxy.status()["restart_needed"] == ["workers"], "the new document")
            old = serving(proxy)
            roll(proxy)
            until(lambda old=old: gone(old), "the end of the former process")  # type: ignore[misc]
            assert len(proxy.workers()) == workers
            load.wait_more(40)
    load.check()
    stop(proxy)


def test_listeners_come_and_go(proxy: Proxy) -> None:
    """What the new document no longer names ends with the old process; what is new begins with the new one."""
    other = proxy.folder / "other.sock"
    proxy.write({**proxy.document, "listeners": [proxy.document["listeners"][0], {"address": f"unix:{other}"}]})
    until(lambda: proxy.status()["restart_needed"] == ["listeners"], "the new document")
    address, old = proxy.address, serving(proxy)
    roll(proxy)
    # both answer at the admin address until the former process has closed it
    until(lambda: proxy.status()["listeners"] == [address, f"unix:{other}"], "the new listeners")
    until(lambda: not (proxy.folder / "graylb.sock").exists(), "the end of the former socket")
    with Client(f"unix:{other}") as client, proxy.client() as known:
        assert (client.ask().status, known.ask().status) == (200, 200)
    until(lambda: gone(old), "the end of the former process")
    stop(proxy)
    assert not other.exists()


def broken_document(proxy: Proxy) -> None:
    proxy.write("listeners: nonsense\n")
    until(lambda: proxy.status()["refusal"], "the refusal")
    os.kill(serving(proxy), signal.SIGUSR2)


def killed(proxy: Proxy) -> None:
    os.kill(serving(proxy), signal.SIGUSR2)
    os.kill(successor(proxy), signal.SIGKILL)


def stuck(proxy: Proxy) -> None:
    os.kill(serving(proxy), signal.SIGUSR2)
    os.kill(successor(proxy), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (broken_document, "ended with status 1 before it was ready"),
        (killed, "ended with status -9 before it was ready"),
        (stuck, "was not ready within 2 s"),
    ],
)
def test_a_roll_that_fails_has_not_happened(tmp_path: Path, upstream: Upstream, fault: Any, reason: str) -> None:
    options = ("--pid-file", tmp_path / "graylb.pid", "--roll-timeout", "2" if fault is stuck else "30")
    proxy = Proxy(tmp_path, document(tmp_path, upstream), *options)
    try:
        first = serving(proxy)
        with Load(proxy) as kept, Load(proxy, keep_alive=False) as fresh:
            fault(proxy)
            proxy.wait_for_log(f"; process {first} goes on")
            proxy.wait_for_log(reason)
            assert gone(successor(proxy))
            for load in (kept, fresh):
                load.wait_more(20)
            status = proxy.status()
            assert (status["pid"], status["rolling"]) == (first, False)
            assert reason in status["roll_failed"]
            proxy.write(proxy.document)
            until(lambda: proxy.status()["refusal"] is None, "nothing refused")
        for load in (kept, fresh):
            load.check()
        with Client(f"unix:{tmp_path}/graylb.sock") as client:
            assert client.ask().status == 200
        stop(proxy)
    finally:
        proxy.kill()


def test_a_second_roll_waits_for_the_first(proxy: Proxy) -> None:
    first = serving(proxy)
    os.kill(first, signal.SIGUSR2)
    new = successor(proxy)
    os.kill(first, signal.SIGUSR2)
    proxy.wait_for_log("a roll under way; ignored")
    until(lambda: serving(proxy) == new, "the new process")
    until(lambda: gone(first), "the end of the first process")
    stop(proxy)


def test_told_to_stop_in_the_middle_both_stop(proxy: Proxy, upstream: Upstream) -> None:
    gate = upstream.gate()
    upstream.on("/slow", lambda call: (gate.wait(), call.answer(200, b"done")))
    with proxy.client() as slow:
        slow.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: upstream.of("/slow"), "the slow request")
        first = serving(proxy)
        os.kill(first, signal.SIGUSR2)
        new = successor(proxy)
        os.kill(new, signal.SIGSTOP)  # it stays in the middle
        os.kill(first, signal.SIGTERM)
        proxy.wait_for_log("draining")
        gate.set()
        assert slow.response().body == b"done"
    assert proxy.process is not None
    assert proxy.process.wait(proxies.PATIENCE) == 0
    assert gone(new)
    assert not (proxy.folder / "graylb.sock").exists()


def test_told_to_stop_while_it_drains_the_relieved_process_ends_at_once(proxy: Proxy, upstream: Upstream) -> None:
    upstream.on("/never", lambda call: (call.wait_gone(), call.close()))
    with proxy.client() as client:
        client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        upstream.wait_requests(1)
        first = serving(proxy)
        second = roll(proxy)
        os.kill(first, signal.SIGTERM)
        until(lambda: gone(first), "the end of the first process")
        assert client.rest() == b""
    with proxy.client() as client, Client(f"unix:{proxy.folder}/graylb.sock") as local:
        assert (client.ask().status, local.ask().status) == (200, 200)
    assert serving(proxy) == second
    stop(proxy)


def test_rolling_by_command(proxy: Proxy) -> None:
    first = serving(proxy)
    done = proxies.cli("roll", "--admin", proxy.admin)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"process {serving(proxy)} has taken over from {first}\n"
    proxy.write("nonsense")
    done = proxies.cli("roll", "--admin", proxy.admin)
    assert done.returncode == 1
    assert "no roll: process" in done.stderr
    stop(proxy)


def test_by_command_and_pid_file(proxy: Proxy) -> None:
    pid_file = proxy.folder / "graylb.pid"
    done = proxies.cli("roll", "--pid-file", pid_file)
    assert done.returncode == 0, done.stderr
    proxy.write({**proxy.document, "decision_headers": False})
    assert proxies.cli("reload", "--pid-file", pid_file).returncode == 0
    until(lambda: proxy.revision == 2, "revision 2")
    last = serving(proxy)
    assert proxies.cli("stop", "--pid-file", pid_file).returncode == 0
    assert gone(last)
    for arguments in (("--pid-file", pid_file), ("--admin", proxy.admin)):
        done = proxies.cli("stop", *arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1


def test_stop_now_does_not_wait(proxy: Proxy, upstream: Upstream) -> None:
    upstream.on("/never", lambda call: (call.wait_gone(), call.close()))
    with proxy.client() as client:
        client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        upstream.wait_requests(1)
        assert proxies.cli("stop", "--now", "--admin", proxy.admin).returncode == 0
        assert client.rest() == b""


def test_process_1_does_not_roll(tmp_path: Path, upstream: Upstream) -> None:
    """Its end would end the container, and with it the successor."""
    launcher = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*launcher, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a PID namespace")
    proxy = Proxy(tmp_path, proxies.document({"users": proxies.service(upstream.address)}), launcher=launcher)
    try:
        (inside,) = [each for each in proxy.family() if each.ppid() == proxy.pid]
        inside.send_signal(signal.SIGUSR2)
        proxy.wait_for_log("no roll: process 1 of a container ends the container with it")
        inside.send_signal(signal.SIGTERM)
        assert proxy.process is not None
        assert proxy.process.wait(proxies.PATIENCE) == 0
    finally:
        proxy.kill()


def test_a_handover_that_cannot_be_understood_is_told(tmp_path: Path, upstream: Upstream) -> None:
    doc = proxies.document({"users": proxies.service(upstream.address)})
    proxy = Proxy(tmp_path, doc, start=False)
    command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(proxy.file)]
    for text in ("x", "{}", '{"channel":999,"listeners":[],"admin":null}'):
        environment = {**os.environ, "GRAYLB_HANDOVER": text}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 1
        assert done.stderr.startswith("graylb: GRAYLB_HANDOVER cannot be understood")
        assert done.stderr.count("\n") == 1
