"""Loads that take turns: who runs when, what generators are told, and what ends a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from benchmarks.failure import BenchError
from benchmarks.load import turns
from benchmarks.load.peers import Peer
from benchmarks.load.stage import Cores
from benchmarks.load.turns import Load, Told, take_turns

CORES = Cores(frozenset(os.sched_getaffinity(0)), frozenset(os.sched_getaffinity(0)))
UP = {name: Peer(name, number, os.getpid()) for number, name in enumerate(("one", "two", "three"))}


class Machine:
    """A clock that only sleeping moves, and generators that run on it, by the names of their proxies."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: dict[str, bool] = {}
        self.turns: list[list[str]] = []
        """Who ran in each sleep."""

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.turns.append([name for name, runs in self.runs.items() if runs])

    def spawn(self, command: Sequence[str], _: frozenset[int]) -> Generator:
        self.runs[command[0]] = True
        return Generator(self, command[0])


class Generator:
    """What take_turns asks of a process. The one of "early" has ended after its first turn."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def send_signal(self, number: signal.Signals) -> None:
        self.machine.runs[self.name] = {signal.SIGSTOP: False, signal.SIGCONT: True}[number]

    def poll(self) -> int | None:
        return 1 if self.name == "early" and [self.name] in self.machine.turns else None

    def kill(self) -> None:
        del self.machine.runs[self.name]

    def communicate(self) -> tuple[str, str]:
        return "", ""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(turns, "time", made)
    monkeypatch.setattr(turns, "spawn", made.spawn)
    return made


def load(finish: Callable[[subprocess.Popen[str], int, str], Told]) -> Load:
    return Load("case", lambda peer, seconds: [peer.name, str(seconds)], finish, under_way=1)


def test_one_runs_at_a_time_and_all_as_long(machine: Machine) -> None:
    asked: list[tuple[int, str]] = []

    def finish(_: object, seconds: int, what: str) -> Told:
        assert machine.runs == dict.fromkeys(UP, True)  # whoever is stopped would never end
        asked.append((seconds, what))
        return Told(100)

    taken = take_turns(load(finish), UP, CORES, 2, "round 1")
    rounds, rest = divmod(len(machine.turns), len(UP))
    assert machine.turns == [["one"], ["two"], ["three"]] * rounds
    assert rest == 0
    assert 1.8 < rounds * turns.TURN <= 2.0  # what is left of its seconds each has when all go on to their ends
    assert asked == [(6, f"round 1, {name}") for name in UP]
    assert taken.found == dict.fromkeys(UP, Told(100))
    assert machine.runs == {}


def test_a_load_that_ends_early_fails_the_round_and_ends_the_others(machine: Machine) -> None:
    up = {name: Peer(name, 1, os.getpid()) for name in ("one", "early")}
    with pytest.raises(BenchError, match="x, early: the load ended early"):
        take_turns(load(lambda *_: Told(1)), up, CORES, 2, "x")
    assert "one" not in machine.runs


def test_generators_for_real_run_for_the_seconds_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says what it was told, once it was stopped and runs again and nobody writes to it any more."""
    monkeypatch.setattr(turns, "TURN", 1.0)  # so they go on to their ends at once
    up = {name: UP[name] for name in ("one", "two")}
    program = "import sys; sys.stdin.read(); print(sys.argv[1])"
    started: list[subprocess.Popen[str]] = []

    def spawn(command: Sequence[str], _: frozenset[int]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    def finish(process: subprocess.Popen[str], seconds: int, what: str) -> Told:
        output, _ = process.communicate(timeout=60)
        assert output == f"{seconds}\n"
        return Told(int(output))

    monkeypatch.setattr(turns, "spawn", spawn)
    real = Load("case", lambda _, seconds: [sys.executable, "-c", program, str(seconds)], finish, under_way=0)
    taken = take_turns(real, up, CORES, 1, "x")
    assert taken.found == {"one": Told(2), "two": Told(2)}
    assert [each.returncode for each in started] == [0, 0]


def test_the_line_of_a_run_tells_a_median_only_where_there_is_one() -> None:
    run = turns.Run(1, "case", "peer", 10, 1.0, 10.0, None, 5.0, 0.5, 1, 1, 1, 0.05, 0.0)
    assert "p50" not in turns.line(run)
    assert turns.line(replace(run, p50_us=77)).endswith("p50 77 us")
