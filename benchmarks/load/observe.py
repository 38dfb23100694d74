"""What it costs to be seen: the same proxy with an access log, with 1 % of requests traced, with both, with neither.

Figures are counted in every one of them, and scraped as Prometheus would. The processor time is that of the whole
process tree, so what the control process does with lines and spans is in it.

What is to be seen is smaller than what two starts of the very same proxy differ by, as memory falls. So each round
begins anew with each of them beside one that has neither, both idle before they are measured. Of two that are the same
the one that starts first costs up to 2 % more: each is the first in half of the rounds, whose number is even.
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
from benchmarks.load import peers, turns, wrk
from benchmarks.load.cases import CASES, Case, Law
from benchmarks.load.peers import Peer, Setting, Upstreams
from benchmarks.load.process import check_idle, check_pinned, tree
from benchmarks.load.stage import my_cores, stage
from benchmarks.load.verify import verify
from benchmarks.stats import rotated

LOG = "access_log: {{path: {folder}/access.log}}\n"
TRACES = "tracing: {{otlp: {{endpoint: 'http://127.0.0.1:{port}', protocol: http}}, sample: 1, parent_based: false}}\n"
SEEN = {"log": ("access log", LOG), "traced": ("1 % traced", TRACES), "both": ("both", LOG + TRACES)}
"""Name -> title, what its document has besides."""


def beside(name: str) -> str:
    """Of the one with neither, beside it."""
    return f"plain-{name}"


TITLES = {name: title for name, (title, _) in SEEN.items()}
TITLES |= {beside(name): f"neither, beside {title}" for name, title in TITLES.items()}
OBSERVED: Sequence[Case] = tuple(case for case in CASES if case.name in ("get-128", "browser-128"))
BOUND = 1.03
LAWS = tuple(Law(case.name, beside(ours), BOUND, ours) for case in OBSERVED for ours in SEEN)
IDLE = 0.012
"""Of a core: what a proxy may use that has nothing to do and has done with its start."""
SCRAPE_EVERY = 2.0
"""Seconds, of which each is under load for one."""


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
    """Asks each for its figures, again and again. Raises BenchError when one does not tell them."""
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
def seen(setting: Setting, to: Upstreams, port: int, number: int, order: Sequence[str]) -> Iterator[dict[str, Peer]]:
    """A pair of them, started in this order: up, verified and idle."""
    with ExitStack() as stack:
        up: dict[str, Peer] = {}
        for name in order:
            folder = setting.work / f"seen-{number}-{name}"
            folder.mkdir()
            more = SEEN[name][1].format(folder=folder, port=port) if name in SEEN else ""
            up[name] = stack.enter_context(peers.graylb(setting, folder.name, more=more))
            check_pinned(tree(up[name].pid), setting.cores, name)
        for peer in up.values():
            verify(peer, to)
        check_idle({name: tree(peer.pid) for name, peer in up.items()}, most=IDLE)
        yield up


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """The raw result, ready for JSON; of one round more where they are odd. Raises BenchError."""
    rounds += rounds % 2
    cores = my_cores()
    environment = stamp.environment(("wrk", "cc"))
    runs = []
    with stage(cores) as on, collector() as port:
        for number in range(1, rounds + 1):
            for ours in SEEN:
                order = rotated([beside(ours), ours], number)
                with seen(on.setting, on.to, port, number, order) as up, scraped(up):
                    for index, case in enumerate(OBSERVED):
                        load, pair = wrk.load_of(case), {name: up[name] for name in rotated(order, index)}
                        for found in turns.measure(number, load, pair, on.to, cores, seconds):
                            print(turns.line(found), flush=True)
                            runs.append(asdict(found))
    settings = {
        "rounds": rounds, "seconds": seconds, "peers": list(TITLES), "cases": [case.name for case in OBSERVED],
        "proxy_cores": sorted(cores.proxy), "load_cores": sorted(cores.load),
    }  # fmt: skip
    return {"kind": "observe", "stamp": environment, "settings": settings, "runs": runs}


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    titles = {**titles, **TITLES}
    parts = [
        ("Laws", report.laws(result, titles, LAWS)),
        ("CPU µs per request (whole process tree)", report.figures(result, titles, "cpu_us", compare=False)),
    ]
    return report.sections("Being seen", result, parts, titles)
