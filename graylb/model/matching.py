"""Validated conditions -> those of the snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from graylb.model.conditions import Conditions, Match, Operators
from graylb.model.snapshot import CLIENT_CERTIFICATE, Condition, FieldKind, Operator
from graylb.model.snapshot import Match as SnapshotMatch


def match(part: Match) -> SnapshotMatch:
    return SnapshotMatch(tuple(_conditions(part)), tuple(tuple(_conditions(group)) for group in part.not_ or ()))


def conditions_of(kind: FieldKind, tests: Mapping[str, Operators] | None) -> list[Condition]:
    """Of one kind that has names."""
    return [condition(kind, tested, name) for name, tested in (tests or {}).items()]


def condition(kind: FieldKind, tested: Operators, name: str = "") -> Condition:
    negate = False
    while tested.not_ is not None:
        negate, tested = not negate, tested.not_
    ((key, value),) = tested.given().items()
    operator = cast(Operator, key)
    if operator == "present":
        return Condition(kind, "present", (), name, negate is value)
    if operator == "in" and isinstance(value, str):
        return Condition(kind, "in", (), name, negate, list_name=value)
    texts = tuple(dict.fromkeys(value)) if operator == "in" else (value,)
    if kind == "client_ip":
        operator = "cidr"
    elif kind == "path" and operator == "prefix":
        operator = "path_prefix"
    return Condition(kind, operator, texts, name, negate)


def _conditions(part: Conditions) -> Iterator[Condition]:
    if part.path is not None:
        yield condition("path", part.path)
    if part.method is not None:
        yield condition("method", part.method)
    yield from conditions_of("header", part.headers)
    yield from conditions_of("cookie", part.cookies)
    yield from conditions_of("query", part.query)
    yield from conditions_of("metadata", part.metadata)
    if part.grpc is not None and part.grpc.service is not None:
        yield condition("grpc_service", part.grpc.service)
    if part.grpc is not None and part.grpc.method is not None:
        yield condition("grpc_method", part.grpc.method)
    if part.client_ip is not None:
        yield condition("client_ip", part.client_ip)
    if part.client_certificate is not None:
        yield condition("header", part.client_certificate, CLIENT_CERTIFICATE)
    if part.api_version is not None:
        yield condition("api_version", part.api_version)
    if part.device is not None:
        yield condition("device", part.device)
    if part.mark is not None:
        yield condition("mark", part.mark)
