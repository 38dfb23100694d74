"""Keys without a server: what a source would give, as tests write it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from graylb.control.assembly import Base, base_of
from graylb.control.layers import Layers
from graylb.control.prepare import Applied
from graylb.control.sources import Fragment, Update
from graylb.control.state import State
from graylb.model import documents
from graylb.model.problems import ConfigErrors
from graylb.model.snapshot import Service
from graylb.release.slots import allocate

HEAD = {"listeners": [{"address": "127.0.0.1:0"}], "etcd": {}}


def split(weights: dict[str, float], salt: str = "s") -> dict[str, Any]:
    """A complete one."""
    return {"weights": weights, "salt": salt, "slots": str(allocate(None, weights))}


def instance(number: int, version: str = "v1", **more: Any) -> dict[str, Any]:
    return {"address": f"10.0.0.{number}:80", "version": version, **more}


class Source:
    """A store of keys with revisions, and the layers that follow it."""

    def __init__(self, document: dict[str, Any] | None = None) -> None:
        self.layers = Layers("/graylb/")
        self.revision = 1
        self.keys: dict[str, Fragment] = {}
        self.applied: Applied | None = None
        self.base = self.read(document or {})

    def read(self, document: dict[str, Any]) -> Base:
        return base_of(documents.load(orjson.dumps({**HEAD, **document}), "graylb.yaml"), {}, "graylb.yaml")

    def put(self, **values: Any) -> Applied:
        """In one revision: `users__split` stands for users/split; None deletes, bytes are put as they are."""
        return self.change({name.replace("__", "/"): value for name, value in values.items()})

    def change(self, values: dict[str, Any]) -> Applied:
        self.revision += 1
        changes: dict[str, Fragment | None] = {}
        for name, value in values.items():
            key = f"services/{name}"
            text = value if isinstance(value, bytes) else orjson.dumps(value)
            changes[key] = None if value is None else Fragment(key, text, self.revision)
        for key, each in changes.items():
            if each is None:
                self.keys.pop(key, None)
            else:
                self.keys[key] = each
        return self.take(Update(self.revision, changes))

    def list(self, *, revision: int | None = None) -> Applied:
        """Everything anew, as after a compaction."""
        return self.take(Update(revision or self.revision, dict(self.keys), whole=True))

    def take(self, *updates: Update) -> Applied:
        """All of them in one look."""

        async def offered() -> Update | None:
            for update in updates:
                self.layers.offer(update)
            return self.layers.collect()

        return self.look(asyncio.run(offered()))

    def look(self, update: Update | None = None, base: Base | None = None) -> Applied:
        base = base or self.base
        self.applied = self.layers.apply(update, base.document, base, State(), self.applied)
        self.base = base
        return self.applied

    def edit(self, document: dict[str, Any]) -> list[str]:
        """Another document; why it is refused."""
        try:
            self.look(base=self.read(document))
        except ConfigErrors as errors:
            return list(map(str, errors.errors))
        return []

    def service(self, name: str = "users") -> Service:
        assert self.applied is not None
        return next(each for each in self.applied.snapshot.services if each.name == name)

    @property
    def services(self) -> list[str]:
        assert self.applied is not None
        return [each.name for each in self.applied.snapshot.services]

    @property
    def errors(self) -> list[str]:
        return [str(each["text"]) for each in self.layers.report.errors("/graylb/")]
