"""The version-shift matrix against the oracle, request by request."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import defaultdict
from typing import Any

import pytest

from graylb import table
from graylb.model.snapshot import Condition, Listener, Marks, Match, Route, Rule, Service, Snapshot, Subset
from graylb.release.access_log import Fields
from graylb.release.replay import NO_SERVICE, UNROUTED
from graylb.release.shares import ANY, NOBODY, Shares, shift
from graylb.replay import REFUSED, Replay
from tests import oracle, strategies
from tests.release.test_diff import snapshot, split, users


def replay(old: Snapshot, new: Snapshot) -> Replay:
    return Replay((old, table.compile(old)), (new, table.compile(new)), Fields.of(()))


def logged(request: oracle.Request) -> bytes:
    """A line of our access log."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.lower(), []).append(value.encode("latin-1").decode())
    record: dict[str, Any] = {
        "method": request.method,
        "path": request.target,
        "headers": headers,
        "client_ip": request.client_ip,
        "listener": request.listener,
    }
    return json.dumps(record).encode() + b"\n"


def answers(whole: Snapshot, request: oracle.Request) -> tuple[str, Shares]:
    """The service that the oracle sends a request to, and in what shares which versions answer."""
    decision = oracle.decide(whole, request)
    if decision.service is None:
        label = UNROUTED if decision.route is None else f"redirect by {decision.route}"
        return NO_SERVICE, {label: 1.0}
    service = next(each for each in whole.services if each.name == decision.service)
    rule = next((each for each in service.rules if each.name == decision.rule), None)
    weights: dict[str | None, float] = dict.fromkeys(decision.outcomes, 1.0)
    if decision.draw_used:
        drawn = oracle.split_of(service, rule)
        assert drawn is not None
        weights = dict(drawn.weights)
    found: Shares = defaultdict(float)
    for wanted, weight in weights.items():
        for version, share in shares_of(service, decision.outcomes[wanted]).items():
            found[version] += share * weight / sum(weights.values())
    return service.name, dict(found)


def shares_of(service: Service, outcome: oracle.Outcome) -> Shares:
    if not service.instances:
        return {outcome.wanted or ANY: 1.0}
    usable = [instance for instance in service.instances if instance.address in outcome.candidates and instance.weight]
    total = sum(instance.weight for instance in usable)
    found: Shares = defaultdict(float)
    for instance in usable:
        found[instance.version] += instance.weight / total
    return dict(found) or {NOBODY: 1.0}


@pytest.mark.parametrize("seed", range(4))
def test_the_matrix_is_what_the_oracle_says(seed: int) -> None:
    choose = strategies.Chooser(random.Random(seed).randint)
    seen: set[str] = set()
    for _ in range(12):
        old, new = strategies.make_snapshot(choose), strategies.make_snapshot(choose)
        if choose.chance(2):
            new = dataclasses.replace(old, services=tuple(changed(choose, each) for each in old.services))
        requests = [strategies.make_request(choose, choose.one((old, old, new))) for _ in range(40)]
        work = replay(old, new)
        work.feed("log", [logged(each) for each in requests])
        report = work.report()
        assert (report.requests, report.bad) == (len(requests), ())
        expected: dict[str, dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))
        for request in requests:
            (service, before), (then, after) = answers(old, request), answers(new, request)
            elsewhere = f"{then}: " if then not in (service, NO_SERVICE) else ""
            for pair, share in shift(before, {elsewhere + name: each for name, each in after.items()}).items():
                expected[service][pair] += share
        for matrix in report.matrices:
            assert matrix.moves == pytest.approx(dict(expected.pop(matrix.service)))
            assert sum(matrix.moves.values()) == pytest.approx(matrix.requests)
            seen |= {name for pair in matrix.moves for name in pair}
        assert not expected
    assert {UNROUTED, NOBODY} <= seen


def changed(choose: strategies.Chooser, service: Service) -> Service:
    """Another configuration of a service, as releases go: a rule less, another split, an instance less."""
    return dataclasses.replace(
        service,
        rules=service.rules[1:],
        split=choose.one((None, service.split)),
        instances=service.instances[choose.number(0, 1) :],
    )


def lines(*records: dict[str, Any]) -> list[bytes]:
    return [json.dumps({"path": "/users", **record}).encode() for record in records]


def test_what_decides_and_which_route_is_told() -> None:
    old = snapshot(users(split=split(v1=1)))
    new = dataclasses.replace(old, routes=(Route("other", "*", "prefix", "/users/x", service="users"), *old.routes))
    work = replay(old, new)
    work.feed("log", lines({}, {"path": "/users/x"}, {"path": "/nowhere"}))
    nowhere, found = work.report().matrices
    assert found.routes == {("users", "users"): 1, ("users", "other"): 1}
    assert found.by == {("the split", "the split"): 2}
    assert (found.changed, found.failing, found.drawn, found.sticky) == (0, 0, 2, True)
    assert (nowhere.service, nowhere.moves) == (NO_SERVICE, {(UNROUTED, UNROUTED): 1})


