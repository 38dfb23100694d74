"""Worker processes before they are anybody: started with one end of a channel, and waiting for a role.

Light, for `graylb run` starts the first of them before it loads anything else: on a second core that costs no time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import graylb

MODULE: Final = "graylb.proxy.worker"
EARLY: Final = 2
"""Started before it is known how many are wanted: a worker and the spare one, or two workers."""

_PASSED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG")
_PASSED_PREFIXES = ("LC_", "PYTHON", "LD_", "ASAN_", "LSAN_", "UBSAN_", "GRAYLB_", "COVERAGE_", "COV_")


class Spawned:
    """A process and our end of its channel."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.process, self.channel = process, channel

    def end(self) -> None:
        """It is not wanted. Returns when it is gone."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


def spawn(module: str = MODULE) -> Spawned:
    """In the main thread only, for a worker dies with the thread that started it. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # a session of its own: Ctrl-C reaches the supervisor only, which drains the workers
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, "--channel", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=worker_environment(os.environ),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    return Spawned(process, ours)


def spawn_early(workers: int | None) -> list[Spawned]:
    """As many as are surely wanted. What cannot be started will be told by who needs it."""
    found: list[Spawned] = []
    with contextlib.suppress(OSError):
        while len(found) < min(EARLY, workers or len(os.sched_getaffinity(0))):
            found.append(spawn())
    return found


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Of that what an interpreter needs, and the place of this very package."""
    kept = {k: v for k, v in environment.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
    kept.pop("GRAYLB_HANDOVER", None)  # of descriptors that it does not have
    root = str(Path(graylb.__file__).resolve().parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))
    return kept
