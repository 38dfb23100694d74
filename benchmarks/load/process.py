"""Processes of a benchmark: pinned to cores, watched as a tree, stopped for sure."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failure import BenchError


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB, summed over a tree. `pss` shares pages fairly among their users; it is None where the kernel hides it."""

    rss: int
    pss: int | None


def parent_of(stat: str) -> int:
    """The parent's number in a /proc/PID/stat text, whose second field may hold blanks and parentheses."""
    return int(stat.rpartition(")")[2].split()[1])


def tree(root: int) -> tuple[int, ...]:
    """`root` and all that descend from it, sorted."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(parent_of((entry / "stat").read_text()), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, ()))
    return tuple(sorted(found))


def run_nanoseconds(schedstat: str) -> int:
    """Time on a processor, the first field of a schedstat text; far finer than the 10 ms ticks of stat."""
    return int(schedstat.split()[0])


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of all threads. Raises BenchError where the kernel keeps no schedstat or a process is gone."""
    total = 0
    for pid in pids:
        try:
            total += sum(
                run_nanoseconds((task / "schedstat").read_text()) for task in Path(f"/proc/{pid}/task").iterdir()
            )
        except (FileNotFoundError, ProcessLookupError) as error:
            raise BenchError(f"process {pid}: no processor time: {error.strerror}") from error
    return total / 1e9


def smaps_field(text: str, key: str) -> int:
    """KiB of one line of a smaps_rollup text."""
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise BenchError(f"smaps_rollup has no {key}")


def memory(pids: Iterable[int]) -> Memory:
    texts = []
    for pid in pids:
        try:
            texts.append(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:  # another user's process, and we are not root
            status = [Path(f"/proc/{each}/status").read_text() for each in pids]
            return Memory(sum(smaps_field(text, "VmRSS") for text in status), None)
    return Memory(sum(smaps_field(text, "Rss") for text in texts), sum(smaps_field(text, "Pss") for text in texts))


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str], what: str, seconds: float = 15.0) -> None:
    """Polls; raises BenchError when the process ends or time is up."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise BenchError(f"{what} ended at start with status {process.returncode}")
        if time.monotonic() > deadline:
            raise BenchError(f"{what} was not ready within {seconds:.0f} s")
        time.sleep(0.02)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    cores: frozenset[int],
    log: Path,
    *,
    tells: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process pinned, with all that it starts, to `cores`; leaving the block ends it.

    Raises BenchError if it ended otherwise than asked to. What it says goes to `log`, whose end is shown if the block
    fails; with `tells` its standard output is for the caller to read; `variables` add to its environment.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if tells else errors,
            stderr=errors,
            text=True,
            env=None if variables is None else {**os.environ, **variables},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            start_new_session=True,  # Ctrl-C reaches us alone, and we end everyone in order
        )
    try:
        try:
            yield process
        finally:
            stop(process)
        if process.returncode not in (0, -signal.SIGTERM):
            raise BenchError(f"{name} ended with status {process.returncode}")
    except BenchError as error:
        said = log.read_text(errors="replace")[-600:].strip()
        if said:
            error.add_note(f"--- {name} said:\n{said}")
        raise


def stop(process: subprocess.Popen[str]) -> None:
    """Asks, then insists. The session is the process's own, so whatever it left behind goes with it."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def pin(pid: int, cores: frozenset[int]) -> None:
    """All threads of a process that runs already, and so those that they will start."""
    for _ in range(2):  # one may have been started meanwhile by a thread that was not reached yet
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)


def check_pinned(pids: Iterable[int], cores: frozenset[int], name: str) -> None:
    """Raises BenchError if any thread of the tree may run elsewhere."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            allowed = os.sched_getaffinity(int(task.name))
            if allowed != cores:
                raise BenchError(f"{name}: thread {task.name} may run on cores {sorted(allowed)}, not {sorted(cores)}")


def idle_shares(trees: Mapping[str, Iterable[int]], seconds: float) -> dict[str, float]:
    """The part of a core that each tree uses, over so many seconds."""
    before = {name: cpu_seconds(pids) for name, pids in trees.items()}
    time.sleep(seconds)
    return {name: (cpu_seconds(pids) - before[name]) / seconds for name, pids in trees.items()}


def check_idle(
    trees: Mapping[str, Iterable[int]], seconds: float = 0.5, most: float = 0.05, patience: float = 20.0
) -> None:
    """Raises BenchError for a tree that, after `patience` seconds still, uses more than `most` of a core with nothing
    to do: all share one core, so what one burns while another is measured makes the other's figures worthless."""
    deadline = time.monotonic() + patience
    while True:
        shares = idle_shares(trees, seconds)
        if max(shares.values()) <= most:
            return
        if time.monotonic() > deadline:
            name, share = max(shares.items(), key=lambda item: item[1])
            raise BenchError(f"{name} uses {share:.0%} of a core while it has nothing to do, expected below {most:.0%}")
