"""The document and the keys of other sources, made one: service by service, each only when something of it changed.

Part by part a key wins over the document: settings, split, each rule and each list by name. Instances are united; of
two with one address that of a key counts, and of two keys the newer one; what registries have comes last. A service
that does not fit together stays as it was, and the errors name the keys. No I/O.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import PydanticCustomError

from graylb.control.fragments import Fragments, Good, copied
from graylb.control.members import Members
from graylb.control.pace import Breath, none
from graylb.control.registered import Registries
from graylb.control.state import SERVICE_SPLIT, StoredSplit
from graylb.model import build, keys, presets, references, routes, values
from graylb.model.documents import Document
from graylb.model.problems import ConfigError, ConfigErrors, json_path, shown
from graylb.model.routes import RoutePart
from graylb.model.services import InstancePart, Rule, ServicePart
from graylb.model.settings import SidecarPart
from graylb.model.snapshot import Instance, Route, Service, Snapshot, Split
from graylb.model.snapshot import Rule as BuiltRule
from graylb.model.source_map import Source

PARTS: Final = frozenset(("service", "split", "rules", "lists", "instances"))


@dataclass(frozen=True, slots=True)
class Base:
    """The document with what its store adds. Identity counts: an equal one of another making is another one.

    splits: of the document's services, by service. name: of the file, for messages.
    """

    document: Document
    splits: Mapping[str, Mapping[build.SplitId, Split]]
    name: str
    sidecar: SidecarPart | None = None


def base_of(
    document: Document,
    splits: Mapping[tuple[str, str], StoredSplit],
    name: str,
    sidecar: SidecarPart | None = None,
) -> Base:
    """splits: (service, rule or SERVICE_SPLIT) -> as the store completed it. sidecar: of the document as it was."""
    found: dict[str, dict[build.SplitId, Split]] = {}
    for (service, rule), each in splits.items():
        split = Split(tuple(each.weights.items()), each.salt, each.slots)
        found.setdefault(service, {})[service, None if rule == SERVICE_SPLIT else rule] = split
    return Base(document, found, name, sidecar)


@dataclass(frozen=True, slots=True)
class _Assembled:
    """One service with what is kept for its next change. instances: of `part`, built; own: those of the document."""

    part: ServicePart
    rules: tuple[BuiltRule, ...]
    instances: tuple[Instance, ...]
    own: Mapping[str, tuple[InstancePart, Instance]]
    service: Service

    @property
    def face(self) -> tuple[Any, ...]:
        """What concerns others than the service."""
        return self.part.hosts, self.part.paths, self.part.listeners


Services = Mapping[str, _Assembled]


class Assembly:
    """Use: `update`, then `snapshot`. `problems`: service -> why its newest parts are not in force; "" for routes."""

    def __init__(self, fragments: Fragments, registries: Registries | None = None) -> None:
        self.fragments = fragments
        self.registries = registries or Registries()
        self.problems: dict[str, tuple[ConfigError, ...]] = {}
        self._base: Base | None = None
        self._services: dict[str, _Assembled] = {}
        self._members: dict[str, Members] = {}
        self._routes: tuple[Route, ...] = ()
        self._waiting: dict[str, set[str]] = {}  # what a service that is in trouble has not taken yet
        self._sorted: tuple[Service, ...] = ()

    @property
    def base(self) -> Base | None:
        """That was taken last; None before the first."""
        return self._base

    def copy(self, fragments: Fragments) -> Assembly:
        """To try changes on, over a copy of the fragments."""
        made = Assembly(fragments, self.registries.copy())
        for name, value in vars(self).items():
            if name not in ("fragments", "registries"):
                setattr(made, name, copied(value))
        return made

    def update(self, base: Base, dirty: Mapping[str, set[str]], breath: Breath = none) -> bool:
        """Takes what changed; whether the snapshot is another one. dirty: service -> parts, as of `Fragments`.

        Raises ConfigErrors for a document that does not fit with what the sources say while the former one did; then
        nothing has changed. The first document is believed: other sources may not have said all that belongs to it.
        """
        fresh = base is not self._base
        for name, parts in dirty.items():
            self._waiting.setdefault(name, set()).update(parts - {"rollout"})
        work = {name: set(parts) for name, parts in self._waiting.items() if parts}
        if fresh:
            others = (*self.fragments.services, *self.registries.services)
            work = {name: set(PARTS) for name in (*base.document.services, *others, *self._services)}
        if not work and not fresh:
            return False
        built, failed = self._build(base, work, fresh, breath)
        services, failed_together = self._join(base, built, fresh)
        failed |= failed_together
        worse = [each for name in failed if name not in self.problems for each in failed[name]]
        if fresh and self._base is not None and worse:
            raise ConfigErrors(dict.fromkeys(worse))
        return self._commit(base, services, failed, work, fresh)

    def snapshot(self, revision: int) -> Snapshot:
        """Of what was taken. Unchanged services are the very objects of the snapshot before."""
        assert self._base is not None
        return build.build(self._base.document, {}, revision, services=self._sorted, made_routes=self._routes)

    def part(self, service: str) -> ServicePart | None:
        """As it is in force."""
        found = self._services.get(service)
        return found.part if found else None

    # -- services --------------------------------------------------------------------------------------------------

    def _build(
        self, base: Base, work: Mapping[str, set[str]], fresh: bool, breath: Breath
    ) -> tuple[dict[str, _Assembled | None], dict[str, tuple[ConfigError, ...]]]:
        """(service -> what became of it, None if it is no more; service -> errors)."""
        built: dict[str, _Assembled | None] = {}
        failed: dict[str, tuple[ConfigError, ...]] = {}
        for name, parts in work.items():
            breath()
            goods = self._goods(name)
            if not goods and name not in base.document.services and not self._invited(name):
                built[name] = None
                continue
            try:
                made = self._assemble(base, name, goods, parts, fresh)
            except PydanticCustomError:  # of a sidecar's: the name is none of a host
                key = self.registries.place(name) or self.fragments.prefix + keys.suffix_of(name, "service")
                expected = "hosts for this service, as its name is none that callers could use"
                failed[name] = (ConfigError(key, 1, 1, "$", message="no hosts", expected=expected),)
                continue
            errors = self._check(base, name, made.part, goods, parts)
            if errors:
                failed[name] = errors
            else:
                built[name] = made
        return built, failed

    def _invited(self, service: str) -> bool:
        """Whether it is there because a registry has instances of it."""
        return self.registries.invited(service) and self.registries.has(service)

    def _goods(self, service: str) -> Mapping[str, Good]:
        """All of a service but its rollout. There can be very many, so they are only copied where they must be."""
        found = self.fragments.services.get(service, {})
        rollout = keys.suffix_of(service, "rollout")
        return {key: each for key, each in found.items() if key != rollout} if rollout in found else found

    def _assemble(self, base: Base, name: str, goods: Mapping[str, Good], parts: set[str], fresh: bool) -> _Assembled:
        old = None if fresh else self._services.get(name)
        file = base.document.services.get(name)
        own_instances: Mapping[str, tuple[InstancePart, Instance]] = (
            old.own
            if old is not None
            else {each.address: (each, build.build_instance(each)) for each in (file.instances if file else ())}
        )
        settings = goods.get(keys.suffix_of(name, "service"))
        start: ServicePart = settings.entry.value if settings else file or self._unwritten(base, name)
        changes: dict[str, Any] = {}
        splits = dict(base.splits.get(name, {}))
        split = goods.get(keys.suffix_of(name, "split"))
        if split is not None:
            changes["split"], splits[name, None] = split.entry.value, split.built
        elif file is not None and file.split is not None:
            changes["split"] = file.split
        if old is not None and "rules" not in parts:
            changes["rules"], rules = old.part.rules, old.rules
        else:
            changes["rules"], rules = _rules(name, file, goods, splits)
        if old is not None and "lists" not in parts:
            changes["lists"] = old.part.lists
        else:
            own = {each.entry.name: each.entry.value for each in goods.values() if each.entry.part == "lists"}
            changes["lists"] = {**(file.lists if file else {}), **own}
        if old is not None and "instances" not in parts:
            changes["instances"], instances = old.part.instances, old.instances
        else:
            members = self._members.get(name, Members()).now(self.fragments.members.get(name, {}))
            self._members[name] = members
            changes["instances"], instances = members.united(own_instances, self.registries.instances(name))
        part = start.model_copy(
            update={key: each for key, each in changes.items() if each or key in start.model_fields_set}
        )
        if base.sidecar is not None and (settings is not None or file is None):
            part = presets.placed(name, part, base.sidecar, {route.service for route in base.document.routes})
        service = build.service(
            name,
            part,
            splits,
            base.document.limits,
            rules=rules,
            instances=instances,
            marked=base.document.mark is not None,
        )
        before = self._services.get(name)
        if before is not None and before.service == service:
            service = before.service  # the very same, so that nothing of it is compiled again
        return _Assembled(part, rules, instances, own_instances, service)

    def _unwritten(self, base: Base, name: str) -> ServicePart:
        """The settings of a service that has none anywhere. One that a registry may bring answers to its name."""
        if base.sidecar is not None or not self.registries.invited(name):
            return ServicePart()
        if any(route.service == name for route in base.document.routes):
            return ServicePart()
        return ServicePart(hosts=(values.host_name(name),))

    def _check(
        self, base: Base, name: str, part: ServicePart, goods: Mapping[str, Good], parts: set[str]
    ) -> tuple[ConfigError, ...]:
        """What does not fit together, in terms of the keys."""
        if parts <= {"instances", "split"} and name in self._services and part.stable_version() is not None:
            return ()  # what else holds within a service has not been touched
        limits = base.document.limits
        if not any(references.check_service(_NOWHERE, name, part, limits)):
            return ()
        data = part.model_dump(mode="json", by_alias=True, exclude_unset=True)
        source = Source(base.name, {"services": {name: data}}, (1, 1))
        return tuple(
            self._told(error, name, part, goods) for error in references.check_service(source, name, part, limits)
        )

    def _told(self, error: ConfigError, name: str, part: ServicePart, goods: Mapping[str, Good]) -> ConfigError:
        """An error of the assembled service as one of the key, or the document, that it stands in."""
        root = json_path(("services", name))
        places = {json_path(("services", name, "rules", n)): ("rules", each.name) for n, each in enumerate(part.rules)}
        places[json_path(("services", name, "split"))] = ("split", "")
        for place, (kind, own) in places.items():
            if error.path.startswith(place):
                found = goods.get(keys.suffix_of(name, kind, own))  # type: ignore[arg-type]
                if found is not None:
                    return _moved(error, self.fragments.prefix + found.fragment.key, error.path[len(place) :])
                return error
        if not goods:
            return error
        settings = keys.suffix_of(name, "service")
        if error.path != root and settings not in goods:
            return error
        return _moved(error, self.fragments.prefix + settings, error.path[len(root) :])

    # -- all together ----------------------------------------------------------------------------------------------

    def _join(
        self, base: Base, built: Mapping[str, _Assembled | None], fresh: bool
    ) -> tuple[dict[str, _Assembled], dict[str, tuple[ConfigError, ...]]]:
        """All services after the change, and whose change was left out because it does not fit with the others."""
        services = dict(self._services)
        if fresh:  # the document comes first
            services = {name: each for name, each in services.items() if name not in built}
            names = sorted(built, key=lambda name: (name not in base.document.services, name))
        else:
            names = sorted(built)
        quiet = [name for name in names if not fresh and _face(services.get(name)) == _face(built[name])]
        loud = [name for name in names if fresh or _face(services.get(name)) != _face(built[name])]
        for name in quiet:
            _put(services, name, built[name])
        together = dict(services)
        for name in loud:
            _put(together, name, built[name])
        if not loud or not _between(base, together):
            return together, {}
        failed: dict[str, tuple[ConfigError, ...]] = {}
        for name in loud:  # one after the other, to find whose fault it is
            tried = dict(services)
            _put(tried, name, built[name])
            if errors := _between(base, tried):
                failed[name] = tuple(self._named(error, name) for error in errors)
                if fresh and name in self._services:
                    services[name] = self._services[name]
            else:
                services = tried
        return services, failed

    def _named(self, error: ConfigError, service: str) -> ConfigError:
        """An error between services, told of the key that brought it about."""
        key = keys.suffix_of(service, "service")
        if key not in self.fragments.services.get(service, {}):
            return error
        return _moved(error, self.fragments.prefix + key, "")

    def _commit(
        self,
        base: Base,
        services: dict[str, _Assembled],
        failed: Mapping[str, tuple[ConfigError, ...]],
        work: Mapping[str, set[str]],
        fresh: bool,
    ) -> bool:
        for name in work:
            self.problems.pop(name, None)
            self._waiting.pop(name, None)
        for name, errors in failed.items():
            self.problems[name] = errors
            self._waiting[name] = set(work[name])
        routed = fresh or any(_face(self._services.get(name)) != _face(services.get(name)) for name in work)
        self._base, self._services = base, services
        if len(self._members) > len(services):
            self._members = {name: each for name, each in self._members.items() if name in services}
        if routed:
            self._find_routes(base, services)
        ordered = tuple(services[name].service for name in sorted(services))
        same = len(ordered) == len(self._sorted) and all(map(operator.is_, ordered, self._sorted))
        if not same:
            self._sorted = ordered
        return fresh or routed or not same

    def _find_routes(self, base: Base, services: Services) -> None:
        """Routes of the document to services that do not exist (yet) are left out, and told."""
        document = base.document
        parts = {name: each.part for name, each in services.items()}
        there: dict[int, RoutePart] = {}
        missing: list[ConfigError] = []
        for number, route in enumerate(document.routes):
            if route.service is None or route.service in services:
                there[number] = route
            else:
                path = json_path(("routes", number, "service"))
                expected = "a service of the document or of another source; the route is left out"
                missing.append(ConfigError(base.name, 1, 1, path, shown(route.service), expected, "no such service"))
        self.problems.pop("", None)
        if missing:
            self.problems[""] = tuple(missing)
        # with all routes of the document: a service that they name has no short form, there or not
        every = routes.expand(parts, dict(enumerate(document.routes)))
        self._routes = tuple(route for _, route in every if route.service is None or route.service in services)


def _face(made: _Assembled | None) -> Any:
    return None if made is None else made.face


def _put(services: dict[str, _Assembled], name: str, made: _Assembled | None) -> None:
    if made is None:
        services.pop(name, None)
    else:
        services[name] = made


def _between(base: Base, services: Services) -> list[ConfigError]:
    """What does not fit between services, routes and listeners."""
    document = base.document
    parts = references.Parts(
        frozenset(services),
        {name: each.part for name, each in services.items()},
        dict(enumerate(document.routes)),
        {("listeners", number): each for number, each in enumerate(document.listeners)},
        document.admin,
        document.limits,
        partial=True,
    )
    listeners = {"listeners": [{"name": each.called} for each in document.listeners]}
    if not any(references.check_routes(Source(base.name, listeners, (1, 1)), parts)):
        return []
    data = document.to_data()
    data["services"] = {
        name: each.part.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"instances", "lists"})
        for name, each in services.items()
    }
    return list(references.check_routes(Source(base.name, data, (1, 1)), parts))


_NOWHERE: Final = Source("", {}, (1, 1))


def _rules(
    name: str, file: ServicePart | None, goods: Mapping[str, Good], splits: Mapping[build.SplitId, Split]
) -> tuple[tuple[Rule, ...], tuple[BuiltRule, ...]]:
    """The document's in their order, each replaced by the key of its name; then the other keys' by name."""
    own = {each.entry.name: each for each in goods.values() if each.entry.part == "rules"}
    parts: list[Rule] = []
    built: list[BuiltRule] = []
    for rule in file.rules if file else ():
        key = own.pop(rule.name, None)
        parts.append(key.entry.value if key else rule)
        built.append(key.built if key else build.build_rule(name, rule, splits))
    for _, each in sorted(own.items()):
        parts.append(each.entry.value)
        built.append(each.built)
    return tuple(parts), tuple(built)


def _moved(error: ConfigError, file: str, path: str) -> ConfigError:
    return ConfigError(file, 1, 1, "$" + path, error.value, error.expected, error.message, error.suggestion)
