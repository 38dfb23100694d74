"""What a view of a store tells of its services, and what its records tell of the past. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from graylb.control.config_store import Record, View
from graylb.model import keys
from graylb.model.problems import ConfigErrors

CONTENT = ("service", "split", "rules")
"""What a rollback restores. Instances and lists are data."""


def service_of(key: str) -> str:
    return keys.split_key(key)[0]


def part_of(key: str) -> str:
    return keys.split_key(key)[1]


def name_of(key: str) -> str:
    return keys.split_key(key)[2]


def services_of(view: View) -> list[str]:
    return sorted({service_of(key) for key in view.items})


def items_of(view: View, service: str, parts: Sequence[str] = CONTENT) -> dict[str, bytes]:
    """Its keys, in the order of the view."""
    return {key: item.value for key, item in view.items.items() if service_of(key) == service and part_of(key) in parts}


def versions_of(view: View, service: str) -> list[str]:
    """Of its instances; none where there may be others than the view knows."""
    if view.registered is None:
        return []
    found = (orjson.loads(value) for value in items_of(view, service, ("instances",)).values())
    return sorted({str(instance["version"]) for instance in found} | view.registered.get(service, frozenset()))


def stable_of(view: View, service: str) -> str | None:
    """As `ServicePart.stable_version`: as given, else the split's heaviest version, else the instances' only one."""
    own = items_of(view, service)
    settings, split = (own.get(keys.suffix_of(service, part)) for part in ("service", "split"))
    if settings is not None and (stable := orjson.loads(settings).get("stable")) is not None:
        return str(stable)
    if split is not None:
        data = orjson.loads(split)
        weights: dict[str, float] = data.get("weights", data)
        return max(weights, key=lambda version: weights[version])
    versions = versions_of(view, service)
    return versions[0] if len(versions) == 1 else None


def same(key: str, one: bytes | None, other: bytes | None) -> bool:
    """Whether two values of a key mean the same."""
    if one is None or other is None or one == other:
        return one == other
    try:
        return keys.decode(key, one) == keys.decode(key, other)
    except ConfigErrors:
        return False


def differ(before: Mapping[str, bytes | None], after: Mapping[str, bytes | None]) -> list[str]:
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def points(now: Mapping[str, bytes], records: Iterable[Record]) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """(record, the service's keys as it left them), newest first. now: as they are, with CONTENT's parts only.

    records: of one service, newest first. Behind one that is not `known` nothing is right any more.
    """
    items = dict(now)
    for record in records:
        _put(items, record.after)
        yield record, dict(items)
        _put(items, record.before)


def before_all(now: Mapping[str, bytes], records: Sequence[Record]) -> dict[str, bytes]:
    """The service's keys as they were before the first of these records."""
    items = dict(now)
    for record in records:
        _put(items, record.before)
    return items


def _put(items: dict[str, bytes], values: Mapping[str, bytes | None]) -> None:
    """Those that are there take their places anew when they are written as a whole, as rules are for their order."""
    own = {key: value for key, value in values.items() if part_of(key) in CONTENT}
    rules = [key for key in own if part_of(key) == "rules"]
    if rules != [key for key in items if key in rules]:
        for key in rules:
            items.pop(key, None)
    for key, value in own.items():
        if value is None:
            items.pop(key, None)
        else:
            items[key] = value


def rules_in_order(view: View, service: str) -> list[str]:
    """Keys of its rules in the order in which they are asked within one priority."""
    return [key for key in view.items if service_of(key) == service and part_of(key) == "rules"]


def document_of(view: View) -> dict[str, Any]:
    """The services as a document's data: settings, split with salt and slots, rules in order, lists, instances.

    Numbers as a person would write them: 95 for 95.0.
    """
    services: dict[str, Any] = {}
    for service in services_of(view):
        own = {key: tidy(orjson.loads(value)) for key, value in items_of(view, service, keys.PARTS).items()}
        data: dict[str, Any] = dict(own.get(keys.suffix_of(service, "service"), {}))
        if (split := own.get(keys.suffix_of(service, "split"))) is not None:
            data["split"] = split
        ordered = rules_in_order(view, service)
        if not view.ordered:
            ordered.sort(key=lambda key: -int(own[key].get("priority", 0)))
        if ordered:
            data["rules"] = [{"name": name_of(key), **own[key]} for key in ordered]
        if lists := {name_of(key): own[key] for key in own if part_of(key) == "lists"}:
            data["lists"] = lists
        if instances := [own[key] for key in own if part_of(key) == "instances"]:
            data["instances"] = instances
        services[service] = data
    return {"services": services}


def tidy(data: Any) -> Any:
    """Plain data with 95 for 95.0."""
    if isinstance(data, dict):
        return {key: tidy(value) for key, value in data.items()}
    if isinstance(data, list):
        return [tidy(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data
