"""A short run of every fuzz target, and that the harness finds what it should."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import fuzz


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_short_run(name: str) -> None:
    tried, failed = fuzz(name, 0.3, seed=random.SystemRandom().randrange(1 << 30))
    assert failed is None, failed
    assert tried >= len(targets.TARGETS[name].corpus())


def test_a_failure_is_found_and_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(data: bytes) -> None:
        assert b"\0" not in data, "a NUL"

    monkeypatch.setitem(targets.TARGETS, "fragile", targets.Fuzzed(fragile, lambda: [b"abc", b"def"]))
    _, failed = fuzz("fragile", 10, seed=1)
    assert failed is not None
    assert b"\0" in failed
