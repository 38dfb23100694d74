"""A store that is slow and obvious, and what people may do to any store: for tests that let two stores agree."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Self

from hypothesis import strategies as st

from graylb.control import operations
from graylb.control.config_store import ConfigStore, ConfigStoreError, Conflict, Edit, Item, Record, View
from graylb.control.state import UnknownTarget
from graylb.model import documents
from graylb.model.problems import ConfigError, ConfigErrors
from tests.control.parts import Data, document, users


class Copies:
    """The slow and obvious store: a copy of all keys for each revision. It begins as another store is.

    keeps_services: as a document does, whatever is deleted.
    """

    keeps_services = True

    def __init__(self, view: View) -> None:
        self.revision = view.revision
        self.items = dict(view.items)
        self.records: list[Record] = []
        self.changed: dict[str, int] = {}
        self._record(Edit({}, 0, "file", "", "file"), {}, self.items)

    @property
    def name(self) -> str:
        return "a dictionary"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read(self) -> View:
        return View(self.revision, dict(self.items), ordered=True)

    async def write(self, edit: Edit) -> int:
        services = {key.split("/")[1] for key in edit.items}
        texts = {key: json.loads(value) if value is not None else None for key, value in edit.items.items()}
        now = {key: json.loads(item.value) for key, item in self.items.items()}
        if edit.to is None and all(now.get(key) == text for key, text in texts.items()):
            return edit.based_on
        for service in services:
            if edit.based_on > self.revision or self.changed.get(service, 0) > edit.based_on:
                raise Conflict("somebody else was faster")
        after = dict(self.items)
        for key, value in edit.items.items():
            if key.endswith("/service") and value is None and self.keeps_services:
                after[key] = Item(b"{}", self.revision + 1)
            elif value is None:
                after.pop(key, None)
            else:
                after[key] = Item(value, self.revision + 1)
        for service in services:
            own = after.get(f"services/{service}/service", Item(b"{}", 0)).value
            if f"services/{service}/split" not in after and b"stable" not in own:
                raise ConfigErrors([ConfigError("", 1, 1, "", message="no stable version")])
        before, self.items = self.items, after
        self.revision += 1
        self._record(edit, before, after)
        return self.revision

    async def check(self, edit: Edit) -> None:
        await copy.deepcopy(self).write(edit)

    async def history(self, service: str | None = None) -> tuple[Record, ...]:
        found = [each for each in self.records if service in (None, each.service)]
        return tuple(reversed(found))

    async def nodes(self) -> tuple[dict[str, Any], ...]:
        return ()

    def _record(self, edit: Edit, before: Mapping[str, Item], after: Mapping[str, Item]) -> None:
        for service in sorted({key.split("/")[1] for key in (*before, *after)}):
            own = [key for key in {**before, **after} if key.startswith(f"services/{service}/")]
            was = {key: before[key].value if key in before else None for key in own}
            now = {key: after[key].value if key in after else None for key in own}
            differing = [key for key in own if was[key] != now[key] and "/instances/" not in key]
            if differing or any(key.startswith(f"services/{service}/") for key in edit.items):
                self.records.append(
                    Record(
                        service,
                        self.revision,
                        self.changed.get(service, 0),
                        "",
                        edit.who,
                        edit.why,
                        edit.action,
                        {key: was[key] for key in differing},
                        {key: now[key] for key in differing},
                        edit.to,
                    )
                )
                self.changed[service] = self.revision


def rule(value: str) -> Data:
    """As the file store writes it out; and so `ab`."""
    return {"match": {"headers": {"group": {"exact": value}}}, "to": {"version": "v2"}}


def ab(share: int) -> Data:
    return {"match": {"query": {"exp": {"exact": "a"}}}, "split": {"v1": 100 - share, "v2": share}}


def alone(services: Data) -> documents.Document:
    return documents.load(json.dumps({"services": services}), "test", alone=True)


shares = st.sampled_from([1, 5, 20, 50, 80])
names = st.sampled_from(["users", "orders"])
rules = st.one_of(st.builds(rule, st.sampled_from("xy")), st.builds(ab, shares))
partial = st.fixed_dictionaries(
    {},
    optional={
        "stable": st.sampled_from(["v1", "v2"]),
        "fallback": st.sampled_from(["strict", "any"]),
        "split": st.builds(lambda share: {"v1": 100 - share, "v2": share}, shares),
        "rules": st.lists(st.tuples(st.sampled_from("abc"), rules), unique_by=lambda pair: pair[0]).map(
            lambda pairs: [{"name": name, **each} for name, each in sorted(pairs, key=lambda pair: pair[0])]
        ),
    },
)
Step = tuple[Any, ...]
steps = st.lists(
    st.tuples(
        st.one_of(
            st.tuples(st.just("split"), names, shares),
            st.tuples(st.just("rollback"), names, st.none() | st.integers(0, 12)),
            st.tuples(st.just("put"), names, st.sampled_from("abc"), st.none() | rules),
            st.tuples(st.just("weights"), names, st.none() | shares),
            st.tuples(st.just("settings"), names, st.sampled_from(["v1", "v2", None])),
            st.tuples(st.just("apply"), st.dictionaries(names, partial, min_size=1), st.booleans()),
        ),
        st.none() | st.none() | st.integers(-3, 1),
    ),
    max_size=8,
)


async def dry_run(store: ConfigStore, document: documents.Document, prune: bool, more: Any) -> list[str] | str:
    """What `apply` says that it would write, or why it could not. It must have written nothing."""
    before = await store.read()
    try:
        found = await operations.apply(store, document, prune=prune, dry_run=True, **more)
    except (ConfigStoreError, ConfigErrors) as error:
        return str(error)
    finally:
        assert (await store.read()).items == before.items
    return [each.service for each in found]


async def done(store: ConfigStore, step: Step, expected: int | None) -> Any:
    """What became of it: the kind of the error, or the outcomes."""
    more: Any = {"who": "ann", "expected": expected}
    dry: list[str] | str | None = None
    failed: Exception
    try:
        match step:
            case ("split", service, share):
                outcomes = [await operations.set_split(store, service, {"v1": 100 - share, "v2": share}, **more)]
            case ("rollback", service, to):
                outcomes = [await operations.rollback(store, service, to=to, **more)]
            case ("put", service, name, value):
                text = None if value is None else json.dumps(value).encode()
                outcomes = [await operations.put(store, {f"services/{service}/rules/{name}": text}, **more)]
            case ("weights", service, share):
                text = None if share is None else json.dumps({"v1": 100 - share, "v2": share}).encode()
                outcomes = [await operations.put(store, {f"services/{service}/split": text}, **more)]
            case ("settings", service, stable):
                text = json.dumps({"hosts": [service], **({"stable": stable} if stable else {})}).encode()
                outcomes = [await operations.put(store, {f"services/{service}/service": text}, **more)]
            case ("apply", services, prune):
                services = {
                    name: {"hosts": [name], **each} if prune or {"stable", "fallback"} & each.keys() else each
                    for name, each in services.items()
                }
                dry = await dry_run(store, alone(services), prune, more)
                outcomes = await operations.apply(store, alone(services), prune=prune, **more)
                assert dry == [each.service for each in outcomes]
            case _:
                raise AssertionError(step)
    except (UnknownTarget, ConfigStoreError, ConfigErrors) as error:
        failed = error
    else:
        return outcomes
    assert dry in (None, str(failed))
    return Conflict if isinstance(failed, Conflict) else type(failed)


def told(outcomes: Any) -> Any:
    """As far as two stores that count differently can agree."""
    if not isinstance(outcomes, list):
        return outcomes
    return [(each.service, each.before, each.after, sorted(each.keys)) for each in outcomes]


def content(view: View) -> dict[str, Any]:
    return {key: json.loads(item.value) for key, item in view.items.items()}


def two_services() -> Data:
    return document(users=users(hosts=["users"]), orders=users(hosts=["orders"], split={"v1": 1}))
