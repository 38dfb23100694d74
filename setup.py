"""Builds the Cython hot path.

Flavours by the environment variable GRAYLB_BUILD:
  release (default)  optimised, unchecked
  debug              -O0, bounds checks
  asan               address and undefined-behaviour sanitizers
  fuzz               the same by clang, instrumented for libFuzzer (tests/fuzz/guided.py)
  cov                line tracing for coverage
Generated C stays in build/, never beside the sources and never in a wheel.

What needs another library is built where that library is, and left out, in one line, where it is not:
  GRAYLB_H2=auto|system|off      HTTP/2, by libnghttp2 (libnghttp2-dev)
auto (default): as said; system: an error without it; off: left out.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAVOUR = os.environ.get("GRAYLB_BUILD", "release")
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
FLAGS = {
    "release": (["-O3", "-fno-plt", "-fno-semantic-interposition"], [], []),
    "debug": (["-O0", "-g3"], [], []),
    "asan": ([*SANITIZED, "-fsanitize=address,undefined"], ["-fsanitize=address,undefined"], []),
    "fuzz": ([*SANITIZED, "-fsanitize=address,undefined,fuzzer-no-link"], ["-fsanitize=address,undefined"], []),
    "cov": (["-O0", "-g"], [], [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]),
}
if FLAVOUR not in FLAGS:
    raise SystemExit(f"GRAYLB_BUILD={FLAVOUR!r}: expected one of {', '.join(FLAGS)}")
cflags, ldflags, macros = FLAGS[FLAVOUR]
if FLAVOUR == "fuzz":
    os.environ["CC"] = "clang"  # gcc has no counters that libFuzzer reads
safe = FLAVOUR != "release"

directives = {
    "language_level": 3,
    "boundscheck": safe,
    "wraparound": safe,
    "cdivision": True,
    "initializedcheck": safe,
    "nonecheck": False,
    "binding": FLAVOUR == "cov",
    "embedsignature": False,
    "linetrace": FLAVOUR == "cov",
}


@dataclass(frozen=True)
class Library:
    """One that a module of ours is built over. functions: those that not every release of it has."""

    switch: str  # the environment variable that says whether
    what: str
    package: str  # pkg-config's name
    header: str
    debian: str
    libraries: tuple[str, ...]  # where there is no pkg-config
    probe: str  # a C expression that needs it
    functions: tuple[str, ...] = field(default=())


OPTIONAL = {
    "_h2": Library(
        switch="GRAYLB_H2",
        what="HTTP/2",
        package="libnghttp2",
        header="nghttp2/nghttp2.h",
        debian="libnghttp2-dev",
        libraries=("nghttp2",),
        probe="nghttp2_session_callbacks_set_send_data_callback",
        functions=("nghttp2_option_set_stream_reset_rate_limit", "nghttp2_option_set_max_continuations"),
    ),
    "_tls": Library(
        switch="GRAYLB_TLS",
        what="TLS",
        package="openssl",
        header="openssl/ssl.h",
        debian="libssl-dev",
        libraries=("ssl", "crypto"),
        probe="SSL_CTX_set_tlsext_ticket_key_evp_cb",  # there since 3.0
    ),
}


def links(library: Library, symbol: str, flags: list[str]) -> bool:
    """Whether a program that uses this symbol compiles and links. Versions tell less: distributions backport."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as where:
        source = Path(where, "probe.c")
        source.write_text(f"#include <{library.header}>\nint main(void) {{ return (void *)&{symbol} == 0; }}\n")
        command = [*compiler, str(source), "-o", str(Path(where, "probe")), *flags]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def package_flags(library: Library) -> list[str]:
    """What the compiler and the linker are to be told of it."""
    try:
        done = subprocess.run(["pkg-config", "--cflags", "--libs", library.package], capture_output=True, text=True)
    except OSError:
        done = None
    return shlex.split(done.stdout) if done and done.returncode == 0 else [f"-l{each}" for each in library.libraries]


def optional(name: str, library: Library) -> Extension | None:
    """The extension over this library, or None where it is not to be had or not wanted."""
    wanted = os.environ.get(library.switch, "auto")
    if wanted not in ("auto", "system", "off"):
        raise SystemExit(f"{library.switch}={wanted!r}: expected auto, system or off")
    found = package_flags(library) if wanted != "off" else []
    if wanted == "off" or not links(library, library.probe, found):
        missing = f"without {library.what}: {library.debian} is not installed"
        if wanted == "system":
            raise SystemExit(f"graylb: cannot build {missing}")
        print("graylb: built", missing if wanted == "auto" else f"without {library.what}: {library.switch}=off")
        if "build_ext" in sys.argv:  # an older build of it would be imported all the same
            for stale in Path("graylb").glob(f"{name}.*.so"):
                stale.unlink()
        return None
    made = extension(name)
    made.extra_compile_args += [flag for flag in found if not flag.startswith(("-l", "-L", "-Wl,"))]
    made.extra_link_args += [flag for flag in found if flag.startswith(("-l", "-L", "-Wl,"))]
    made.define_macros += [(f"HAVE_{each.upper()}", "1") for each in library.functions if links(library, each, found)]
    return made


def extension(name: str) -> Extension:
    return Extension(
        f"graylb.{name}",
        [f"graylb/{name}.pyx"],
        extra_compile_args=["-Wall", "-Wno-unused-function", "-Wno-unused-but-set-variable", *cflags],
        extra_link_args=[*ldflags],
        define_macros=[*macros],
    )


extensions = [
    extension(name)
    for name in (
        *("_http1", "_fast", "_link", "_gate", "_grpc", "_proxy", "_faults", "_mirrors", "_limits", "_retries"),
        *("_slab", "_meter", "_live", "_mark", "_memory", "_marker", "_outliers", "_accesslog", "_ring", "_trace"),
        *("_sockets", "_spans", "_logs", "_pools", "_clients", "_streams", "_exchanges", "_admission", "_attempts"),
        *("_hedges", "_tunnels", "_detours", "_engine"),
    )
]
extensions += [made for name, library in OPTIONAL.items() if (made := optional(name, library))]

CORES = len(os.sched_getaffinity(0))
setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives=directives,
        build_dir=f"build/cython-{FLAVOUR}",
        annotate=True,
        show_all_warnings=False,
        nthreads=CORES,
    ),
    options={"build_ext": {"parallel": CORES}},
)
