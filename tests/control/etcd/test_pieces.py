"""Work in pieces: all of it, in order, with others served in between."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.control.etcd import pieces
from graylb.control.etcd.pieces import in_pieces


def work(seconds: float) -> float:
    """Busy for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


@given(st.lists(st.integers(), max_size=200))
def test_all_is_made_in_order(items: list[int]) -> None:
    assert asyncio.run(in_pieces(str, items)) == list(map(str, items))


def test_others_have_their_turn_again_and_again_in_long_work() -> None:
    async def both() -> int:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        await in_pieces(work, [pieces.STRETCH] * 10)
        task.cancel()
        return turns

    assert asyncio.run(both()) >= 10


def test_what_is_done_in_no_time_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: float) -> None:
        raise AssertionError("a pause")

    monkeypatch.setattr(pieces, "STRETCH", 60.0)
    monkeypatch.setattr(asyncio, "sleep", never)
    assert asyncio.run(in_pieces(str, [1, 2, 3])) == ["1", "2", "3"]
