"""What went wrong in this process and was lived through, counted: the alarms of status and metrics."""

from __future__ import annotations

from collections import Counter
from errno import EDQUOT, EFBIG, EIO, EMFILE, ENFILE, ENOSPC, EROFS
from typing import Final

ALARMS: Final = {
    "worker_respawns": "workers that died, or were ended because they hung, and were replaced",
    "worker_hung": "workers that did nothing any more and were ended by the watchdog",
    "store_errors": "writes of files that failed: state, last good configuration, ports file",
    "descriptors_exhausted": "times that the control process was out of descriptors",
    "control_stalls": "times that the control process stood still for more than a second",
    "control_errors": "parts of the control process that failed and were begun anew",
    "clock_jumps": "jumps of the wall clock by more than a second",
}
"""Names, as `graylb_NAME_total` in metrics, and what each counts."""

_counts: Counter[str] = Counter()


def count(name: str) -> None:
    """Raises KeyError for a name that is none."""
    ALARMS[name]
    _counts[name] += 1


def note(error: OSError) -> None:
    """Counts an error of the system under what it is a sign of, if it is one."""
    if error.errno in (EMFILE, ENFILE):
        count("descriptors_exhausted")
    elif error.errno in (ENOSPC, EDQUOT, EFBIG, EROFS, EIO):
        count("store_errors")


def told() -> dict[str, int]:
    """Every alarm, by its name, since this process began."""
    return {name: _counts[name] for name in ALARMS}