def test_sticky_callers_are_counted_exactly_and_others_as_expected() -> None:
    first = split(v1=95, v2=5)
    old, new = snapshot(users(split=first)), snapshot(users(split=split(first, v1=90, v2=10)))
    work = replay(old, new)
    keyed = [{"headers": {"x-user-id": f"u{n}"}} for n in range(2000)]
    work.feed("log", lines(*keyed, *[{}] * 1000))
    (found,) = work.report().matrices
    before, after = (
        [oracle.decide(each, oracle.Request(target="/users", headers=(("x-user-id", f"u{n}"),))) for n in range(2000)]
        for each in (old, new)
    )
    moved = sum([*a.outcomes] == ["v1"] and [*b.outcomes] == ["v2"] for a, b in zip(before, after, strict=True))
    assert 50 < moved < 150
    assert found.moves["v1", "v2"] == pytest.approx(moved + 50)
    assert ("v2", "v1") not in found.moves
    assert found.drawn == 1000


def test_requests_that_would_fail() -> None:
    old = snapshot(users(split=split(v1=1)))
    strict = users(split=split(v9=1), fallback="strict", stable="v9")
    work = replay(old, snapshot(strict))
    work.feed("log", lines({}, {}))
    (found,) = work.report().matrices
    assert (found.moves, found.failing) == ({("v1", NOBODY): 2}, 2)
    gone = replay(old, snapshot())
    gone.feed("log", lines({}))
    assert gone.report().matrices[0].failing == 1


def test_lines_that_are_no_request_are_counted_with_the_first_of_each_kind() -> None:
    whole = snapshot(users())
    work = replay(whole, whole)
    work.feed("a", [b"\n", *lines({}), b"{\n", b"  \n"])
    work.feed("b", [*lines({"path": "/a b"}, {"path": "no"}), b"{", *lines({"method": "G T"})], first=10)
    report = work.report()
    assert [(bad.reason, bad.count, bad.first) for bad in report.bad] == [
        (REFUSED, 3, ("b", 10)),
        ("not JSON", 2, ("a", 3)),
    ]
    assert (report.lines, report.requests, report.unaddressed) == (6, 1, 1)
    assert json.loads(json.dumps(report.to_data()))["bad"][1] == {"reason": "not JSON", "lines": 2, "first": ["a", 3]}


def test_marks_are_believed_as_the_listeners_of_each_side_believe_them() -> None:
    """A forged mark in an edge's log decided as if it had been honoured."""
    mark = Condition("mark", "exact", ("v2",))
    marked = users(rules=(Rule("marked", Match((mark,)), Subset("v2")), Rule("others", Match(), Subset("v1"))))
    known = {"listeners": (Listener("127.0.0.1:1", name="edge"), Listener("127.0.0.1:2", name="mesh", role="inbound"))}
    old = snapshot(marked, marks=Marks(trusted=("10.0.0.0/8",)), **known)
    new = snapshot(marked, marks=Marks(), **known)
    version, baggage = {"X-Service-Version": "v2"}, {"baggage": "a=1,x-service-version=v2"}
    work = replay(old, new)
    work.feed(
        "log",
        lines(
            {"headers": version, "client_ip": "192.0.2.1", "listener": "edge"},
            {"headers": baggage, "client_ip": "192.0.2.1"},
            {"headers": version, "client_ip": "10.1.2.3", "listener": "edge"},
            {"headers": baggage, "client_ip": "10.1.2.3", "listener": "edge"},
            {"headers": version, "client_ip": "192.0.2.1", "listener": "mesh"},
            {"client_ip": "10.1.2.3", "listener": "edge"},
        ),
    )
    (found,) = work.report().matrices
    assert found.moves == {("v1", "v1"): 3, ("v2", "v1"): 2, ("v2", "v2"): 1}


def test_a_request_without_an_address_satisfies_no_condition_on_it() -> None:
    everywhere = Condition("client_ip", "cidr", ("0.0.0.0/0", "::/0"))
    rules = (Rule("known", Match((everywhere,)), Subset("v2")), Rule("unknown", Match(), Subset("v3")))
    whole = snapshot(users(rules=rules))
    work = replay(whole, whole)
    work.feed("log", lines({}, {"client_ip": "::1"}, {"client_ip": "-"}))
    (found,) = work.report().matrices
    assert found.moves == {("v3", "v3"): 2, ("v2", "v2"): 1}
    assert work.report().unaddressed == 2
