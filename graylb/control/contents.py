"""A service's content in the state file as keys, and back: what makes the file store one of keys. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from graylb.control.config_store import Record
from graylb.control.splits import stored
from graylb.control.state import SERVICE_SPLIT, Content, ServiceState, StoredSplit
from graylb.model import keys
from graylb.model.base import Part
from graylb.model.services import Rule, SplitPart


def keys_of(service: str, content: Content) -> dict[str, bytes]:
    """Settings, split and rules, splits with salt and slots; rules in their order."""
    settings = {key: each for key, each in content.part.items() if key not in keys.OWN_KEYS}
    found = {keys.suffix_of(service, "service"): orjson.dumps(settings)}
    if "split" in content.part:
        full = _full(content.part["split"], content.splits.get(SERVICE_SPLIT))
        found[keys.suffix_of(service, "split")] = orjson.dumps(full)
    for rule in content.part.get("rules", ()):
        data = {key: each for key, each in rule.items() if key != "name"}
        if "split" in data:
            data["split"] = _full(data["split"], content.splits.get(rule["name"]))
        found[keys.suffix_of(service, "rules", rule["name"])] = orjson.dumps(data)
    return found


def with_keys(service: str, content: Content, items: Mapping[str, bytes | None]) -> Content:
    """The content after these keys of it were written; splits in them are complete. Others are not touched.

    A new rule goes behind the others; when all rules are written, they come to stand in the order of `items`.
    Raises ConfigErrors.
    """
    part, splits = dict(content.part), dict(content.splits)
    rules: dict[str, dict[str, Any]] = {rule["name"]: rule for rule in part.pop("rules", ())}
    written = []
    for key, value in items.items():
        _, kind, name = keys.split_key(key)
        entry = keys.decode(key, value) if value is not None else None
        if kind == "service":
            part = {own: each for own, each in part.items() if own in keys.OWN_KEYS}
            part |= plain(entry.value) if entry else {}
        elif kind == "split":
            part.pop("split", None)
            splits.pop(SERVICE_SPLIT, None)
            if entry:
                part["split"] = _bare(entry.value)
                splits[SERVICE_SPLIT] = stored(entry.value)
        elif kind == "rules":
            splits.pop(name, None)
            if entry:
                rules[name] = _rule(entry.value)
                written.append(name)
                if entry.split is not None:
                    splits[name] = stored(entry.split)
            else:
                rules.pop(name, None)
        else:
            raise ValueError(f"{key} is no part of a service's content")
    if len(written) == len(rules):
        rules = {name: rules[name] for name in written}
    if rules or "rules" in content.part:
        part["rules"] = list(rules.values())
    stable = part.get("stable") or (content.stable if SERVICE_SPLIT not in splits else "")
    weights = splits[SERVICE_SPLIT].weights if SERVICE_SPLIT in splits else {}
    return Content(part, stable or max(weights, key=lambda version: weights[version], default=content.stable), splits)


def records_of(service: str, state: ServiceState) -> Iterable[Record]:
    """Every change of a service in the state, newest first."""
    made: dict[str, dict[str, bytes]] = {}

    def items(digest: str | None) -> dict[str, bytes] | None:
        """None where the content is no longer kept."""
        if digest is None:
            return {}
        if digest not in made and digest in state.contents:
            made[digest] = keys_of(service, state.contents[digest])
        return made.get(digest)

    for number in reversed(range(len(state.changes))):
        change = state.changes[number]
        former = state.changes[number - 1] if number else None
        new, old = items(change.content), items(former.content if former else None)
        known = new is not None
        if new is None or old is None:  # the weights are kept for longer
            split = keys.suffix_of(service, "split")
            new = {split: orjson.dumps(change.weights)} if change.weights else {}
            old = {split: orjson.dumps(former.weights)} if former and former.weights else {}
        before, after = differences(service, old, new)
        yield Record(
            service,
            change.revision,
            former.revision if former else 0 if "new" in change.what else change.previous,
            change.at,
            change.who,
            change.why,
            change.action,
            before,
            after,
            change.to,
            known,
            change.what,
        )


def differences(
    service: str, old: Mapping[str, bytes], new: Mapping[str, bytes]
) -> tuple[dict[str, bytes | None], dict[str, bytes | None]]:
    """The keys that differ, as of `Record`: all rules where their names or their order do."""
    root = f"{keys.ROOT}{service}/rules/"
    rules = [[key for key in items if key.startswith(root)] for items in (old, new)]
    odd = {*rules[0], *rules[1]} if rules[0] != rules[1] else set()
    differing = [key for key in {**old, **new} if key in odd or old.get(key) != new.get(key)]
    before: dict[str, bytes | None] = {key: old[key] for key in old if key in differing}
    after: dict[str, bytes | None] = {key: new[key] for key in new if key in differing}
    return (
        before | {key: None for key in differing if key not in before},
        after | {key: None for key in differing if key not in after},
    )


def plain(part: Part) -> dict[str, Any]:
    """As `Document.to_data` has it."""
    data: dict[str, Any] = part.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return data


def _full(data: Mapping[str, Any], split: StoredSplit | None) -> dict[str, Any]:
    weights = data.get("weights", data)
    return {"weights": weights, "salt": split.salt, "slots": split.slots} if split else {"weights": weights}


def _bare(split: SplitPart) -> dict[str, Any]:
    """Salt and slots are kept beside it; written down here they would hold whatever the weights become."""
    return {"weights": dict(split.weights)}


def _rule(rule: Rule) -> dict[str, Any]:
    data = plain(rule)
    return {**data, "split": _bare(rule.split)} if rule.split is not None else data
