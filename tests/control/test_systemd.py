"""The service manager's protocols, against a real datagram socket and the environment that systemd makes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from graylb import systemd

UNITS = Path(__file__).resolve().parents[2] / "config" / "systemd"


@pytest.mark.parametrize("where", ["path", "abstract"])
def test_messages(tmp_path: Path, where: str) -> None:
    address = str(tmp_path / "notify") if where == "path" else f"@graylb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        notifier = systemd.Notifier(address)

        def said() -> list[str]:
            return manager.recv(4096).decode().split("\n")

        notifier.ready("two\nlines")
        assert said() == ["READY=1", "STATUS=two lines"]
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.reloading()
        first, second = said()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert first == "RELOADING=1"
        assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= after
        notifier.stopping("draining")
        assert said() == ["STOPPING=1", "STATUS=draining"]
        notifier.status("fine")
        assert said() == ["STATUS=fine"]
        notifier.main_process(17)
        assert said() == ["MAINPID=17"]
        notifier.alive()
        assert said() == ["WATCHDOG=1"]
        assert notifier.error == ""


def test_without_a_manager_nothing_is_said_and_one_that_is_gone_hurts_nobody(tmp_path: Path) -> None:
    nobody = systemd.Notifier("")
    nobody.ready("")
    assert nobody.error == ""
    gone = systemd.Notifier(str(tmp_path / "missing"))
    gone.ready("")
    assert "missing: No such file" in gone.error


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("", "", None), ("10000000", "", 10.0), ("500000", str(os.getpid()), 0.5), ("500000", "1", None)],
)
def test_the_watchdog(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid) if pid else monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert systemd.watchdog_seconds() == seconds


@pytest.mark.parametrize("text", ["x", "-1", "0", "1.5"])
def test_a_watchdog_that_is_nonsense(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", text)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with pytest.raises(ValueError, match="WATCHDOG_USEC"):
        systemd.watchdog_seconds()


def test_activated_sockets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(pid: int, count: str, names: str) -> list[tuple[int, str]]:
        monkeypatch.setenv("LISTEN_PID", str(pid))
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_FDNAMES", names)
        found = systemd.activated_sockets()
        assert not any(name.startswith("LISTEN_") for name in os.environ)
        return found

    assert given(os.getpid(), "2", "web:admin") == [(3, "web"), (4, "admin")]
    assert given(os.getpid(), "2", "") == [(3, "unknown"), (4, "unknown")]
    assert given(1, "2", "web:admin") == [], "they are for another process"
    assert systemd.activated_sockets() == []
    with pytest.raises(ValueError, match="LISTEN_FDS='two'"):
        given(os.getpid(), "two", "")


def test_a_successor_is_not_told_what_was_for_us() -> None:
    environment = {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "LISTEN_FDS": "1", "NOTIFY_SOCKET": "/n", "PATH": "/"}
    systemd.for_successor(environment)
    assert environment == {"WATCHDOG_USEC": "1", "NOTIFY_SOCKET": "/n", "PATH": "/"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_are_sound(tmp_path: Path) -> None:
    names = [path.name for path in UNITS.iterdir()]
    assert {"graylb.service", "graylb.socket"} <= set(names)
    for name in names:
        # the command is not installed where the units expect it, and systemd-analyze looks
        text = (UNITS / name).read_text()
        assert name.endswith(".socket") or "/usr/local/bin/graylb" in text
        (tmp_path / name).write_text(text.replace("/usr/local/bin/graylb", shutil.which("true") or ""))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
