"""The process tree as its user sees it: start, serve, change, respawn, drain."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from graylb.control.store import state_path
from tests.control.parts import document, users, write
from tests.control.running import PATIENCE, Running, started, until


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.server.entered.set()  # type: ignore[attr-defined]
            self.server.gate.wait(PATIENCE)  # type: ignore[attr-defined]
        body = self.server.version.encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Upstream(http.server.ThreadingHTTPServer):
    """Answers with its version; `/slow` waits for `gate`."""

    daemon_threads = True

    def __init__(self, version: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.version = version
        self.gate, self.entered = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def upstreams() -> Iterator[list[Upstream]]:
    made = [Upstream("v1"), Upstream("v2")]
    yield made
    for each in made:
        each.gate.set()
        each.shutdown()
        each.server_close()


def serving(upstreams: list[Upstream], **more: Any) -> dict[str, Any]:
    instances = [{"address": f"127.0.0.1:{each.server_port}", "version": each.version} for each in upstreams]
    return document(users=users(instances=instances, **more))


def ask(running: Running, path: str = "/", **headers: str) -> str:
    request = urllib.request.Request(f"http://{running.ports['listeners'][0]}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def test_it_starts_serves_and_ends_leaving_nothing_behind(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path, "--workers", "2") as running:
        ports = running.ports
        assert ports["pid"] == running.process.pid
        assert len(set(ports["workers"])) == 2
        running.wait_for_log(f"listening on http://{ports['listeners'][0]} (revision 1)")
        assert ask(running) in ("v1", "v2")
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert {each.pid for each in family} >= set(ports["workers"])
        assert running.stop() == 0
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert alive == []
        assert not (tmp_path / "ports.json").exists()
    assert "Traceback" not in running.log()


def test_the_admin_api(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path) as running:
        assert running.get("/live") == (200, {"live": True})
        assert running.get("/ready") == (200, {"ready": True})
        status = running.status()
        assert (status["revision"], status["refusal"], status["restart_needed"]) == (1, None, [])
        assert status["document"] == str(path)
        assert [(each["ready"], each["revision"]) for each in status["workers"]] == [(True, 1)]
        ((name, weights),) = [(each["name"], each["split"]) for each in running.get("/services")[1]]
        assert (name, weights) == ("users", {"v1": 95, "v2": 5})
        assert running.get("/snapshot")[1]["revision"] == 1
        ask(running)
        (worker,) = running.get("/stats")[1]
        assert worker["stats"]["requests"] == 1
        assert running.get("/nothing")[0] == 404


def test_an_edit_is_applied_and_a_bad_one_keeps_the_last_good(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path, "--workers", "2") as running:
        write(tmp_path, serving(upstreams, split={"v2": 1}))
        until(lambda: running.status()["revision"] == 2, "revision 2")
        assert {worker["revision"] for worker in running.status()["workers"]} == {2}
        assert ask(running) == "v2"
        write(tmp_path, serving(upstreams, split={"v2": "much"}))
        until(lambda: running.status()["refusal"], "the refusal")
        assert ask(running) == "v2"
        assert "much" in running.log()
        write(tmp_path, serving(upstreams, split={"v1": 1}))
        until(lambda: running.status()["revision"] == 3, "revision 3")
        assert running.status()["refusal"] is None
        assert ask(running) == "v1"


def test_what_needs_a_restart_is_said(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path) as running:
        write(tmp_path, {**serving(upstreams), "workers": 3})
        until(lambda: running.status()["revision"] == 2, "revision 2")
        assert running.status()["restart_needed"] == ["workers"]


def test_a_sighup_reads_again(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path) as running:
        write(tmp_path, serving(upstreams, split={"v2": 1}))
        running.process.send_signal(signal.SIGHUP)
        until(lambda: running.status()["revision"] == 2, "revision 2")


def test_a_killed_worker_is_back_with_the_table_in_force(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path) as running:
        write(tmp_path, serving(upstreams, split={"v2": 1}))
        until(lambda: running.status()["revision"] == 2, "revision 2")
        (first,) = running.ports["workers"]
        os.kill(first, signal.SIGKILL)
        assert ask(running) == "v2"  # it waited in the backlog
        until(lambda: running.get("/ready")[0] == 200, "ready again")
        (worker,) = running.status()["workers"]
        assert (worker["restarts"], worker["revision"]) == (1, 2)
        assert worker["pid"] != first
        until(lambda: running.ports["workers"] == [worker["pid"]], "its pid in the ports file")


def test_a_restart_keeps_revision_and_digest(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path) as running:
        write(tmp_path, serving(upstreams, split={"v1": 1, "v2": 1}))
        before = until(lambda: status if (status := running.status())["revision"] == 2 else None, "revision 2")
        assert before is not None
        assert running.stop() == 0
    with started(tmp_path, path) as running:
        after = running.status()
        assert (after["revision"], after["digest"]) == (2, before["digest"])


def request_in_flight(running: Running, upstream: Upstream) -> tuple[threading.Thread, list[str]]:
    """A request that waits at the upstream; the list gets its answer, or how it failed."""
    answers: list[str] = []

    def go() -> None:
        try:
            answers.append(ask(running, "/slow"))
        except OSError as error:
            answers.append(f"failed: {error}")

    thread = threading.Thread(target=go)
    thread.start()
    assert upstream.entered.wait(PATIENCE)
    return thread, answers


def test_drain_lets_requests_finish_and_takes_no_new_ones(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams, split={"v1": 1}))
    with started(tmp_path, path) as running:
        address = running.ports["listeners"][0].split(":")
        thread, answers = request_in_flight(running, upstreams[0])
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_log("draining")
        until(lambda: refused(address), "the listener closed")
        assert running.get("/ready")[0] == 503
        upstreams[0].gate.set()
        assert running.process.wait(PATIENCE) == 0
        thread.join()
        assert answers == ["v1"]


def refused(address: list[str]) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address[0], int(address[1]))) != 0


def test_a_second_signal_ends_at_once(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams, split={"v1": 1}))
    with started(tmp_path, path, "--drain", "3600") as running:
        thread, answers = request_in_flight(running, upstreams[0])
        running.process.send_signal(signal.SIGINT)
        running.wait_for_log("draining")
        assert running.stop(signal.SIGINT) == 0
        thread.join()
        assert answers[0].startswith("failed")
        assert "at once (SIGINT)" in running.log()


def test_workers_end_with_a_supervisor_that_was_killed(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path, "--workers", "2") as running:
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 2
        running.process.kill()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert alive == []


def test_json_log_lines(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path, "--log-format", "json") as running:
        assert running.stop() == 0
        lines = [json.loads(line) for line in running.log().splitlines()]
        assert any(line["message"].startswith("listening on http://") for line in lines)
        assert {line["level"] for line in lines} == {"info"}


def test_a_start_that_says_little(tmp_path: Path, upstreams: list[Upstream]) -> None:
    with started(tmp_path, write(tmp_path, serving(upstreams)), "--log-level", "warning") as running:
        assert running.stop() == 0
        assert running.log() == ""


def test_listen_on_ipv6(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path, "--listen", "[::1]:0", "--listen", "127.0.0.1:0") as running:
        assert [each.rpartition(":")[0] for each in running.ports["listeners"]] == ["[::1]", "127.0.0.1"]
        assert ask(running) in ("v1", "v2")


# -- starts that fail ----------------------------------------------------------------------------------------------


def start(*arguments: str | Path) -> Result:
    """In this process: none of these gets as far as starting a worker."""
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def test_a_bad_document_is_told_whole(tmp_path: Path) -> None:
    path = write(tmp_path, document(users=users(fallback="perhaps", spit=1)))
    done = start("-c", path)
    assert done.exit_code == 1
    assert "perhaps" in done.stderr
    assert "spit" in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_a_port_in_use(tmp_path: Path) -> None:
    path = write(tmp_path, document())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--listen", "--admin"):
            done = start("-c", path, option, address)
            assert (done.exit_code, done.stderr) == (
                1,
                f"graylb: cannot listen on {address}: Address already in use\n",
            )


def test_two_proxies_do_not_share_a_port(tmp_path: Path, upstreams: list[Upstream]) -> None:
    path = write(tmp_path, serving(upstreams))
    with started(tmp_path, path) as running:
        address = running.ports["listeners"][0]
        done = start("-c", path, "--listen", address)
        assert "Address already in use" in done.stderr


def test_an_admin_address_that_others_reach(tmp_path: Path) -> None:
    done = start("-c", write(tmp_path, document()), "--admin", "0.0.0.0:0")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "expected a loopback address" in done.stderr


def test_a_damaged_state_file(tmp_path: Path) -> None:
    path = write(tmp_path, document())
    state_path(path).write_text("{")
    done = start("-c", path)
    assert done.exit_code == 1
    assert str(state_path(path)) in done.stderr
    assert "is damaged" in done.stderr
    assert state_path(path).read_text() == "{"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--log-format", "xml", "expected plain or json"),
        ("--log-level", "loud", "expected debug, info, warning or error"),
        ("--listen", "nowhere", "expected host:port"),
        ("--workers", "0", "--workers"),
    ],
)
def test_options_that_are_no_options(tmp_path: Path, option: str, value: str, words: str) -> None:
    done = start("-c", write(tmp_path, document()), option, value)
    assert done.exit_code == 2
    assert words in done.stderr
