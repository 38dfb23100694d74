"""What the proxy does with one request and why, by the proxy's own matcher on the proxy's own table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from graylb import _fast
from graylb.model.snapshot import MARK_RULE, Service, Snapshot
from graylb.release import marks
from graylb.release.explain import (
    describe_fault,
    describe_limits,
    describe_match,
    describe_mirror,
    describe_retries,
    describe_subset,
    why_not,
)

Header = tuple[str, str]


def explain(
    snapshot: Snapshot,
    image: bytes,
    *,
    method: str = "GET",
    path: str = "/",
    headers: Sequence[Header] = (),
    client_ip: str = "127.0.0.1",
    listener: str | None = None,
    draw: int = 0,
    pick: int = 0,
) -> dict[str, Any]:
    """The decision as a dict: outcome, listener, route, service, rule or slot or draw, version, instance, fallback,
    revision.

    listener: the name of the one that the request came in by, as `choose_listener` takes it. draw, pick: which draw of
    the anonymous split and which pick of an instance, as a worker's counters would have them. `because` says it in one
    line; `fault`, `mirror`, `limits` and `retries` say what may be done to such requests, as it is configured;
    `earlier_rules` says of each rule before the one that holds why it does not. Raises ValueError when the request is
    not one that the proxy would accept.
    """
    listener = choose_listener(snapshot, listener)
    table = _fast.Table(image)
    mark, headers = _marked(snapshot, listener, client_ip, headers)
    head = request_head(method, path, headers)
    bit = table.meta["listener_bits"][listener] if listener is not None else 0
    told = {"listener": listener, "mark": mark, **table.decide(head, client_ip, draw=draw, pick=pick, listener=bit)}
    service_number, rule_number = told.pop("service_number"), told.pop("rule_number")
    subset_number = told.pop("subset_number")
    if service_number < 0:
        return told | {"because": _without_service(told), "earlier_rules": []}
    service = next(each for each in snapshot.services if each.name == told["service"])
    upto = rule_number if rule_number >= 0 else len(service.rules) - 1
    values, traced = table.trace(head, client_ip, service_number, upto)
    earlier = []
    for number, (rule, (holds, outcomes, groups)) in enumerate(zip(service.rules, traced, strict=False)):
        if number == rule_number:
            break
        if holds:
            raise AssertionError(f"rule {rule.name} holds, yet the index passed it over: please report this")
        earlier.append({"rule": rule.name, "reason": why_not(rule.match, outcomes, groups, values)})
    fault = (service.rules[rule_number].fault if rule_number >= 0 else None) or service.fault
    told["fault"] = describe_fault(fault) if fault is not None else None
    told["mirror"] = describe_mirror(service.mirror) if service.mirror is not None else None
    told["limits"] = describe_limits(service.limits, told["rule"])
    told["retries"] = describe_retries(service.retries, method)
    told["candidates"] = [] if subset_number is None else _shares(table.members(service_number, subset_number))
    return told | {"because": _because(service, told), "earlier_rules": earlier}


def _marked(
    snapshot: Snapshot, listener: str | None, client_ip: str, headers: Sequence[Header]
) -> tuple[str | None, Sequence[Header]]:
    """The mark that the listener believes, and the headers as rules see them."""
    if snapshot.marks is None:
        return None, headers
    roles = {each.role for each in snapshot.listeners if listener in (None, each.name)}
    role = roles.pop() if len(roles) == 1 else "edge"
    secret = snapshot.marks.key.text if snapshot.marks.key is not None else ""
    return marks.arriving(snapshot.marks, role, client_ip, headers, secret, int(time.time()))


def choose_listener(snapshot: Snapshot, name: str | None) -> str | None:
    """That listener, or when none is named the only one; None where it makes no difference to any route.

    Raises ValueError when there is no such listener, or when one must be named.
    """
    names = list(dict.fromkeys(each.name for each in snapshot.listeners))
    if name is not None and name not in names:
        raise ValueError(f"unknown listener {name!r}; expected one of {', '.join(names)}")
    if name is None and len(names) > 1 and any(route.listeners for route in snapshot.routes):
        raise ValueError(f"routes differ by listener; expected one of {', '.join(names)}")
    return names[0] if name is None and len(names) == 1 else name


def request_head(method: str, path: str, headers: Sequence[Header]) -> bytes:
    """The head as a client would send it; a Host is added when none is given. ValueError for what no head can hold."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.insert(1, "host: localhost")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a request line or header with a line break")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def _without_service(told: dict[str, Any]) -> str:
    if told["outcome"] == "redirect":
        return f"route {told['route']} redirects"
    if told["outcome"] != "no-route":
        return "the head is too large"
    return "no route matches this host and path" + (f" on listener {told['listener']}" if told["listener"] else "")


def _shares(members: Sequence[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """The instances that might have been picked, with the share of picks that each gets."""
    total = sum(weight for _, _, weight in members)
    return [{"instance": address, "version": version, "share": weight / total} for address, version, weight in members]


def _because(service: Service, told: dict[str, Any]) -> str:
    rule = next((each for each in service.rules if each.name == told["rule"]), None)
    if rule is not None and rule.to is not None and rule.name.startswith(MARK_RULE):
        what = "of no version here" if rule.name == f"{MARK_RULE}*" else "there"
        reason = f"no rule holds, and the mark {told['mark']} is {what}: {describe_subset(rule.to)}"
    elif rule is not None and rule.to is not None:
        reason = f"rule {rule.name} holds ({describe_match(rule.match)}) and asks for {describe_subset(rule.to)}"
    elif told["slot"] is not None:
        where = f"the split of rule {rule.name}" if rule is not None else "the split"
        reason = f"the sticky key falls into slot {told['slot']}, which {told['wanted']} owns in {where}"
    elif told["draw"] is not None:
        where = f"the split of rule {rule.name}" if rule is not None else "the split"
        reason = f"no sticky key: draw {told['draw']} of {where} names {told['wanted']}"
    else:
        reason = f"no rule holds and there is no split: the stable version {service.stable}"
    if told["outcome"] == "no-instance":
        return f"{reason}; no instance of it is available, and the fallback finds none either"
    return f"{reason}; it has no instance, so the fallback gives {told['version']}" if told["fallback"] else reason
