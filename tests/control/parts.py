"""Documents for the tests of the control plane and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import yaml

from graylb.model import documents

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
