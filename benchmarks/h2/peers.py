"""The proxies, each configured for the same canary job over HTTP/2 or TLS as well as we know how (`configs/`).

The job is that of the HTTP/1.1 suite. A proxy is started once for each `Side` that is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.h2.certificates import trusting
from benchmarks.h2.client import Client
from benchmarks.load.peers import Peer, Setting, filled, free_port, told_ports
from benchmarks.load.process import running, wait_until

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, slots=True)
class Side:
    """What a proxy speaks: TLS with a certificate of certificates.KEYS, or none, to clients; h1 or h2 to its upstreams.

    Without TLS clients speak HTTP/2 with prior knowledge, with it what they negotiate.
    """

    upstream: str
    tls: str = ""

    @property
    def name(self) -> str:
        return f"{self.tls}-to-{self.upstream}" if self.tls else f"to-{self.upstream}"


@dataclass(frozen=True, slots=True)
class Start:
    """What a proxy of one side is started with."""

    setting: Setting
    side: Side

    @property
    def work(self) -> Path:
        return self.setting.work

    def name(self, kind: str) -> str:
        return f"{kind}-{self.side.name}"

    def certificate(self) -> tuple[Path, Path, Path]:
        """(chain, key, both in one file), which the stage has put into its folder."""
        tls = self.side.tls
        return self.work / f"{tls}.crt", self.work / f"{tls}.key", self.work / f"{tls}.pem"


def write(start: Start, template: str, name: str, **values: object) -> Path:
    to = start.work / f"{name}{Path(template).suffix}"
    text = (CONFIGS / template).read_text()
    common = {"work": start.work, "v1": start.setting.to.v1, "v2": start.setting.to.v2, "name": name}
    to.write_text(filled(text, **common, **values))
    return to


def ready(port: int, side: Side) -> bool:
    """Whether a request gets through to an upstream."""
    try:
        with Client(port, trusting() if side.tls else None, seconds=5) as probe:
            return probe.ask("/count").status == 200
    except (BenchError, OSError):
        return False


@contextmanager
def listening(start: Start, name: str, command: list[str], port: int) -> Iterator[Peer]:
    with running(name, command, start.setting.cores, start.work / f"{name}.log") as process:
        wait_until(lambda: ready(port, start.side), process, name)
        yield Peer(name, port, process.pid)


def nginx(start: Start) -> AbstractContextManager[Peer]:
    name, port = start.name("nginx"), free_port()
    chain, key, _ = start.certificate()
    config = write(
        start, "nginx.conf", name,
        port=port, descriptors=2 * start.setting.connections + 200,
        listen="ssl http2" if start.side.tls else "http2",
        tls=f"ssl_certificate {chain}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;" if start.side.tls else "",
        **{"pass": "grpc_pass grpc://$version" if start.side.upstream == "h2" else "proxy_pass http://$version"},
    )  # fmt: skip
    command = [programs.find("nginx"), "-e", str(start.work / f"{name}-error.log"), "-p", str(start.work)]
    return listening(start, name, [*command, "-c", str(config)], port)


def haproxy(start: Start) -> AbstractContextManager[Peer]:
    name, port = start.name("haproxy"), free_port()
    config = write(
        start, "haproxy.cfg", name,
        port=port, connections=start.setting.connections,
        bind=f"ssl crt {start.certificate()[2]} alpn h2,http/1.1" if start.side.tls else "proto h2",
        server="proto h2" if start.side.upstream == "h2" else "",
    )  # fmt: skip
    return listening(start, name, [programs.find("haproxy"), "-db", "-f", str(config)], port)


ENVOY_TLS = """\
transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_params: {{tls_minimum_protocol_version: TLSv1_3}}
            tls_certificates: [{{certificate_chain: {{filename: {0}}}, private_key: {{filename: {1}}}}}]"""


def envoy(start: Start) -> AbstractContextManager[Peer]:
    name, port = start.name("envoy"), free_port()
    config = write(
        start, "envoy.yaml", name,
        port=port,
        tls=ENVOY_TLS.format(*start.certificate()) if start.side.tls else "",
        protocol="http2_protocol_options" if start.side.upstream == "h2" else "http_protocol_options",
    )  # fmt: skip
    command = [programs.find("envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return listening(start, name, command, port)


def nghttpx(start: Start) -> AbstractContextManager[Peer]:
    name, port = start.name("nghttpx"), free_port()
    chain, key, _ = start.certificate()
    tls = f"private-key-file={key}\ncertificate-file={chain}\ntls-min-proto-version=TLSv1.3"
    config = write(
        start, "nghttpx.conf", name,
        port=port,
        frontend="" if start.side.tls else ";no-tls",
        tls=tls if start.side.tls else "",
        protocol="h2" if start.side.upstream == "h2" else "http/1.1",
    )  # fmt: skip
    return listening(start, name, [programs.find("nghttpx"), f"--conf={config}"], port)


@contextmanager
def graylb(start: Start) -> Iterator[Peer]:
    name = start.name("graylb")
    chain, key, _ = start.certificate()
    ports = start.work / f"{name}-ports.json"
    config = write(
        start, "graylb.yaml", name,
        tls=f"tls: {{cert: {chain}, key: {key}}}" if start.side.tls else "protocols: [h2]",
        protocol="h2" if start.side.upstream == "h2" else "http1",
    )  # fmt: skip
    command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(config), "--ports-file", str(ports)]
    with running(name, command, start.setting.cores, start.work / f"{name}.log") as process:
        wait_until(lambda: ports.exists(), process, name, seconds=30)
        port, admin = told_ports(ports.read_bytes())
        wait_until(lambda: ready(port, start.side), process, name)
        yield Peer(name, port, process.pid, admin)


@dataclass(frozen=True, slots=True)
class Kind:
    """A proxy; `program` is the name in programs.PROGRAMS, empty for what is our own."""

    title: str
    start: Callable[[Start], AbstractContextManager[Peer]]
    program: str = ""


KINDS = {
    "graylb": Kind("graylb", graylb),
    "nghttpx": Kind("nghttpx", nghttpx, "nghttpx"),
    "haproxy": Kind("HAProxy", haproxy, "haproxy"),
    "envoy": Kind("Envoy", envoy, "envoy"),
    "nginx": Kind("nginx", nginx, "nginx"),
}
NAMES = tuple(KINDS)
