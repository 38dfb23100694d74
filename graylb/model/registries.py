"""Instances as frameworks write them to etcd, key by key: go-micro, Kratos, go-zero, grpc-go, Kitex, Dubbo-go.

Pure. What is odd in their data is known to be so: null where a mapping is meant, weights of 0 that stand for "unset",
names with slashes that keys have with dashes. What makes no sense is a `ConfigErrors` whose file is the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, get_args
from urllib.parse import parse_qs, urlsplit

import orjson
from pydantic_core import PydanticCustomError

from graylb.model import values
from graylb.model.problems import ConfigError, ConfigErrors, json_path, shown

Layout = Literal["go-micro", "kratos", "go-zero", "grpc-go", "kitex", "dubbo-go"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)

PREFIXES: Final[dict[Layout, str]] = {
    "go-micro": "/micro/registry",
    "kratos": "/microservices",
    "go-zero": "",
    "grpc-go": "svc",
    "kitex": "kitex/registry-etcd",
    "dubbo-go": "/services",
}
"""Where each framework writes unless it is told otherwise; go-zero writes at the root, grpc-go where one likes."""

WEIGHT: Final = 100
KITEX_WEIGHT: Final = 10
"""Weights of instances that have none."""


@dataclass(frozen=True, slots=True)
class Found:
    """One address of an instance.

    service: as the framework calls it, which need not be a name as graylb has them. id: within the service; several
    addresses of one instance share it. address: canonical, as in a document. version: "" when nothing says it.
    weight: 0 takes it out. metadata: sorted by key. scheme: `http`, `grpc`, … where it is told, with an `s` for TLS.
    domain: that of go-micro v3, else "".
    """

    service: str
    id: str
    address: str
    version: str = ""
    weight: int = WEIGHT
    metadata: tuple[tuple[str, str], ...] = ()
    scheme: str = ""
    domain: str = ""


def parse(layout: Layout, prefix: str, key: str, value: bytes) -> tuple[Found, ...]:
    """What one key says: none (deregistered, or without an address), one, or several. Raises ConfigErrors.

    prefix: with or without a slash at its end; the key must lie below it. An address that is there twice counts once.
    """
    start = prefix.rstrip("/")
    start = f"{start}/" if start else prefix
    rest = key.removeprefix(start)
    if not key.startswith(start):
        _fail(key, "", f"a key below {start}", message="not a key of this registry")
    return dedupe(_PARSERS[layout](_Value(key, rest, value)))


def dedupe(found: Iterable[Found]) -> tuple[Found, ...]:
    """One for each service, domain and address: the last one, so give them by age.

    A go-zero service that registers again does so by another key, and the former stays until its lease expires.
    """
    kept: dict[tuple[str, str, str], Found] = {}
    for each in found:
        identity = each.service, each.domain, each.address
        kept.pop(identity, None)
        kept[identity] = each
    return tuple(kept.values())


def pick(found: Iterable[Found], schemes: tuple[str, ...]) -> tuple[Found, ...]:
    """One address of each instance: of the first of `schemes` that it has. Those that tell no scheme are taken."""
    best: dict[tuple[str, str, str], tuple[int, Found]] = {}
    for each in found:
        if each.scheme and each.scheme not in schemes:
            continue
        rank = schemes.index(each.scheme) if each.scheme else -1
        identity = each.service, each.domain, each.id
        if identity not in best or rank < best[identity][0]:
            best[identity] = rank, each
    return tuple(each for _, each in best.values())


def names_in(layout: Layout, rest: str) -> frozenset[str]:
    """What the service of a key may be called, whether or not the key and its value make sense.

    rest: the key below the prefix.
    """
    parts = rest.split("/")
    found = {"/".join(parts[first:end]) for first in (0, 1) for end in range(first + 1, len(parts))}
    if layout == "go-zero":
        found |= {versioned[1] for name in found if (versioned := _VERSIONED.fullmatch(name)) is not None}
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Value:
    """rest: the key below the prefix."""

    key: str
    rest: str
    value: bytes

    def split(self, expected: str) -> tuple[str, str]:
        """The rest, before and after its last slash."""
        service, _, name = self.rest.rpartition("/")
        if not service or not name:
            _fail(self.key, "", expected, message="parts of the key are missing")
        return service, name

    def mapping(self, example: str) -> dict[str, Any]:
        try:
            data = orjson.loads(self.value)
        except orjson.JSONDecodeError as error:
            message = f"not valid JSON: {error.msg}"
            _fail(self.key, "", f"a JSON text such as {example}", message=message, at=(error.lineno, error.colno))
        if not isinstance(data, dict):
            _fail(self.key, "$", f"a mapping such as {example}", shown(data))
        return data

    def text(self, data: Mapping[str, Any], name: str, *path: str | int) -> str:
        """ "" where it is null or missing."""
        found = data.get(name)
        if found is None:
            return ""
        if not isinstance(found, str):
            _fail(self.key, json_path((*path, name)), "a text", shown(found))
        return found

    def texts(self, data: Mapping[str, Any], name: str, *path: str | int) -> list[str]:
        items = self.items(data, name)
        for index, each in enumerate(items):
            if not isinstance(each, str):
                _fail(self.key, json_path((*path, name, index)), "a text", shown(each))
        return items

    def items(self, data: Mapping[str, Any], name: str) -> list[Any]:
        found = data.get(name)
        if found is None:
            return []
        if not isinstance(found, list):
            _fail(self.key, json_path((name,)), "a list", shown(found))
        return found

    def metadata(self, data: Mapping[str, Any], name: str, *path: str | int) -> dict[str, str]:
        """Texts; other scalars as JSON has them, deeper values as JSON texts."""
        found = data.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            _fail(self.key, json_path((*path, name)), "a mapping", shown(found))
        return _tags(found)

    def address(self, text: str, path: str) -> str:
        return self._checked(values.instance_address, text, path)

    def version(self, text: str, path: str) -> str:
        return self._checked(values.version, text, path) if text else ""

    def whole(self, data: Mapping[str, Any], name: str, most: int, *, least: int | None = None) -> int:
        """0 where it is null or missing."""
        found = data.get(name)
        if found is None:
            return 0
        low = f"from {least}" if least is not None else "up"
        whole = isinstance(found, int) and not isinstance(found, bool)
        if isinstance(found, float) and math.isfinite(found) and found == int(found):
            found, whole = int(found), True
        if not whole or found > most or (least is not None and found < least):
            _fail(self.key, json_path((name,)), f"a whole number {low} to {most}", shown(found))
        return int(found)

    def _checked(self, check: Callable[[Any], str], text: str, path: str) -> str:
        try:
            return check(text)
        except PydanticCustomError as error:
            _fail(self.key, path, str((error.context or {})["expected"]), shown(text))


def _go_micro(value: _Value) -> list[Found]:
    data = value.mapping('{"name":"greeter","version":"v1","nodes":[{"id":"greeter-1","address":"10.0.0.5:8080"}]}')
    name = value.text(data, "name").replace("/", "-")
    parts = value.rest.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        _fail(value.key, "", "SERVICE/NODE or DOMAIN/SERVICE/NODE", message="not the form of a go-micro key")
    if name != parts[-2]:
        _fail(value.key, "$.name", f"{shown(parts[-2])}, as the key says", shown(data.get("name")))
    version = value.version(value.text(data, "version"), "$.version")
    shared = value.metadata(data, "metadata")
    found = []
    for index, node in enumerate(value.items(data, "nodes")):
        path = ("nodes", index)
        if not isinstance(node, dict):
            _fail(value.key, json_path(path), "a mapping", shown(node))
        tags = {**shared, **value.metadata(node, "metadata", *path)}
        address = value.address(value.text(node, "address", *path), json_path((*path, "address")))
        identity = value.text(node, "id", *path) or parts[-1]
        scheme = tags.get("protocol", "") + ("s" if tags.get("protocol") and tags.get("secure") == "true" else "")
        domain = parts[0] if len(parts) == 3 else ""
        found.append(_found(name, identity, address, version, tags, scheme=scheme, domain=domain))
    return found


def _kratos(value: _Value) -> list[Found]:
    data = value.mapping('{"id":"7c9e","name":"user","version":"v1","endpoints":["http://10.0.0.6:8000"]}')
    name = value.text(data, "name")
    # a watch on `/microservices/user` without the slash sees those of `user2` too
    rest = value.rest.removeprefix(f"{name}/")
    if not name or rest == value.rest or not rest:
        said = value.rest.rpartition("/")[0]
        _fail(value.key, "$.name", f"{shown(said)}, as the key says", shown(data.get("name")))
    version = value.version(value.text(data, "version"), "$.version")
    tags = value.metadata(data, "metadata")
    found = []
    for index, endpoint in enumerate(value.texts(data, "endpoints")):
        path = json_path(("endpoints", index))
        scheme, address = _endpoint(value, endpoint, path)
        found.append(_found(name, value.text(data, "id") or rest, address, version, tags, scheme=scheme))
    return found


def _endpoint(value: _Value, text: str, path: str) -> tuple[str, str]:
    """(scheme, address)."""
    try:
        parts = urlsplit(text)
        secure = parse_qs(parts.query).get("isSecure", [""])[-1] == "true"
    except ValueError:  # of brackets that do not match, and of too many fields
        _fail(value.key, path, "a URL such as grpc://10.0.0.6:9000?isSecure=false", shown(text))
    if not parts.scheme or not parts.netloc:
        _fail(value.key, path, "a URL such as grpc://10.0.0.6:9000?isSecure=false", shown(text))
    scheme = f"{parts.scheme}s" if secure and not parts.scheme.endswith("s") else parts.scheme
    return scheme, value.address(parts.netloc, path)


_VERSIONED: Final = re.compile(r"(.+?)[/.@:-](v[0-9]+(?:\.[0-9]+)*(?:[-+][0-9A-Za-z.+-]+)?)", re.DOTALL)


def _go_zero(value: _Value) -> list[Found]:
    """The version is what ends the name: `user.rpc.v2/ID`, `user.rpc@v1.2.0/ID`, `user.rpc/v2/ID`; else unknown."""
    service, identity = value.split("SERVICE/ID, such as user.rpc/7587870458981677831")
    try:
        text = value.value.decode()
    except UnicodeDecodeError:
        _fail(value.key, "", "an address such as 10.0.0.7:8080", message="not UTF-8")
    address = value.address(text.strip(), "$")
    versioned = _VERSIONED.fullmatch(service)
    version = ""
    if versioned is not None:
        service, version = versioned[1], value.version(versioned[2], "")
    return [_found(service, identity, address, version, {})]


def _grpc_go(value: _Value) -> list[Found]:
    service, identity = value.split("SERVICE/ADDRESS, such as orders/10.0.0.8:9000")
    data = value.mapping('{"Op":0,"Addr":"10.0.0.8:9000","Metadata":{"version":"v2"}}')
    if value.whole(data, "Op", 1, least=0) == 1:  # of the naming package: Add is 0, Delete is 1
        return []
    address = value.address(value.text(data, "Addr"), "$.Addr")
    metadata = data.get("Metadata")
    tags = _tags(metadata) if isinstance(metadata, dict) else {}  # it may be anything
    version = value.version(tags.get("version", ""), "$.Metadata.version")
    return [_found(service, identity, address, version, tags)]


def _kitex(value: _Value) -> list[Found]:
    data = value.mapping('{"network":"tcp","address":"10.0.0.9:8888","weight":10,"tags":{"version":"v2"}}')
    network, raw = value.text(data, "network"), value.text(data, "address")
    if network not in ("", "tcp", "tcp4", "tcp6", "unix"):
        _fail(value.key, "$.network", "tcp or unix", shown(network))
    # the path of a socket has slashes of its own
    service = value.rest.removesuffix(f"/{raw}")
    if not raw or service == value.rest or not service:
        service = value.split("SERVICE/ADDRESS, such as echo/10.0.0.9:8888")[0]
    identity = value.rest[len(service) + 1 :]
    address = value.address(f"unix:{raw}" if network == "unix" else raw, "$.address")
    tags = value.metadata(data, "tags")
    weight = value.whole(data, "weight", values.MAX_INSTANCE_WEIGHT)
    version = value.version(tags.get("version", ""), "$.tags.version")
    return [_found(service, identity, address, version, tags, weight if weight > 0 else KITEX_WEIGHT)]


def _dubbo_go(value: _Value) -> list[Found]:
    """Application level. Disabled or ill instances have weight 0."""
    service, identity = value.split("SERVICE/ADDRESS, such as shop/10.0.0.10:20000")
    data = value.mapping('{"ServiceName":"shop","Host":"10.0.0.10","Port":20000,"Weight":0}')
    if (name := value.text(data, "ServiceName")) not in ("", service):
        _fail(value.key, "$.ServiceName", f"{shown(service)}, as the key says", shown(name))
    host, port = value.text(data, "Host"), value.whole(data, "Port", 65535, least=1)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    address = value.address(f"{host}:{port}", "$.Host")
    tags = value.metadata(data, "Metadata")
    version = value.version(tags.get("version", ""), "$.Metadata.version")
    if tag := value.text(data, "Tag"):
        tags = {**tags, "tag": tag}
    weight = value.whole(data, "Weight", values.MAX_INSTANCE_WEIGHT)
    weight = weight if weight > 0 else _tagged_weight(tags)
    if data.get("Enable") is False or data.get("Healthy") is False:
        weight = 0
    return [_found(service, value.text(data, "ID") or identity, address, version, tags, weight)]


_PARSERS: Final[dict[Layout, Callable[[_Value], list[Found]]]] = {
    "go-micro": _go_micro,
    "kratos": _kratos,
    "go-zero": _go_zero,
    "grpc-go": _grpc_go,
    "kitex": _kitex,
    "dubbo-go": _dubbo_go,
}


def _found(
    service: str,
    identity: str,
    address: str,
    version: str,
    tags: Mapping[str, str],
    weight: int | None = None,
    **more: str,
) -> Found:
    metadata = tuple(sorted(tags.items()))
    return Found(
        service, identity, address, version, _tagged_weight(tags) if weight is None else weight, metadata, **more
    )


def _tagged_weight(tags: Mapping[str, str]) -> int:
    """Kratos has weights as metadata. What is no weight is only a tag."""
    text = tags.get("weight", "")
    plausible = text.isascii() and text.isdigit() and len(text) <= 7
    return int(text) if plausible and int(text) <= values.MAX_INSTANCE_WEIGHT else WEIGHT


def _tags(data: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: each if isinstance(each, str) else orjson.dumps(each).decode()
        for name, each in data.items()
        if name and each is not None
    }


def _fail(
    key: str, path: str, expected: str, value: str = "", message: str = "", at: tuple[int, int] = (1, 1)
) -> NoReturn:
    raise ConfigErrors([ConfigError(key, *at, path, value, expected, message)])
