"""Documents for the tests of the control plane and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import yaml

from graylb.control import contents, state
from graylb.control.state import State
from graylb.model import build, documents, keys

Data = dict[str, Any]


def users(**more: Any) -> Data:
    """A service of three versions on a 95:5 split; what is None is left out."""
    instances = [{"address": f"127.0.0.1:900{n}", "version": f"v{n}"} for n in (1, 2, 3)]
    split = {"v1": 95, "v2": 5}
    service = {"sticky": [{"header": "x-user-id"}], "stable": "v1", "split": split, "instances": instances, **more}
    return {key: value for key, value in service.items() if value is not None}


def document(**services: Data) -> Data:
    """A document on free ports; without services it has `users`."""
    return {
        "listeners": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "services": services or {"users": users()},
    }


def load(data: Data) -> documents.Document:
    return documents.load(orjson.dumps(data), "test")


def write(folder: Path, data: Data | str, name: str = "graylb.yaml") -> Path:
    """Writes a document in one step, as editors do."""
    path, fresh = folder / name, folder / (name + ".new")
    fresh.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    fresh.replace(path)
    return path


def with_split(before: State, weights: dict[str, float], at: str, who: str, why: str) -> State:
    """The state after a command gave `users` these weights, as the file store does it."""
    content = state.content_of(before, "users")
    pairs = tuple(state.positive(weights).items())
    request = build.SplitRequest("users", None, pairs, None, None, content.stable)
    made = state.complete_split(request, content.splits.get(state.SERVICE_SPLIT))
    settings = {key: each for key, each in content.part.items() if key not in keys.OWN_KEYS}
    items: dict[str, bytes | None] = {
        "services/users/service": orjson.dumps({**settings, "stable": content.stable}),
        "services/users/split": orjson.dumps({"weights": weights, "salt": made.salt, "slots": made.slots}),
    }
    new = contents.with_keys("users", content, items)
    return state.change(before, {"users": new}, action="split", at=at, who=who, why=why)
