"""Snapshots of documents, completed as the store completes them that has no past."""

from __future__ import annotations

import json

from graylb.model.build import SplitId, build, split_requests
from graylb.model.documents import Document
from graylb.model.snapshot import Snapshot, Split
from graylb.release import slots


def snapshot_of(document: Document, revision: int = 1) -> Snapshot:
    splits: dict[SplitId, Split] = {}
    for at, asked in split_requests(document).items():
        weights = dict(asked.weights)
        salt = asked.salt or slots.default_salt("/".join(filter(None, at)), None, weights, None)
        owners = asked.slots or str(slots.allocate(None, weights, asked.stable))
        splits[at] = Split(asked.weights, salt, owners)
    return build(document, splits, revision)


def pretty(snapshot: Snapshot) -> str:
    return json.dumps(json.loads(snapshot.to_bytes()), indent=2, ensure_ascii=False) + "\n"
