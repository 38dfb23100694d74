"""Which keys make a store's services what a document says. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from graylb.control import views
from graylb.control.config_store import View
from graylb.model import keys
from graylb.model.documents import Document
from graylb.model.services import Rule, ServicePart

Complete = Callable[[str, bytes], bytes]
"""(key, value) -> the value with salt and slots, where it has a split."""


def plan(view: View, document: Document, prune: bool, complete: Complete) -> dict[str, bytes | None]:
    """The keys to write, None to delete, service by service; those that mean the same already are left out.

    Raises ConfigErrors for what no key can say.
    """
    found: dict[str, bytes | None] = {}
    for name, part in document.services.items():
        found |= _service(view, name, part, prune, complete)
    return found


OVERHEAD: Final = 4
"""What a service adds to a transaction beside its keys: its record and comparisons."""


def in_parts(items: Mapping[str, bytes | None], at_once: int | None) -> list[dict[str, bytes | None]]:
    """In order, in parts of at most so many keys and overheads (None: one); instances behind the rest of their service.

    What a service has beside instances stays together, however much it is.
    """
    if not items:
        return []
    services: dict[str, list[str]] = {}
    for key in items:
        services.setdefault(views.service_of(key), []).append(key)
    if at_once is None or len(items) + OVERHEAD * len(services) <= at_once:
        return [dict(items)]
    parts: list[dict[str, bytes | None]] = [{}]
    room = at_once
    for own in services.values():
        instances = [key for key in own if views.part_of(key) == "instances"]
        head = [key for key in own if key not in set(instances)]
        while head or instances:
            if room < at_once and len(head) + OVERHEAD + bool(instances) > room:
                parts.append({})
                room = at_once
            count = max(0, room - OVERHEAD - len(head))
            now, instances = [*head, *instances[:count]], instances[count:]
            parts[-1] |= {key: items[key] for key in now}
            room -= len(now) + OVERHEAD
            head = []
            if instances:
                parts.append({})
                room = at_once
    return [part for part in parts if part]


def _service(view: View, name: str, part: ServicePart, prune: bool, complete: Complete) -> dict[str, bytes | None]:
    data = part.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    settings = {key: value for key, value in data.items() if key not in keys.OWN_KEYS}
    wanted: dict[str, bytes] = {}
    if settings:
        wanted.update([keys.encode(name, "service", "", settings)])
    if "split" in data:
        wanted[keys.suffix_of(name, "split")] = orjson.dumps(data["split"])
    order, rules = _rules(view, name, part, prune)
    wanted |= rules
    for list_name, ids in part.lists.items():
        wanted.update([keys.encode(name, "lists", list_name, ids)])
    wanted |= _instances(view, name, part)
    if not wanted and not views.items_of(view, name, keys.PARTS):
        wanted[keys.suffix_of(name, "service")] = b"{}"
    items: dict[str, bytes | None] = {}
    for key, value in wanted.items():
        if key in order or not _is_there(view, key, value):
            items[key] = complete(key, value)
    if prune:
        own = views.items_of(view, name, ("service", "split", "rules", "lists"))
        items |= {key: None for key in own if key not in wanted and own[key] != b"{}"}
    return items


def _is_there(view: View, key: str, value: bytes) -> bool:
    """Whether it means what is in force; a split without salt and slots asks for its weights only."""
    if key not in view.items:
        return False
    now = view.items[key].value
    if views.same(key, now, value):
        return True
    if views.part_of(key) not in ("split", "rules"):
        return False
    old, new = (keys.decode(key, each) for each in (now, value))
    if old.split is None or new.split is None or not set(new.split.model_fields_set) <= {"weights"}:
        return False
    if old.split.weights != new.split.weights:
        return False
    return new.part == "split" or old.value.model_copy(update={"split": new.split}) == new.value


def _rules(view: View, name: str, part: ServicePart, prune: bool) -> tuple[set[str], dict[str, bytes]]:
    """(keys to write for the sake of their order, the rules as keys).

    Where a store has no order of its own, rules of one priority that are not asked in that of the document get
    priorities that put them there.
    """
    wanted = {keys.suffix_of(name, "rules", rule.name): rule for rule in part.rules}
    target = sorted(wanted, key=lambda key: -wanted[key].priority)
    there = views.rules_in_order(view, name)
    if view.ordered:
        natural = [key for key in there if key in wanted] + [key for key in wanted if key not in there]
        if sorted(natural, key=lambda key: -wanted[key].priority) == target:
            return set(), _encoded(name, wanted)
        others = {} if prune else {key: view.items[key].value for key in there if key not in wanted}
        encoded = _encoded(name, wanted) | others
        return set(encoded), encoded
    file = [
        key for key in there if view.items[key].origin == "file" and _is_there(view, key, _encode(name, wanted, key))
    ]
    natural = [key for key in file if key in wanted] + sorted(key for key in wanted if key not in file)
    if sorted(natural, key=lambda key: -wanted[key].priority) == target:
        return set(), _encoded(name, wanted)
    first = max(len(target) * 10, *(rule.priority for rule in part.rules))
    moved = {key: wanted[key].model_copy(update={"priority": first - 10 * place}) for place, key in enumerate(target)}
    return set(), _encoded(name, {key: _with_priority(rule) for key, rule in moved.items()})


def _with_priority(rule: Rule) -> Rule:
    return Rule.model_validate({**_plain(rule), "priority": rule.priority})


def _plain(rule: Rule) -> dict[str, Any]:
    data: dict[str, Any] = rule.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return data


def _encode(name: str, rules: Mapping[str, Rule], key: str) -> bytes:
    return keys.encode(name, "rules", rules[key].name, _plain(rules[key]))[1] if key in rules else b"{}"


def _encoded(name: str, rules: Mapping[str, Rule]) -> dict[str, bytes]:
    return {key: _encode(name, rules, key) for key in rules}


def _instances(view: View, name: str, part: ServicePart) -> dict[str, bytes]:
    """By the keys that have their addresses already, else by their addresses."""
    there = views.items_of(view, name, ("instances",))
    by_address = {orjson.loads(value)["address"]: key for key, value in there.items()}
    found: dict[str, bytes] = {}
    for each in part.instances:
        key, value = keys.encode(name, "instances", each.address, each)
        found[by_address.get(each.address, key)] = value
    return found
