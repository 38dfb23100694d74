"""What a figure was measured on: kernel, processor, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import graylb
from benchmarks import programs

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("uvloop", "httptools", "google-re2", "cython")


def commit_of(repository: Path) -> tuple[str, bool]:
    """Commit and whether tracked files differ from it; ("unknown", True) outside of git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(repository), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return "unknown", True
    return commit, bool(changes)


def key_value(text: str, key: str) -> str | None:
    """The first `key : value` of a /proc text."""
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.*\S)", text, re.MULTILINE)
    return found.group(1) if found else None


def library_versions() -> Mapping[str, str]:
    """Of the installed ones; graylb's own comes from the checkout that is measured."""
    found = {"graylb": graylb.__version__}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment(names: tuple[str, ...]) -> dict[str, Any]:
    """The stamp of one run. `names`: the programs whose versions belong in it; a missing one raises BenchError."""
    commit, dirty = commit_of(REPOSITORY)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": key_value(Path("/proc/cpuinfo").read_text(), "model name") or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory": key_value(Path("/proc/meminfo").read_text(), "MemTotal") or "unknown",
        "python": platform.python_version(),
        "libraries": library_versions(),
        "versions": {name: programs.version_of(name) for name in names},
        "load_average": os.getloadavg()[0],  # before the run: others at work on the machine
    }
