"""The store of a document: its state file, or the etcd that it names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from graylb.control import prepare
from graylb.control.config_store import ConfigStore, NotHere
from graylb.control.file_config import FileConfigStore
from graylb.control.store import Store
from graylb.model.problems import ConfigErrors

if TYPE_CHECKING:
    from graylb.model import presets


def open_store(document: Path, state: Path, preset: presets.Name | None = None) -> ConfigStore:
    """To be entered, in a running loop. preset: what the proxy was told to fill in.

    Raises ValueError for settings of etcd that cannot be, ConfigErrors for a document that is not valid and names an
    etcd: which one, nobody can know. That of a store in files may be invalid; see `FileConfigStore`.
    """
    store = Store(state)
    try:
        part = prepare.read(document, preset).etcd
    except ConfigErrors:
        if _names_etcd(document):
            raise
        part = None
    if part is None:
        return FileConfigStore(document, store, preset)
    try:
        module = importlib.import_module("graylb.control.etcd_config")  # gRPC takes a moment to load
    except ModuleNotFoundError:
        raise NotHere(f"{document} keeps its services in etcd: change them there, with etcdctl") from None
    found: ConfigStore = module.EtcdConfigStore.opened(part, document, state, preset)
    return found


def _names_etcd(document: Path) -> bool:
    """As far as it can be read at all."""
    try:
        data = yaml.load(document.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return isinstance(data, dict) and "etcd" in data
    except (OSError, yaml.YAMLError, ValueError):
        return False
