"""What it costs to be seen: the same proxy with an access log, with 1 % of requests traced, with both, with neither.

Figures are counted in every one of them, and scraped once a second as Prometheus would. The processor time is that of
the whole process tree, so what the control process does with lines and spans is in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import peers
from benchmarks.load.cases import CASES, Case, Law
from benchmarks.load.peers import Peer, Setting
from benchmarks.load.process import check_idle, check_pinned, tree
from benchmarks.load.run import line, measure
from benchmarks.load.stage import my_cores, stage
from benchmarks.load.verify import verify
from benchmarks.stats import rotated

LOG = "access_log: {{path: {folder}/access.log}}\n"
TRACES = "tracing: {{otlp: {{endpoint: 'http://127.0.0.1:{port}', protocol: http}}, sample: 1, parent_based: false}}\n"
SEEN = {"plain": "", "log": LOG, "traced": TRACES, "both": LOG + TRACES}
"""Name -> what its document has besides."""
TITLES = {"plain": "neither", "log": "access log", "traced": "1 % traced", "both": "both"}
OBSERVED: Sequence[Case] = tuple(case for case in CASES if case.name in ("get-128", "browser-128"))
BOUND = 1.03
LAWS = tuple(Law(case.name, "plain", BOUND, ours) for case in OBSERVED for ours in ("log", "traced", "both"))
SCRAPE_EVERY = 1.0


class _Collector(BaseHTTPRequestHandler):
    """Takes whatever is exported."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def collector() -> Iterator[int]:
    """An OTLP receiver of this process; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def scraped(up: Mapping[str, Peer]) -> Iterator[None]:
    """Asks each for its figures, once a second. Raises BenchError when one does not tell them."""
    ended, failures = threading.Event(), []

    def scrape() -> None:
        while not ended.wait(SCRAPE_EVERY):
            for name, peer in up.items():
                answer = httpx.get(f"http://127.0.0.1:{peer.admin}/metrics", timeout=10)
                if answer.status_code != 200:
                    failures.append(f"{name}: /metrics answers {answer.status_code}")

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise BenchError(failures[0])


@contextmanager
def seen(setting: Setting, port: int) -> Iterator[dict[str, Peer]]:
    """All four, up, verified and idle."""
    with ExitStack() as stack:
        up: dict[str, Peer] = {}
        for name, text in SEEN.items():
            folder = setting.work / f"seen-{name}"
            folder.mkdir()
            more = text.format(folder=folder, port=port)
            up[name] = stack.enter_context(peers.graylb(setting, f"graylb-{name}", more=more))
            check_pinned(tree(up[name].pid), setting.cores, name)
        yield up


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """The raw result, ready for JSON. Raises BenchError."""
    cores = my_cores()
    environment = stamp.environment(("wrk", "cc"))
    runs = []
    with stage(cores) as on, collector() as port, seen(on.setting, port) as up:
        for peer in up.values():
            verify(peer, on.to)
        check_idle({name: tree(peer.pid) for name, peer in up.items()})
        with scraped(up):
            for number in range(1, rounds + 1):
                for index, case in enumerate(OBSERVED):
                    for name in rotated(list(SEEN), number + index):
                        found = measure(number, case, up[name], on.to, cores, seconds)
                        print(line(found), flush=True)
                        runs.append({**asdict(found), "peer": name})
    settings = {
        "rounds": rounds, "seconds": seconds, "peers": list(SEEN), "cases": [case.name for case in OBSERVED],
        "proxy_cores": sorted(cores.proxy), "load_cores": sorted(cores.load),
    }  # fmt: skip
    return {"kind": "observe", "stamp": environment, "settings": settings, "runs": runs}


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    titles = {**titles, **TITLES}
    parts = [
        ("Laws", report.laws(result, titles, LAWS)),
        ("CPU µs per request (whole process tree)", report.figures(result, titles, "cpu_us", compare=False)),
        ("Requests per second", report.figures(result, titles, "rps", compare=False)),
    ]
    return report.sections("Being seen", result, parts, titles)
