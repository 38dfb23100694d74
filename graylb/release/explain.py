"""A decision in words: what a condition asks for, and why a rule did not match. One line each.

Pure text: outcomes and values come from the matcher's own trace, nothing is evaluated again here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from graylb.model.snapshot import Condition, Match, Subset
from graylb.model.snapshot_faults import Fault, Mirror
from graylb.model.snapshot_limits import Bounds, ServiceLimits
from graylb.model.snapshot_retries import Retries

MAX_SHOWN = 80
"""Characters of one value; longer ones are cut."""

Values = Mapping[tuple[str, str], bytes | str | None]
"""(kind, name) of a field -> its value in the request, None when it is absent."""


def describe(condition: Condition) -> str:
    """`header user-group exact "beta"`"""
    return f"{_field(condition)} {_expectation(condition)}"


def describe_match(match: Match) -> str:
    """All conditions, then the groups of which none may hold."""
    parts = [describe(condition) for condition in match.all]
    parts += [f"not ({_group(group)})" for group in match.none]
    return " and ".join(parts) or "every request"


def describe_subset(subset: Subset) -> str:
    """`version v2`, `semver ">=2,<3" and metadata env=gray`"""
    parts = [] if subset.version is None else [f"version {subset.version}"]
    if subset.semver is not None:
        parts.append(f"semver {_quoted(subset.semver)}")
    parts += [f"metadata {key}={value}" for key, value in subset.metadata]
    return " and ".join(parts) or "every instance"


def describe_fault(fault: Fault) -> str:
    """`10% wait 2 s, 5% get status 503 (gRPC unavailable)`"""
    parts = []
    if fault.delay is not None:
        parts.append(f"{fault.delay.percent:g}% wait {fault.delay.time:g} s")
    if fault.abort is not None:
        answer = f"status {fault.abort.status} (gRPC {fault.abort.grpc_status})"
        parts.append(f"{fault.abort.percent:g}% get {answer}")
    return ", ".join(parts)


def describe_mirror(mirror: Mirror) -> str:
    """`10% of GET, HEAD are copied to version v2`"""
    which = f"{mirror.percent:g}% of {', '.join(mirror.methods)}" if mirror.methods else f"{mirror.percent:g}%"
    return f"{which} are copied to {describe_subset(mirror.to)}"


def describe_retries(retries: Retries, method: str) -> str:
    """`up to 2 attempts, after connect-failure, refused-stream, reset; a second one beside it when late by 0.1 s`

    method: of the request. What nobody can have looked at is sent again whatever it is.
    """
    if method not in retries.methods:
        answer = f" and gRPC {', '.join(retries.grpc_status)}" if retries.grpc_status else ""
        return f"only what nobody has looked at{answer}, for {method} is none of {', '.join(retries.methods)}"
    causes = [*retries.on, *map(str, retries.statuses), *(f"gRPC {each}" for each in retries.grpc_status)]
    told = f"up to {retries.attempts} attempts, after {', '.join(causes) or 'nothing but what nobody has looked at'}"
    if retries.per_try_timeout:
        told += f"; each within {retries.per_try_timeout:g} s"
    if retries.hedge is not None:
        told += f"; a second one beside it when late by {retries.hedge.delay:g} s"
    return told + ("; may leave its version" if retries.other_version else "")


def describe_limits(limits: ServiceLimits, rule: str | None) -> list[str]:
    """`at most 100 requests at once in the service`, `10 requests a second (rate callers)`: one text for each limit.

    rule: that decides the request, None when none does; rates of other rules are left out.
    """
    told = []
    for bounds, where in ((limits.service, "service"), (limits.version, "version"), (limits.instance, "instance")):
        told += [f"{each} in the {where}" for each in _bounds(bounds)]
    for rate in limits.rates:
        if rate.rule in (None, rule):
            by = f" by {' or '.join(f'{kind} {name}'.strip() for kind, name in rate.key)}" if rate.key else ""
            told.append(f"{rate.rate:g} requests a second{by}, {rate.burst} at once (rate {rate.name})")
    return told


def _bounds(bounds: Bounds) -> list[str]:
    told = []
    if bounds.requests:
        told.append(f"at most {bounds.requests} requests at once")
    if bounds.pending:
        told.append(f"at most {bounds.pending} waiting requests")
    if bounds.connections:
        told.append(f"at most {bounds.connections} connections")
    if bounds.adaptive is not None:
        told.append(f"an adaptive limit of {bounds.adaptive.min} to {bounds.adaptive.max} requests at once")
    return told


def why_not(match: Match, outcomes: Sequence[bool], groups: Sequence[Sequence[bool]], values: Values) -> str:
    """The first reason for which the match does not hold; "" when it holds.

    outcomes: of each condition of `match.all`. groups: of each condition of each group of `match.none`. Both with the
    condition's own negation applied, in the match's order.
    """
    for condition, outcome in zip(match.all, outcomes, strict=True):
        if not outcome:
            return f"{_actual(condition, values)}, expected {_expectation(condition)}"
    for group, held in zip(match.none, groups, strict=True):
        if all(held):
            actual = " and ".join(dict.fromkeys(_actual(condition, values) for condition in group))
            return f"{actual}, excluded by not ({_group(group)})"
    return ""


def _group(conditions: Sequence[Condition]) -> str:
    return " and ".join(map(describe, conditions))


def _field(condition: Condition) -> str:
    return f"{condition.kind} {condition.name}" if condition.name else condition.kind


def _expectation(condition: Condition) -> str:
    if condition.op == "present":
        return "absent" if condition.negate else "present"
    # by whole elements is what a prefix of a path always is, as the document has it
    op = "prefix" if condition.op == "path_prefix" else condition.op
    if condition.list_name is not None:
        operand = f"list {condition.list_name}"
    elif op in ("in", "cidr"):
        shown = [_quoted(value) for value in condition.values[:3]]
        more = len(condition.values) - len(shown)
        operand = f"[{', '.join(shown)}{f' and {more} more' if more else ''}]"
    else:
        operand = " or ".join(map(_quoted, condition.values))
    return f"{'not ' if condition.negate else ''}{op} {operand}"


def _actual(condition: Condition, values: Values) -> str:
    value = values.get((condition.kind, condition.name))
    return f"{_field(condition)} is {'absent' if value is None else _quoted(value)}"


def _quoted(value: bytes | str) -> str:
    """In double quotes, control characters escaped: what a client sent must not write to a terminal."""
    text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
    text = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in quoted)
