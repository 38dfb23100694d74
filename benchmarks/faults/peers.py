"""The proxies of the suite, each before the same instances of one version, with the retries and checks that it has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.load.peers import Peer, Setting, Upstreams, answers, filled, free_port, listening, told_ports
from benchmarks.load.process import check_idle, running, tree, wait_until

CONFIGS = Path(__file__).parent / "configs"
NAMES = ("graylb", "nginx", "haproxy", "envoy")
MEMBERS = 2
"""Processes of graylb's tree without the spare worker."""
TITLES = {"graylb": "graylb", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy"}


@dataclass(frozen=True, slots=True)
class Job:
    """What a proxy is started with.

    folder: its own, empty. ports: of the instances. response: seconds until the head of an answer has come. checks: ask
    each instance for /health five times a second. room: requests at once to each instance, 0: as many as come.
    stubborn: 503 is retried, too. service, top, listener: lines for graylb's document; options: for its command line;
    environment: for the process.
    """

    folder: Path
    cores: frozenset[int]
    ports: tuple[int, ...]
    response: int = 1
    connections: int = 4096
    checks: bool = False
    room: int = 0
    stubborn: bool = False
    service: str = ""
    top: str = ""
    listener: str = ""
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None


def _setting(job: Job) -> Setting:
    return Setting(job.folder, job.cores, Upstreams(0, 0), job.connections)


def _write(job: Job, template: str, to: Path, **values: object) -> Path:
    common = {"work": job.folder, "connections": job.connections, "descriptors": 2 * job.connections + 200}
    text = (CONFIGS / template).read_text()
    to.write_text(filled(text, **common, response=f"{job.response}s", **values))
    return to


GRAYLB_CHECK = (
    "    health: {check: {http: /health, interval: 200ms, timeout: 200ms, unhealthy: 2, healthy: 1}, panic: 50}\n"
)


@contextmanager
def graylb(job: Job) -> Iterator[Peer]:
    ports = job.folder / "ports.json"
    lines = "".join(f'      - {{address: "127.0.0.1:{port}", version: v1}}\n' for port in job.ports)
    service = job.service + (GRAYLB_CHECK if job.checks else "")
    config = _write(
        job, "graylb.yaml", job.folder / "graylb.yaml",
        instances=lines, service=service, top=job.top, listener=job.listener,
    )  # fmt: skip
    options = [*(() if "--drain" in job.options else ("--drain", "3")), *job.options]
    command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(config), "--ports-file", str(ports), *options]
    with running("graylb", command, job.cores, job.folder / "graylb.log", variables=job.environment) as process:
        wait_until(ports.exists, process, "graylb", seconds=30)
        port, admin = told_ports(ports.read_bytes())
        if not job.listener:
            wait_until(lambda: answers(port), process, "graylb")
        # the spare worker and the admin API come once it serves: what they cost belongs to the time before the fault
        wait_until(lambda: len(tree(process.pid)) > MEMBERS, process, "graylb's spare worker")
        check_idle({"graylb": tree(process.pid)}, seconds=0.2, most=0.3)
        yield Peer("graylb", port, process.pid, admin)


def nginx(job: Job) -> AbstractContextManager[Peer]:
    port = free_port()
    room = f" max_conns={job.room} max_fails=0" if job.room else ""
    lines = " ".join(f"server 127.0.0.1:{each}{room};" for each in job.ports)
    retried = "error timeout http_503" if job.stubborn else "error timeout"
    config = _write(job, "nginx.conf", job.folder / "nginx.conf", port=port, instances=lines, retried=retried)
    command = [programs.find("nginx"), "-e", str(job.folder / "error.log"), "-p", str(job.folder), "-c", str(config)]
    return listening(_setting(job), "nginx", command, port)


def haproxy(job: Job) -> AbstractContextManager[Peer]:
    port = free_port()
    room = f" maxconn {job.room} maxqueue {job.room}" if job.room else ""
    lines = "".join(f"    server o{number} 127.0.0.1:{each}{room}\n" for number, each in enumerate(job.ports))
    config = _write(
        job, "haproxy.cfg", job.folder / "haproxy.cfg", port=port, instances=lines,
        check="option httpchk GET /health" if job.checks else "",
        retried="conn-failure empty-response 503" if job.stubborn else "conn-failure empty-response",
        checked="check inter 200ms fall 2 rise 1 pool-max-conn 1024" if job.checks else "pool-max-conn 1024",
    )  # fmt: skip
    # master and worker, as its unit starts it: what becomes of it when its worker dies is one of the rows
    return listening(_setting(job), "haproxy", [programs.find("haproxy"), "-W", "-db", "-f", str(config)], port)


ENVOY_BUDGET = "retry_budget: {budget_percent: {value: 20}, min_retry_concurrency: 3}"
ENVOY_CHECK = """    health_checks:
    - timeout: 0.2s
      interval: 0.2s
      no_traffic_interval: 0.2s
      unhealthy_interval: 0.2s
      unhealthy_threshold: 2
      healthy_threshold: 1
      http_health_check: {path: /health}
"""


def envoy(job: Job) -> AbstractContextManager[Peer]:
    port = free_port()
    lines = "".join(
        f"        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {each}}}}}}}\n"
        for each in job.ports
    )
    config = _write(
        job, "envoy.yaml", job.folder / "envoy.yaml", port=port, instances=lines,
        check=ENVOY_CHECK if job.checks else "", room=job.room or 65_536, pending=job.room or 65_536,
        retried=",5xx" if job.stubborn else "",
        retries=ENVOY_BUDGET if job.stubborn else "max_retries: 65536",
    )  # fmt: skip
    command = [programs.find("envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "off"]
    return listening(_setting(job), "envoy", command, port)


START: dict[str, Callable[[Job], AbstractContextManager[Peer]]] = {
    "graylb": graylb, "nginx": nginx, "haproxy": haproxy, "envoy": envoy,
}  # fmt: skip


def present(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those that can be started here, the others)."""
    there = [name for name in names if name == "graylb" or programs.look_up(name) is not None]
    return there, [name for name in names if name not in there]
