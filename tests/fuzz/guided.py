"""`python -m tests.fuzz.guided TARGET [options of libFuzzer]`: follows coverage; needs a build with GRAYLB_BUILD=fuzz.

`make fuzz` runs every target. The corpus grows in build/corpus/TARGET, an input that fails is left in build/ as
crash-TARGET-…, and `python -m tests.fuzz.guided TARGET FILE` runs it again. From an empty corpus, `-seed=N -runs=N`
tries the same inputs each time.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

from tests.fuzz.targets import SPLICES, TARGETS

BUILD = Path(__file__).resolve().parents[2] / "build"
LONGEST = 4096


def seeds(name: str) -> Path:
    """The corpus' folder, with the target's own inputs in it."""
    folder = BUILD / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in TARGETS[name].corpus():
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return folder


def words() -> Path:
    """What mutation is to put in, in the form that libFuzzer reads."""
    path = BUILD / "corpus" / "words.txt"
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in SPLICES if len(word) < 64]
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"python -m tests.fuzz.guided TARGET [options of libFuzzer]; targets: {', '.join(TARGETS)}")
    name, *options = sys.argv[1:]
    arguments = [sys.argv[0], *options]
    if all(option.startswith("-") for option in options):
        folder = seeds(name)
        longest = max(LONGEST, *(path.stat().st_size for path in folder.iterdir()))
        arguments += [
            str(folder), f"-dict={words()}", f"-artifact_prefix={BUILD}/crash-{name}-", f"-max_len={longest}",
            "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1",
        ]  # fmt: skip
    atheris.Setup(arguments, TARGETS[name].run, enable_python_coverage=False)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
