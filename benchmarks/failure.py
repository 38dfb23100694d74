"""The one way a benchmark ends early."""

from __future__ import annotations

import os
import shutil


class BenchError(Exception):
    """A run that must not produce figures. The text says what, where and what was expected."""


def find_tool(name: str, package: str) -> str:
    """The path of a program, or BenchError naming the Debian package that holds it."""
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=f"{path}:/usr/sbin:/sbin")  # nginx and haproxy live in sbin
    if found is None:
        raise BenchError(f"{name} is not installed; on Debian: apt-get install {package}")
    return found
