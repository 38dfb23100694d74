"""What differs between two snapshots, in the words of the release model, and how many callers change version by it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from graylb.model.snapshot import SLOTS, Instance, Route, Rule, Service, Snapshot, Split, StickyKey, Subset
from graylb.release.explain import describe_match, describe_subset
from graylb.release.shares import Shares, mixed, served, shift
from graylb.release.slots import Slots

Action = Literal["added", "removed", "changed"]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs. part: split, rule, instance, list, route, service, or a setting's name, with dots."""

    service: str | None  # None: of the document as a whole
    part: str
    action: Action
    text: str
    name: str = ""  # of a rule, instance, list or route
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class Callers:
    """How the callers of one service that no rule decides are moved. moves: (from, to, share of them)."""

    service: str
    exact: bool  # by the slots of sticky keys; else the shares are what is to be expected
    moves: tuple[tuple[str, str, float], ...]
    note: str = ""
    rule: str | None = None  # of a rule's own split

    @property
    def moved(self) -> float:
        return sum(share for _, _, share in self.moves)


@dataclass(frozen=True, slots=True)
class Diff:
    changes: tuple[Change, ...]
    callers: tuple[Callers, ...]
    notes: tuple[str, ...] = field(default=())

    def to_data(self) -> dict[str, Any]:
        callers = [{**dataclasses.asdict(each), "moved": each.moved} for each in self.callers]
        return {
            "changes": [dataclasses.asdict(change) for change in self.changes],
            "callers": callers,
            "notes": list(self.notes),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Diff:
        """What `to_data` gave, and JSON made of it."""
        callers = tuple(
            Callers(each["service"], each["exact"], tuple(map(tuple, each["moves"])), each["note"], each["rule"])
            for each in data["callers"]
        )
        return cls(tuple(Change(**each) for each in data["changes"]), callers, tuple(data["notes"]))


def diff(old: Snapshot, new: Snapshot) -> Diff:
    """Everything that differs but the revision. Services that only one of them has move nobody."""
    changes = list(_settings(None, "", _without(old, "revision", "services", "routes"), _without(new)))
    changes += _routes(old.routes, new.routes)
    callers: list[Callers] = []
    before, after = ({each.name: each for each in snapshot.services} for snapshot in (old, new))
    for name, action in _keys(before, after):
        if action == "changed":
            changes += _service(before[name], after[name])
            callers += _callers(before[name], after[name])
        else:
            service = before.get(name) or after[name]
            split = f"split {weights_text(service.split)}" if service.split else f"all to {service.stable}"
            told = f"{split}, {len(service.written_rules)} rules, {len(service.instances)} instances"
            changes.append(Change(name, "service", action, f"service {name} {action} ({told})"))
    return Diff(tuple(changes), tuple(callers))


def percent(share: float) -> str:
    """`5.00 %`"""
    return f"{share * 100:.2f} %"


def weights_text(split: Split | None) -> str:
    """`v1 95, v2 5`"""
    return ", ".join(f"{version} {weight:g}" for version, weight in split.weights) if split else "none"


# ---- what differs ----------------------------------------------------------------------------------------------------


def _keys(before: Mapping[K, T], after: Mapping[K, T]) -> Iterator[tuple[K, Action]]:
    """Those that differ, in the order of both."""
    for key in dict.fromkeys((*before, *after)):
        if key not in after:
            yield key, "removed"
        elif key not in before:
            yield key, "added"
        elif before[key] != after[key]:
            yield key, "changed"


def _service(old: Service, new: Service) -> Iterator[Change]:
    name = new.name
    yield from _split(name, "split", "", old.split, new.split, old.stable, new.stable)
    yield from _rules(old, new)
    yield from _instances(name, old.instances, new.instances)
    lists = dict(old.lists), dict(new.lists)
    for key, action in _keys(*lists):
        more, fewer = (len(set(a.get(key, ())) - set(b.get(key, ()))) for a, b in (lists[::-1], lists))
        told = [f"{count} ids {how}" for count, how in ((more, "added"), (fewer, "removed")) if count] or ["in order"]
        text = f"list {key} {action}" + (f": {', '.join(told)}" if action == "changed" else f" ({more or fewer} ids)")
        yield Change(name, "list", action, text, key, {"removed": fewer}, {"added": more})
    if old.sticky != new.sticky:
        before, after = _sticky_text(old.sticky), _sticky_text(new.sticky)
        yield Change(name, "sticky", "changed", f"sticky {before} → {after}", "", before, after)
    handled = ("name", "split", "rules", "instances", "lists", "sticky")
    yield from _settings(name, "", _without(old, *handled), _without(new, *handled))


def _split(
    service: str, part: str, name: str, old: Split | None, new: Split | None, stable: str, new_stable: str
) -> Iterator[Change]:
    of = f"rule {name}: " if name else ""
    before, after = (dict(each.weights) if each else None for each in (old, new))
    if before != after:
        if before is None or after is None:
            texts = [weights_text(each) if each else f"all to {s}" for each, s in ((old, stable), (new, new_stable))]
            text = f"{of}split {texts[0]} → {texts[1]}"
        else:
            text = f"{of}split " + ", ".join(_weight_text(key, before, after) for key in {**before, **after})
        yield Change(service, part, "changed", text, name, before, after)
    if old and new and old.salt != new.salt:
        text = f"{of}salt {old.salt} → {new.salt}: its callers are drawn anew"
        yield Change(service, "salt", "changed", text, name, old.salt, new.salt)
    elif old and new and old.slots != new.slots:
        moved = _slot_moves(old.slots, new.slots)
        total = sum(moved.values())
        told = ", ".join(f"{a} → {b} {count:,}" for (a, b), count in moved.items())
        text = f"moved slots {total:,} ({percent(total / SLOTS)}): {told}" if moved else "slots in another order"
        yield Change(service, "slots", "changed", of + text, name, None, [[a, b, n] for (a, b), n in moved.items()])


def _weight_text(version: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    old, new = before.get(version, 0.0), after.get(version, 0.0)
    return f"{version} {old:g} → {new:g}" if old != new else f"{version} {new:g}"


def _slot_moves(old: str, new: str) -> Counter[tuple[str, str]]:
    pairs = zip(Slots.parse(old).owners(), Slots.parse(new).owners(), strict=True)
    return Counter((a, b) for a, b in pairs if a != b)


def _rules(old: Service, new: Service) -> Iterator[Change]:
    before, after = ({rule.name: rule for rule in service.written_rules} for service in (old, new))
    for name, action in _keys(before, after):
        if action == "changed":
            yield from _rule(new.name, before[name], after[name], old.stable, new.stable)
            continue
        rule = before[name] if action == "removed" else after[name]
        text = f"rule {name} {action}: {describe_match(rule.match)} → {target_text(rule)}"
        yield Change(new.name, "rule", action, text, name)
    common = [name for name in before if name in after]
    if common != (order := [name for name in after if name in before]):
        text = f"rules are asked in another order: {', '.join(order)}"
        yield Change(new.name, "rules", "changed", text, "", common, order)


def target_text(rule: Rule) -> str:
    """`version v2`, `split v1 50, v2 50`"""
    return describe_subset(rule.to) if rule.to is not None else f"split {weights_text(rule.split)}"


def _rule(service: str, old: Rule, new: Rule, stable: str, new_stable: str) -> Iterator[Change]:
    def told(what: str, before: Any, after: Any) -> Change:
        return Change(
            service, "rule", "changed", f"rule {new.name}: {what} {before} → {after}", new.name, before, after
        )

    if old.match != new.match:
        before, after = describe_match(old.match), describe_match(new.match)
        yield told("match", before, after)
    if old.to is None and new.to is None:
        yield from _split(service, "rule", new.name, old.split, new.split, stable, new_stable)
    elif (old.to, old.split) != (new.to, new.split):
        yield told("to", target_text(old), target_text(new))
    if old.priority != new.priority:
        yield told("priority", old.priority, new.priority)
    if old.fallback != new.fallback:
        yield told("fallback", old.fallback or "the service's", new.fallback or "the service's")


def _instances(service: str, old: Sequence[Instance], new: Sequence[Instance]) -> Iterator[Change]:
    before, after = ({each.address: each for each in instances} for instances in (old, new))
    for address, action in _keys(before, after):
        each = before[address] if action == "removed" else after[address]
        if action != "changed":
            more = f", weight {each.weight}" if each.weight != 100 else ""
            yield Change(service, "instance", action, f"instance {address} {action} ({each.version}{more})", address)
            continue
        for name, value in _flat(before[address]).items():
            now = _flat(each)[name]
            if value != now:
                text = f"instance {address}: {name} {_shown(value)} → {_shown(now)}"
                yield Change(service, "instance", "changed", text, address, value, now)


def _routes(old: Sequence[Route], new: Sequence[Route]) -> Iterator[Change]:
    """By name, host and path, of which one route has one."""

    def keyed(routes: Sequence[Route]) -> dict[tuple[str, str, str, str, tuple[str, ...]], Route]:
        found: dict[Any, Route] = {}
        for each in routes:
            found[each.name, each.host, each.path_kind, each.path, each.listeners] = each
        return found

    before, after = keyed(old), keyed(new)
    for key, action in _keys(before, after):
        route = before[key] if action == "removed" else after[key]
        where = f'route {route.name} (host "{route.host}", {route.path_kind} {route.path})'
        if action == "changed":
            differ = _settings(None, "", _without(before[key]), _without(route))
            text = f"{where}: " + "; ".join(change.text for change in differ)
        else:
            to = f"service {route.service}" if route.service is not None else "a redirect"
            text = f"{where} {action}, to {to}"
        yield Change(None, "route", action, text, route.name)


def _settings(service: str | None, of: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Whatever else differs; `old` names what is compared."""
    for name, before in old.items():
        after = new[name]
        if before == after:
            continue
        if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(after):
            yield from _settings(service, f"{of}{name}.", _without(before), _without(after))
        else:
            text = f"{of}{name} {_shown(before)} → {_shown(after)}"
            yield Change(service, of + name, "changed", text, "", _plain(before), _plain(after))


def _without(part: Any, *names: str) -> dict[str, Any]:
    return {each.name: getattr(part, each.name) for each in dataclasses.fields(part) if each.name not in names}


def _flat(instance: Instance) -> dict[str, Any]:
    return {**_without(instance, "address", "metadata"), "metadata": dict(instance.metadata)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        return " ".join(f"{name}={_shown(each)}" for name, each in _without(value).items() if each not in (None, ()))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sticky_text(keys: Sequence[StickyKey]) -> str:
    return ", ".join(f"{key.kind} {key.name}".strip() for key in keys) or "none"


# ---- who moves -------------------------------------------------------------------------------------------------------


def _callers(old: Service, new: Service) -> Iterator[Callers]:
    """For the service's split, and for the splits of rules that both have and that differ."""
    found = _moves(old, new, old.split, new.split)
    if found.moves:
        yield found
    rules = {rule.name: rule for rule in old.rules}
    for rule in new.rules:
        former = rules.get(rule.name)
        if former is not None and former.split is not None and rule.split is not None:
            found = _moves(old, new, former.split, rule.split, rule, former)
            if found.moves:
                yield found


def _moves(
    old: Service, new: Service, a: Split | None, b: Split | None, rule: Rule | None = None, former: Rule | None = None
) -> Callers:
    """Exact where both decide by one slot of a key; a split of one version decides for everybody, whatever the slot."""
    name = rule.name if rule else None
    several = [(service.sticky, s.salt) for service, s in ((old, a), (new, b)) if s is not None and len(s.weights) > 1]
    if not all(sticky for sticky, _ in several) or len(set(several)) > 1:
        return _expected(old, new, a, b, rule, former)
    owners = [_owners(service, split) for service, split in ((old, a), (new, b))]
    answers: dict[tuple[int, str], Shares] = {}
    for side, (service, own) in enumerate(((old, former), (new, rule))):
        for version in set(owners[side]):
            answers[side, version] = served(service, Subset(version=version), own.fallback if own else None)
    total: dict[tuple[str, str], float] = {}
    for (x, y), count in Counter(zip(*owners, strict=True)).items():
        for pair, share in shift(answers[0, x], answers[1, y]).items():
            total[pair] = total.get(pair, 0.0) + share * count / SLOTS
    single = all(len(shares) == 1 for shares in answers.values())
    return Callers(new.name, single, _sorted(total), _fallbacks(new, answers), name)


def _fallbacks(new: Service, answers: Mapping[tuple[int, str], Shares]) -> str:
    """Which versions have no instance afterwards, and who answers for them."""
    told = [
        f"{version} has no instance: {' and '.join(shares)} instead"
        for (side, version), shares in sorted(answers.items())
        if side == 1 and version not in shares
    ]
    return "; ".join(told)


def _expected(
    old: Service, new: Service, a: Split | None, b: Split | None, rule: Rule | None, former: Rule | None
) -> Callers:
    """Nothing ties a caller's version before to the one after, or it is not callers that are counted but requests."""
    before, after = _shares(old, a, former), _shares(new, b, rule)
    name = rule.name if rule else None
    if not old.sticky or not new.sticky:
        note = "for lack of a sticky key these are shares of requests, not of callers"
        return Callers(new.name, False, _sorted(shift(before, after)), note, name)
    note = "the sticky key differs" if old.sticky != new.sticky else "the salt differs"
    note += ": every caller is drawn anew, so this many are to be expected"
    pairs = {(x, y): p * q for x, p in before.items() for y, q in after.items()}
    return Callers(new.name, False, _sorted(pairs), note, name)


def _owners(service: Service, split: Split | None) -> list[str]:
    return [service.stable] * SLOTS if split is None else Slots.parse(split.slots).owners()


def _shares(service: Service, split: Split | None, rule: Rule | None) -> Shares:
    weights = dict(split.weights) if split is not None else {service.stable: 1.0}
    fallback = rule.fallback if rule else None
    return mixed(weights, {version: served(service, Subset(version=version), fallback) for version in weights})


def _sorted(pairs: Mapping[tuple[str, str], float]) -> tuple[tuple[str, str, float], ...]:
    """Those who change, most first."""
    moves = [(x, y, share) for (x, y), share in pairs.items() if x != y and share > 1e-12]
    return tuple(sorted(moves, key=lambda move: (-move[2], move[:2])))
