"""The proxies under test, each configured for the same canary job as well as we know how.

The job: `user-group: beta` or `x-service-version: v2` goes to v2, all else is split 95/5; keep-alive on both sides,
pooled HTTP/1.1 connections upstream, X-Forwarded-For appended.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.failure import BenchError, find_tool
from benchmarks.load.cases import CASES
from benchmarks.load.process import running, wait_until

SMALL = 16 << 10
"""Bytes that fit nginx's small buffers."""
NATIVE = Path(__file__).parent / "native"


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Ports of the two versions."""

    v1: int
    v2: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that listens on 127.0.0.1:`port`; `pid` is the root of its process tree."""

    name: str
    port: int
    pid: int


# The split draws on three cheap variables: nginx's customary $request_id costs it 13 % in random bytes. Upstream
# connections are never retired, a buffer holds a whole small answer, nothing is written to disk. Large bodies have
# locations of their own, where one large buffer is passed on at once: half the cost of any number of smaller ones.
NGINX = """
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/nginx-error.log error;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; multi_accept on; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    reset_timedout_connection off;
    client_body_temp_path {work}/nginx-body;
    proxy_temp_path {work}/nginx-proxy;
    fastcgi_temp_path {work}/nginx-fastcgi;
    uwsgi_temp_path {work}/nginx-uwsgi;
    scgi_temp_path {work}/nginx-scgi;
    client_body_buffer_size 128k;
    client_max_body_size 0;
    proxy_buffer_size 16k;
    proxy_buffers 16 16k;
    proxy_max_temp_file_size 0;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    split_clients "$remote_port$connection_requests$msec" $drawn {{ 5% v2; * v1; }}
    map $http_user_group $by_group {{ beta v2; default $drawn; }}
    map $http_x_service_version $version {{ v2 v2; default $by_group; }}
    upstream v1 {{ server 127.0.0.1:{v1}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 300s; }}
    upstream v2 {{ server 127.0.0.1:{v2}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 300s; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ proxy_pass http://$version; }}
{large}    }}
}}
"""

NGINX_LARGE = """\
        location = /{size} {{
            proxy_pass http://$version;
            proxy_buffering off;
            proxy_buffer_size 256k;
            proxy_buffers 3 256k;  # unused, but nginx checks it against the size above
            proxy_busy_buffers_size 256k;
        }}
"""

# Splicing halves the cost of 1 MiB and leaves small answers alone; splice-auto never decides for it here.
HAPROXY = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    http-reuse always
    option splice-response
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    timeout http-keep-alive 300s
frontend canary
    bind 127.0.0.1:{port} backlog 4096
    option forwardfor
    acl beta req.hdr(user-group) -m str beta
    acl pinned req.hdr(x-service-version) -m str v2
    use_backend v2 if pinned or beta
    use_backend v2 if {{ rand(100) lt 5 }}
    default_backend v1
backend v1
    server a 127.0.0.1:{v1} pool-max-conn 1024
backend v2
    server a 127.0.0.1:{v2} pool-max-conn 1024
"""

GRAYLB = """
listeners:
  - {{address: 127.0.0.1:0}}
services:
  canary:
    hosts: ["*"]
    paths: [/]
    stable: v1
    split: {{v1: 95, v2: 5}}
    rules:
      - {{name: pinned, match: {{headers: {{x-service-version: v2}}}}, to: v2}}
      - {{name: testers, match: {{headers: {{user-group: beta}}}}, to: v2}}
    instances:
      - {{address: "127.0.0.1:{v1}", version: v1}}
      - {{address: "127.0.0.1:{v2}", version: v2}}
"""


def free_port() -> int:
    """A port that was free a moment ago; for proxies that cannot tell which one the kernel gave them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def compile_native(work: Path) -> None:
    """Builds `upstream` and `floor` in `work`. Raises BenchError with the compiler's words."""
    compiler = find_tool("cc", "gcc")
    for name in ("upstream", "floor"):
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(work / name), str(NATIVE / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{name}.c does not compile:\n{done.stderr}")


def told_port(process: subprocess.Popen[str], name: str) -> int:
    """The port that a native server prints as its first line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.strip().isdigit():
        raise BenchError(f"{name} ended at start with status {process.wait(5)}")
    return int(line)


@contextmanager
def upstream(version: str, work: Path, cores: frozenset[int]) -> Iterator[int]:
    """One version's upstream; yields its port."""
    command = [str(work / "upstream"), version]
    with running(f"upstream {version}", command, cores, work / f"upstream-{version}.log", tells=True) as process:
        yield told_port(process, f"upstream {version}")


@contextmanager
def floor(work: Path, cores: frozenset[int], to: Upstreams) -> Iterator[Peer]:
    command = [str(work / "floor"), "20", str(to.v1), str(to.v2)]
    with running("floor", command, cores, work / "floor.log", tells=True) as process:
        yield Peer("floor", told_port(process, "floor"), process.pid)


@contextmanager
def nginx(work: Path, cores: frozenset[int], to: Upstreams) -> Iterator[Peer]:
    port, config = free_port(), work / "nginx.conf"
    large = "".join(NGINX_LARGE.format(size=case.size) for case in CASES if case.size > SMALL)
    config.write_text(NGINX.format(work=work, port=port, v1=to.v1, v2=to.v2, large=large))
    command = [find_tool("nginx", "nginx"), "-e", str(work / "nginx-error.log"), "-p", str(work), "-c", str(config)]
    with running("nginx", command, cores, work / "nginx.log") as process:
        wait_until(lambda: accepts(port), process, "nginx")
        yield Peer("nginx", port, process.pid)


@contextmanager
def haproxy(work: Path, cores: frozenset[int], to: Upstreams) -> Iterator[Peer]:
    port, config = free_port(), work / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, v1=to.v1, v2=to.v2))
    command = [find_tool("haproxy", "haproxy"), "-db", "-f", str(config)]
    with running("haproxy", command, cores, work / "haproxy.log") as process:
        wait_until(lambda: accepts(port), process, "haproxy")
        yield Peer("haproxy", port, process.pid)


@contextmanager
def graylb(work: Path, cores: frozenset[int], to: Upstreams) -> Iterator[Peer]:
    config, ports = work / "graylb.yaml", work / "graylb-ports.json"
    config.write_text(GRAYLB.format(v1=to.v1, v2=to.v2))
    command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(config), "--ports-file", str(ports)]
    with running("graylb", command, cores, work / "graylb.log") as process:
        wait_until(lambda: ports.exists(), process, "graylb")
        port = first_port(ports.read_bytes())
        wait_until(lambda: accepts(port), process, "graylb")
        yield Peer("graylb", port, process.pid)


def first_port(text: bytes) -> int:
    """The first listener's port of graylb's ports file. Raises BenchError when it names none."""
    listeners = orjson.loads(text).get("listeners")
    if not listeners:
        raise BenchError(f"graylb's ports file names no listener: {text.decode()}")
    return int(listeners[0].rpartition(":")[2])


START: dict[str, Callable[[Path, frozenset[int], Upstreams], AbstractContextManager[Peer]]] = {
    "graylb": graylb,
    "nginx": nginx,
    "haproxy": haproxy,
    "floor": floor,
}
NAMES = tuple(START)
