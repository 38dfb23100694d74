"""The proxies under test, each configured for the same canary job as well as we know how (`configs/`).

The job: `user-group: beta` or `x-service-version: v2` goes to v2, all else is split 95/5; keep-alive on both sides,
pooled HTTP/1.1 connections upstream, X-Forwarded-For appended.
"""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.load.cases import MANY_INSTANCES, MANY_RULES
from benchmarks.load.process import running, wait_until

NATIVE = Path(__file__).parent / "native"
CONFIGS = Path(__file__).parent / "configs"
SOURCES = ("upstream", "floor", "pace", "transfer")
LIBRARIES = {"h2upstream": ("nghttp2",), "handshakes": ("ssl", "crypto")}
HEADERS = {"h2upstream": ("nghttp2/nghttp2.h", "libnghttp2-dev"), "handshakes": ("openssl/ssl.h", "libssl-dev")}
"""What a native program needs beside the C library, and the Debian package that brings it."""


@dataclass(frozen=True, slots=True)
class Upstreams:
    """Ports of the two versions."""

    v1: int
    v2: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that listens on 127.0.0.1:`port`; `pid` is the root of its process tree, `admin` graylb's admin port."""

    name: str
    port: int
    pid: int
    admin: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a proxy is started with. `connections`: how many clients it must take at once."""

    work: Path
    cores: frozenset[int]
    to: Upstreams
    connections: int = 4096
    workers: int = 1  # graylb alone


def filled(text: str, **values: object) -> str:
    """`text` with every @name@ replaced. Raises BenchError for one that has no value."""

    def value(found: re.Match[str]) -> str:
        if found.group(1) not in values:
            raise BenchError(f"a configuration asks for @{found.group(1)}@, which has no value")
        return str(values[found.group(1)])

    return re.sub(r"@([a-z0-9_]+)@", value, text)


def write_config(setting: Setting, template: str, to: Path, **values: object) -> Path:
    text = (CONFIGS / template).read_text()
    to.write_text(filled(text, work=setting.work, v1=setting.to.v1, v2=setting.to.v2, **values))
    return to


def free_port() -> int:
    """A port that was free a moment ago; for proxies that cannot tell which one the kernel gave them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether a request gets through to an upstream: some proxies listen before they know their routes."""
    probe = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        probe.request("GET", "/count")  # which the upstreams do not count
        return probe.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        probe.close()


def compile_native(work: Path, names: Sequence[str] = SOURCES) -> None:
    """Builds the native programs in `work`. Raises BenchError with the compiler's words."""
    for name in names:
        if name in HEADERS and not programs.has_header(HEADERS[name][0]):
            header, package = HEADERS[name]
            raise BenchError(f"{name}.c: there is no {header}; {programs.debian(package)}")
        libraries = [f"-l{each}" for each in LIBRARIES.get(name, ())]
        flags = ["-O2", "-Wall", "-Wextra", "-o", str(work / name)]
        command = [programs.find("cc"), *flags, str(NATIVE / f"{name}.c"), *libraries]
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
def upstream(version: str, work: Path, cores: frozenset[int], program: str = "upstream") -> Iterator[int]:
    """One version's upstream; yields its port."""
    name = f"{program} {version}"
    with running(name, [str(work / program), version], cores, work / f"{program}-{version}.log", tells=True) as process:
        yield told_port(process, name)


@contextmanager
def listening(
    setting: Setting, name: str, command: Sequence[str], port: int, variables: dict[str, str] | None = None
) -> Iterator[Peer]:
    """A proxy that was told its port."""
    with running(name, command, setting.cores, setting.work / f"{name}.log", variables=variables) as process:
        wait_until(lambda: answers(port), process, name)
        yield Peer(name, port, process.pid)


@contextmanager
def floor(setting: Setting) -> Iterator[Peer]:
    command = [str(setting.work / "floor"), "20", str(setting.to.v1), str(setting.to.v2)]
    with running("floor", command, setting.cores, setting.work / "floor.log", tells=True) as process:
        yield Peer("floor", told_port(process, "floor"), process.pid)


def nginx(setting: Setting, name: str = "nginx") -> AbstractContextManager[Peer]:
    port, work = free_port(), setting.work
    write_config(setting, "nginx-large.conf", work / f"{name}-large.conf")
    room = 2 * setting.connections + 200
    config = write_config(setting, "nginx.conf", work / f"{name}.conf", name=name, port=port, descriptors=room)
    command = [programs.find(name), "-e", str(work / f"{name}-error.log"), "-p", str(work), "-c", str(config)]
    return listening(setting, name, command, port)


def haproxy(setting: Setting, name: str = "haproxy") -> AbstractContextManager[Peer]:
    port, program = free_port(), programs.find(name)
    config = write_config(
        setting, "haproxy.cfg", setting.work / f"{name}.cfg", port=port, connections=setting.connections
    )
    # the newer one brings its libraries along
    variables = {"LD_LIBRARY_PATH": str(Path(program).parent / "lib")} if name == "haproxy-new" else None
    return listening(setting, name, [program, "-db", "-f", str(config)], port, variables)


