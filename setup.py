"""Builds the Cython hot path.

Flavours by the environment variable GRAYLB_BUILD:
  release (default)  optimised, unchecked
  debug              -O0, bounds checks
  asan               address and undefined-behaviour sanitizers
  fuzz               the same by clang, instrumented for libFuzzer (tests/fuzz/guided.py)
  cov                line tracing for coverage
Generated C stays in build/, never beside the sources and never in a wheel.
"""

import os

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

extensions = [
    Extension(
        f"graylb.{name}",
        [f"graylb/{name}.pyx"],
        extra_compile_args=["-Wall", "-Wno-unused-function", "-Wno-unused-but-set-variable", *cflags],
        extra_link_args=ldflags,
        define_macros=macros,
    )
    for name in ("_http1", "_fast", "_link", "_gate", "_proxy", "_live", "_sockets", "_pools", "_engine")
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives=directives,
        build_dir=f"build/cython-{FLAVOUR}",
        annotate=True,
        show_all_warnings=False,
    )
)
