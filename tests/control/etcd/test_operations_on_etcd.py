"""Operations on etcd and on a dictionary with copies: whatever happens, both say the same."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graylb.control import operations
from graylb.control.config_store import Conflict, View
from graylb.model.problems import ConfigErrors
from tests.control.copies import Copies, Step, alone, content, done, steps, told, two_services
from tests.control.etcd.servers import Cluster
from tests.control.etcd.support import run
from tests.control.etcd.worlds import opened

COUNT = itertools.count()


class Unordered(Copies):
    """Rules by name, and settings that may go."""

    keeps_services = False

    async def read(self) -> View:
        return View(self.revision, dict(sorted(self.items.items())))


def at(step: Step, marks: list[int]) -> Step:
    """The step with a revision of the store for the number of a change."""
    if step[0] == "rollback" and step[2] is not None:
        return *step[:2], marks[min(step[2], len(marks) - 1)]
    return step


def kind(outcomes: Any) -> Any:
    return None if isinstance(outcomes, list) else outcomes


@settings(
    max_examples=6,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(todo=steps, ago=st.lists(st.none() | st.integers(-3, 0), min_size=8, max_size=8))
def test_etcd_is_a_dictionary_with_copies(etcd: Cluster, todo: list[tuple[Step, Any]], ago: list[int | None]) -> None:
    async def test(folder: Path) -> None:
        async with opened(etcd, folder, f"/copies-{next(COUNT)}") as world:
            begun = await operations.apply(world.store, alone(two_services()["services"]), who="ann")
            copies = Unordered(await world.store.read())
            marks = [begun[0].revision], [copies.revision]
            for (step, _), back in zip(todo, ago, strict=False):
                outcomes: list[Any] = []
                for store, own in zip((world.store, copies), marks, strict=True):
                    expected = None if back is None else own[max(0, len(own) - 1 + back)]
                    outcomes.append(await done(store, at(step, own), expected))
                    if isinstance(outcomes[-1], list) and any(each.keys for each in outcomes[-1]):
                        own.append(outcomes[-1][0].revision)
                if back is not None and set(map(kind, outcomes)) == {Conflict, ConfigErrors}:
                    continue  # it is both, and either may be told
                assert told(outcomes[0]) == told(outcomes[1]), (step, back)
                assert content(await world.store.read()) == content(await copies.read()), step
            histories = [await operations.history(store) for store in (world.store, copies)]
            words = [[(each["service"], each["former"], each["split"]) for each in found] for found in histories]
            assert sorted(words[0]) == sorted(words[1])

    with tempfile.TemporaryDirectory() as folder:
        run(test(Path(folder)))