def envoy(setting: Setting) -> AbstractContextManager[Peer]:
    port = free_port()
    config = write_config(setting, "envoy.yaml", setting.work / "envoy.yaml", port=port)
    command = [programs.find("envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return listening(setting, "envoy", command, port)


# One thread runs Go code, and the collector may let garbage grow to four times what is in use before it starts.
GO = {"GOMAXPROCS": "1", "GOGC": "400"}


def traefik(setting: Setting) -> AbstractContextManager[Peer]:
    port = free_port()
    write_config(setting, "traefik-routes.yaml", setting.work / "traefik-routes.yaml")
    config = write_config(setting, "traefik.yaml", setting.work / "traefik.yaml", port=port)
    return listening(setting, "traefik", [programs.find("traefik"), f"--configFile={config}"], port, GO)


def caddy(setting: Setting) -> AbstractContextManager[Peer]:
    port = free_port()
    config = write_config(setting, "caddy.json", setting.work / "caddy.json", port=port)
    variables = {**GO, "XDG_DATA_HOME": str(setting.work), "XDG_CONFIG_HOME": str(setting.work)}
    return listening(setting, "caddy", [programs.find("caddy"), "run", "--config", str(config)], port, variables)


@contextmanager
def graylb(
    setting: Setting, name: str = "graylb", rules: str = "", instances: str = "", more: str = ""
) -> Iterator[Peer]:
    """`rules`, `instances` and, of the document as a whole, `more`: lines to add."""
    folder = setting.work / f"{name}-{setting.workers}"
    folder.mkdir()
    ports = folder / "ports.json"
    added = {"rules": rules, "instances": instances, "more": more, "workers": setting.workers}
    config = write_config(setting, "graylb.yaml", folder / "graylb.yaml", **added)
    command = [sys.executable, "-m", "graylb.cli", "run", "-c", str(config), "--ports-file", str(ports)]
    with running(name, command, setting.cores, folder / "graylb.log") as process:
        wait_until(lambda: ports.exists(), process, name, seconds=30)
        port, admin = told_ports(ports.read_bytes())
        wait_until(lambda: answers(port), process, name)
        yield Peer(name, port, process.pid, admin)


def user_rule(user: str, version: str) -> str:
    return f"      - {{name: {user}, match: {{headers: {{x-user-id: {user}}}}}, to: {version}}}\n"


def three_rules(setting: Setting) -> AbstractContextManager[Peer]:
    return graylb(setting, rules=user_rule("nobody", "v2"))


def many_rules(setting: Setting) -> AbstractContextManager[Peer]:
    """A rule for each user, 5 % of which go to v2 as in the split, and a version of instances that nobody asks."""
    rules = "".join(user_rule(f"u{each}", "v2" if each % 20 == 0 else "v1") for each in range(MANY_RULES))
    addresses = (f"10.0.{each >> 8}.{each & 255}:80" for each in range(MANY_INSTANCES - 2))
    instances = "".join(f'      - {{address: "{address}", version: v3}}\n' for address in addresses)
    return graylb(setting, "graylb-10k", rules, instances)


def told_ports(text: bytes) -> tuple[int, int]:
    """The first listener's port and the admin port of graylb's ports file. Raises BenchError when one is missing."""
    said = orjson.loads(text)
    if not said.get("listeners") or not said.get("admin"):
        raise BenchError(f"graylb's ports file names no listener or no admin address: {text.decode()}")
    return int(said["listeners"][0].rpartition(":")[2]), int(said["admin"].rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Kind:
    """A peer: what readers call it, how to start it, and whether it is part of a whole run.

    `program` is the name in programs.PROGRAMS, empty for what is our own; `slow` ones run some of the cases only.
    """

    title: str
    start: Callable[[Setting], AbstractContextManager[Peer]]
    program: str = ""
    standard: bool = True
    slow: bool = False


KINDS = {
    "graylb": Kind("graylb", three_rules),
    "graylb-10k": Kind("graylb, many rules", many_rules),
    "nginx": Kind("nginx", nginx, "nginx"),
    "haproxy": Kind("HAProxy", haproxy, "haproxy"),
    "envoy": Kind("Envoy", envoy, "envoy", slow=True),
    "traefik": Kind("Traefik", traefik, "traefik", slow=True),
    "caddy": Kind("Caddy", caddy, "caddy", slow=True),
    "floor": Kind("floor", floor),
    "nginx-new": Kind("newer nginx", lambda s: nginx(s, "nginx-new"), "nginx-new", standard=False),
    "haproxy-new": Kind("newer HAProxy", lambda s: haproxy(s, "haproxy-new"), "haproxy-new", standard=False),
}
NAMES = tuple(KINDS)
STANDARD = tuple(name for name, kind in KINDS.items() if kind.standard)
NEEDED = ("graylb", "nginx", "haproxy")
"""Without these a whole run is none; other peers may be missing from a machine."""


def present(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those whose program is there, the others). Raises BenchError for one of NEEDED that is missing."""
    there: list[str] = []
    missing: list[str] = []
    for name in names:
        program = KINDS[name].program
        if program and program not in NEEDED and programs.look_up(program) is None:
            missing.append(name)
        else:
            if program:
                programs.find(program)
            there.append(name)
    return there, missing


def programs_of(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(KINDS[name].program for name in names if KINDS[name].program)
