"""The micro benchmark: every operation in every round, order rotated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import stamp
from benchmarks.failure import BenchError
from benchmarks.stats import rotated, spread

GROUPS = ("match", "pick", "sticky", "heads")


@dataclass(frozen=True, slots=True)
class Operation:
    """`time(n)` does the operation n times and returns nanoseconds for one."""

    name: str
    time: Callable[[int], float]
    n: int


@dataclass(frozen=True, slots=True)
class Growth:
    """A law: the large operation costs less than `below` times the small one."""

    small: str
    large: str
    below: float


LAWS = (
    Growth("match, hit, 10 rules", "match, hit, 10,000 rules", 1.2),
    Growth("match, miss, 10 rules", "match, miss, 10,000 rules", 1.2),
    Growth("pick, 2 instances", "pick, 100,000 instances", 2.0),
)


def wanted(only: Sequence[str] | None) -> list[str]:
    """The groups that `--only` leaves."""
    return [group for group in GROUPS if only is None or group in only]


def build(groups: Sequence[str]) -> list[Operation]:
    """The operations of these groups. Raises BenchError when graylb's compiled modules are missing."""
    try:
        from benchmarks.micro import operations
    except ImportError as error:
        raise BenchError(f"graylb is not built in place ({error}); expected after: make build") from error
    makers = {
        "match": operations.matches,
        "pick": operations.picks,
        "sticky": operations.sticky,
        "heads": operations.heads,
    }
    return [Operation(*each) for group in groups for each in makers[group]()]


def measure(operations: Sequence[Operation], rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """`rounds` rows for each operation: {"round", "operation", "ns"}. Raises BenchError for a figure that is none."""
    for each in operations:
        each.time(max(1, each.n // 10))  # warm caches and branch predictors alike
    rows: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        turn = rotated(operations, number)
        rows.extend({"round": number, "operation": each.name, "ns": each.time(each.n)} for each in turn)
    for each in operations:
        found = spread([row["ns"] for row in rows if row["operation"] == each.name], each.name)
        tell(f"{each.name:32} {found.median:8.1f} ns  ({found.low:.1f}–{found.high:.1f})")
    return rows


def run(groups: Sequence[str], count: int) -> dict[str, Any]:
    """`count` rounds: the raw result, ready for JSON. Raises BenchError."""
    environment = stamp.environment(())
    operations = build(groups)
    rows = measure(operations, count, lambda text: print(text, flush=True))
    names = [each.name for each in operations]
    laws = [asdict(law) for law in LAWS if law.small in names and law.large in names]
    return {
        "kind": "micro",
        "stamp": environment,
        "settings": {"rounds": count, "operations": names, "growth": laws},
        "runs": rows,
    }
