"""Commands that find the running proxy by its admin address, and the demo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from graylb.control.store import state_path
from tests.cli.test_commands import fails, graylb
from tests.control.parts import document, users, write
from tests.control.running import PATIENCE, Running, started, until


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("proxy")
    with started(folder, write(folder, document())) as running:
        yield running


def split(proxy: Running) -> dict[str, float]:
    (service,) = proxy.get("/services")[1]
    found: dict[str, float] = service["split"]
    return found


def test_a_release_by_command(proxy: Running) -> None:
    result = graylb("split", "users", "v1=80", "v2=20", "--reason", "step", "--admin", proxy.admin)
    assert result.exit_code == 0, result.output
    assert "users: v1=80 v2=20 (was " in result.stdout
    assert "applied by the running proxy" in result.stdout
    assert split(proxy) == {"v1": 80, "v2": 20}
    result = graylb("rollback", "users", "--admin", proxy.admin, "--json")
    found = json.loads(result.stdout)
    assert (found["applied"], found["former"], found["problem"]) == (True, "v1=80 v2=20", None)
    assert proxy.status()["revision"] == found["revision"]
    history = json.loads(graylb("history", "users", "--admin", proxy.admin, "--json").stdout)
    assert [entry["action"] for entry in history[:2]] == ["rollback", "split"]
    assert history[1]["why"] == "step"


def test_the_document_alone_finds_its_proxy(proxy: Running) -> None:
    path = Path(proxy.status()["document"])
    # the document says port 0, so the proxy is found by --admin only; without it the change waits for the next start
    result = graylb("split", "users", "v2=1", "-c", path, "--admin", proxy.admin)
    assert "applied by the running proxy" in result.stdout
    assert split(proxy) == {"v2": 1}


def test_a_proxy_of_another_document_is_not_waited_for(proxy: Running, tmp_path: Path) -> None:
    path = write(tmp_path, document())
    result = graylb("split", "users", "v2=1", "-c", path, "--admin", proxy.admin)
    assert "no proxy runs on this document" in result.stdout


def test_explain_by_the_proxy_that_runs(proxy: Running) -> None:
    graylb("split", "users", "v3=1", "--admin", proxy.admin)
    found = json.loads(graylb("explain", "--admin", proxy.admin, "--header", "x-user-id: ann", "--json").stdout)
    assert (found["version"], found["revision"]) == ("v3", proxy.status()["revision"])


def test_status_for_people_and_for_programs(proxy: Running) -> None:
    shown = graylb("status", "--admin", proxy.admin).stdout
    assert "ready" in shown
    assert "users" in shown
    found = json.loads(graylb("status", "--admin", proxy.admin, "--json").stdout)
    assert found["services"][0]["name"] == "users"
    assert found["pid"] == proxy.process.pid


def test_status_shows_what_is_refused_until_it_is_mended(proxy: Running) -> None:
    path = Path(proxy.status()["document"])
    good = yaml.safe_load(path.read_text())
    write(path.parent, document(users=users(fallback="perhaps")))
    until(lambda: proxy.status()["refusal"], "the refusal")
    shown = graylb("status", "--admin", proxy.admin).stdout
    assert "refused since" in shown
    assert "perhaps" in shown
    write(path.parent, good)
    until(lambda: proxy.status()["refusal"] is None, "no refusal")
    assert "refused" not in graylb("status", "--admin", proxy.admin).stdout


def test_a_wrong_name_with_a_running_proxy(proxy: Running) -> None:
    fails(graylb("rollback", "orders", "--admin", proxy.admin), 2, "no service 'orders'")


# -- demo ----------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now; the demo's document must name those of its instances."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def demo_document(folder: Path, ports: list[int]) -> Path:
    instances = [{"address": f"127.0.0.1:{port}", "version": f"v{n}"} for n, port in enumerate(ports, 1)]
    testers = {"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}
    return write(folder, document(users=users(instances=instances, rules=[testers])), "demo.yaml")


def start_demo(folder: Path, shipped: Path, **env: str) -> subprocess.Popen[str]:
    code = "import sys, pathlib as p; from graylb.demo.__main__ import main; sys.exit(main(*map(p.Path, sys.argv[1:])))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(shipped), str(folder / "own")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "GRAYLB_PORT": "0", "GRAYLB_ADMIN_PORT": "0", **env},
        start_new_session=True,
    )


def fetch(url: str, body: bytes | None = None, **headers: str) -> bytes:
    request = urllib.request.Request(url, body, {key.replace("_", "-"): value for key, value in headers.items()})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        found: bytes = answer.read()
        return found


def test_the_demo_shows_what_it_says_and_ends_cleanly(tmp_path: Path) -> None:
    shipped = demo_document(tmp_path, free_ports(2))
    before = shipped.read_bytes()
    demo = start_demo(tmp_path, shipped)
    try:
        assert demo.stdout is not None
        said = ""
        while "graylb status" not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        url = next(word for word in said.split() if word.startswith("http://127"))
        assert said.count("curl") >= 3
        for command in ("split users v1=50 v2=50", "rollback users", str(tmp_path / "own" / "demo.yaml")):
            assert command in said
        seen: dict[str, Any] = json.loads(fetch(url, user_group="beta"))
        assert (seen["service"], seen["version"], seen["path"]) == ("users", "v2", "/")
        assert seen["headers"]["user-group"] == "beta"
        assert fetch(url, b"x" * 100_000, content_type="text/plain") == b"x" * 100_000
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) >= 3
        demo.send_signal(signal.SIGINT)
        assert demo.wait(PATIENCE) == 0
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert alive == []
        assert "Traceback" not in demo.stdout.read()
    finally:
        demo.kill()
        demo.communicate()
    assert shipped.read_bytes() == before
    assert not state_path(shipped).exists()


def test_the_demo_on_a_port_in_use_says_so_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        folders = [tmp_path / name for name in ("upstream", "listener")]
        for folder in folders:
            folder.mkdir()
        documents = [demo_document(folders[0], [port]), demo_document(folders[1], free_ports(2))]
        demos = [start_demo(f, d, GRAYLB_PORT=str(port)) for f, d in zip(folders, documents, strict=True)]
        for demo in demos:
            said, _ = demo.communicate(timeout=PATIENCE)
            assert demo.returncode == 1
            assert len(said.splitlines()) == 1, said
            assert str(port) in said
            assert "in use" in said.lower()


def test_the_copy_is_kept_once_edited(tmp_path: Path) -> None:
    from graylb.demo.__main__ import own_copy

    shipped = write(tmp_path, "a: 1", "demo.yaml")
    copy = own_copy(shipped, tmp_path / "own")
    write(tmp_path, "a: 2", "demo.yaml")
    assert own_copy(shipped, tmp_path / "own").read_text() == "a: 2"
    copy.write_text("a: mine")
    write(tmp_path, "a: 3", "demo.yaml")
    assert own_copy(shipped, tmp_path / "own").read_text() == "a: mine"
