"""Golden files: what the code under test is expected to give, kept beside the tests and read in review.

GRAYLB_GOLDEN=1 in the environment writes them anew before they are compared.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent / "golden"
REGENERATE = bool(os.environ.get("GRAYLB_GOLDEN"))
SEPARATOR = "\n" + "-" * 120 + "\n"


def check(name: str, text: str) -> None:
    """The file of that name holds just this text."""
    if REGENERATE:
        (HERE / name).write_text(text, encoding="utf-8")
    assert (HERE / name).read_text(encoding="utf-8") == text


def inputs(suffix: str) -> dict[str, str]:
    """What stands before the separator in each golden file of that suffix, by the file's name."""
    files = sorted(HERE.glob(f"*{suffix}"))
    return {file.name: file.read_text(encoding="utf-8").partition(SEPARATOR)[0] for file in files}
