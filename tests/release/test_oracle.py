"""The oracle against examples written by hand from the release model: it must not err together with the matcher."""

from __future__ import annotations

import itertools

import pytest

from graylb.model.snapshot import (
    Condition,
    Fallback,
    FieldKind,
    Instance,
    Listener,
    Match,
    Operator,
    Route,
    Rule,
    Service,
    Snapshot,
    Split,
    Subset,
)
from graylb.model.snapshot import StickyKey as Key
from graylb.release.slots import allocate
from tests import oracle, strategies
from tests.oracle import Request


def request(target: str = "/", *headers: tuple[str, str], method: str = "GET", host: str = "example.com") -> Request:
    return Request(method, target, (("Host", host), *headers))


# From the most to the least specific; each next one is tried only where those before do not fit.
ROUTES = (
    Route(
        "exact host, exact path, method", "a.test", "exact", "/x/y", Match((Condition("method", "exact", ("POST",)),))
    ),
    Route(
        "exact host, exact path, header", "a.test", "exact", "/x/y", Match((Condition("header", "present", (), "h"),))
    ),
    Route("exact host, exact path, query", "a.test", "exact", "/x/y", Match((Condition("query", "present", (), "q"),))),
    Route("exact host, exact path", "a.test", "exact", "/x/y"),
    Route("exact host, long regex", "a.test", "regex", "/x/[a-z]+"),
    Route("exact host, short regex", "a.test", "regex", "/x/.+"),
    Route("exact host, long prefix", "a.test", "prefix", "/x/y/"),
    Route("exact host, short prefix", "a.test", "prefix", "/x"),
    Route("long wildcard", "*.b.test", "prefix", "/x"),
    Route("short wildcard", "*.test", "prefix", "/x/y"),
    Route("any host", "*", "prefix", "/"),
)


@pytest.mark.parametrize(
    ("asked", "route"),
    [
        (request("/x/y?q=1", ("H", "1"), method="POST", host="a.test"), "exact host, exact path, method"),
        (request("/x/y?q=1", ("H", "1"), host="A.TEST:80"), "exact host, exact path, header"),
        (request("/x/y?q", host="a.test."), "exact host, exact path, query"),
        (request("/x/y?", host="a.test"), "exact host, exact path"),
        (request("/x/z", host="a.test"), "exact host, long regex"),
        (request("/x/Z", host="a.test"), "exact host, short regex"),
        (request("/x/y/z", host="a.test"), "exact host, short regex"),
        (request("/x/", host="a.test"), "exact host, short prefix"),
        (request("/x", host="a.test"), "exact host, short prefix"),
        (request("/xy", host="a.test"), "any host"),
        (request("/x/y", host="a.b.test"), "long wildcard"),
        (request("/x/y", host="c.a.b.test"), "long wildcard"),
        (request("/x/y", host="b.test"), "short wildcard"),
        (request("/x", host="b.test"), "any host"),
        (request("/x/y", host="test"), "any host"),
        (request("/", host="[::1]:80"), "any host"),
        (request("*", method="OPTIONS"), None),
    ],
)
def test_routes(asked: Request, route: str | None) -> None:
    for order in (ROUTES, ROUTES[::-1]):
        found = oracle.find_route(order, asked)
        assert (found.name if found else None) == route


@pytest.mark.parametrize(
    ("kind", "name", "asked", "value"),
    [
        ("header", "x", request("/", ("X", "a"), ("x", ""), ("X", "b")), "a, , b"),
        ("header", "x", request("/", ("x", "")), ""),
        ("header", "x", request(), None),
        ("cookie", "a", request("/", ("Cookie", "b=1; a=2; a=3")), "2"),
        ("cookie", "a", request("/", ("Cookie", "b=1"), ("cookie", 'a = "x=y" ;')), "x=y"),
        ("cookie", "a", request("/", ("Cookie", "a; A=1")), None),
        ("cookie", "a", request("/", ("Cookie", 'a="')), '"'),
        ("query", "a b", request("/?a%20b=%2B+%zz%4&a+b=2"), "+ %zz%4"),
        ("query", "a", request("/?b&a&a=1"), ""),
        ("query", "a", request("/?A=1"), None),
        ("query", "a", request("/?"), None),
        ("metadata", "x", request("/", ("x", "1")), None),
        ("metadata", "x", request("/", ("x", "1"), ("content-type", "application/grpc+proto")), "1"),
        ("grpc_service", "", request("/a.B/Get", ("content-type", "application/grpc")), "a.B"),
        ("grpc_method", "", request("/a.B/Get", ("content-type", "application/grpc")), "Get"),
        ("grpc_method", "", request("/a.B/Get/", ("content-type", "application/grpc")), None),
        ("grpc_method", "", request("/a.B/Get"), None),
        ("api_version", "", request("/api/v1/users"), "v1"),
        ("api_version", "", request("/v2.1"), "v2.1"),
        ("api_version", "", request("/app/v1"), None),
        ("api_version", "", request("/v1x", ("Accept", "text/html, application/vnd.a.b.v3+json;q=1")), "v3"),
        ("api_version", "", request("/", ("Accept", "application/vnd.v3+json")), None),
        ("api_version", "", request("/", ("Accept", "application/vnd.a.v1.2+json")), "v1.2"),
        ("device", "", request(), None),
        ("device", "", request("/", ("User-Agent", "")), "desktop"),
        ("device", "", request("/", ("User-Agent", "Android Mobile")), "mobile"),
        ("device", "", request("/", ("User-Agent", "Android")), "tablet"),
        ("device", "", request("/", ("User-Agent", "iPad; GoogleBot")), "bot"),
        ("device", "", request("/", ("User-Agent", "iPad"), ("Sec-CH-UA-Mobile", "?1")), "mobile"),
        ("mark", "", request("/", ("baggage", "k=v, x-service-version=v%32;p=1"), ("X-Service-Version", "v1")), "v1"),
        ("mark", "", request("/", ("baggage", "k=v, x-service-version=v%32;p=1")), "v2"),
        ("mark", "", request("/", ("baggage", "X-Service-Version=v2")), None),
        ("client_ip", "", request(), "192.0.2.1"),
    ],
)
def test_fields(kind: FieldKind, name: str, asked: Request, value: str | None) -> None:
    assert oracle.field_value(kind, name, asked) == value


@pytest.mark.parametrize(
    ("op", "values", "hits", "misses"),
    [
        ("exact", ("a",), ["a"], ["A", "ab", ""]),
        ("prefix", ("a",), ["a", "ab"], ["ba"]),
        ("suffix", ("a",), ["a", "ba"], ["ab"]),
        ("regex", ("a|b+",), ["a", "bb"], ["ab", "xa"]),
        ("present", (), ["", "a"], []),
        ("in", ("a", "ä"), ["a", "Ã¤"], ["ä", "a, a"]),
        ("number", (">=1,<2",), ["1", "1.99"], ["2", "x"]),
        ("semver", ("<2",), ["v1.9"], ["2.0.0-rc1", "x"]),
    ],
)
def test_operators(op: Operator, values: tuple[str, ...], hits: list[str], misses: list[str]) -> None:
    for negate, value in itertools.product((False, True), [*hits, *misses, None]):
        asked = request() if value is None else request("/", ("x", value))
        holds = oracle.condition_holds(Condition("header", op, values, "x", negate), asked, None)
        assert holds == ((value in hits) != negate)


INSTANCES = (
    Instance("127.0.0.1:1", "v1"),
    Instance("127.0.0.1:2", "v2", weight=0),
    Instance("127.0.0.1:3", "v3"),
)
SPLIT = Split((("v1", 50.0), ("v3", 50.0)), "salt", str(allocate(None, {"v1": 50, "v3": 50}, "v1")))


def service(fallback: Fallback, stable: str = "v1") -> Snapshot:
    rules = (
        Rule("to v2", Match((Condition("header", "exact", ("2",), "to"),)), Subset(version="v2")),
        Rule("to v3", Match((Condition("header", "present", (), "to"),)), Subset(semver="3.x")),
    )
    made = Service(
        "s", stable, SPLIT, (Key("header", "id"), Key("client_ip")), fallback, "weighted", rules, (), INSTANCES
    )
    return Snapshot(1, (Listener("127.0.0.1:0"),), (Route("r", "*", "prefix", "/", service="s"),), (made,))


def only(decision: oracle.Decision) -> oracle.Outcome:
    (outcome,) = decision.outcomes.values()
    return outcome


def test_the_first_rule_that_holds_decides_and_draws_nothing() -> None:
    decision = oracle.decide(service("stable"), request("/", ("to", "3"), ("id", "u")))
    assert (decision.rule, decision.slot, decision.draw_used) == ("to v3", None, False)
    assert only(decision) == oracle.Outcome(None, "v3", frozenset({"127.0.0.1:3"}), False, None)


@pytest.mark.parametrize(
    ("fallback", "stable", "got"),
    [
        ("strict", "v1", set()),
        ("stable", "v1", {"127.0.0.1:1"}),
        ("stable", "v2", set()),
        ("any", "v1", {"127.0.0.1:1"}),
        ("any", "v2", {"127.0.0.1:1", "127.0.0.1:3"}),
    ],
)
def test_the_fallback_ladder(fallback: Fallback, stable: str, got: set[str]) -> None:
    decision = oracle.decide(service(fallback, stable), request("/", ("to", "2")))
    assert decision.rule == "to v2"
    outcome = only(decision)
    assert outcome.candidates == got
    assert (outcome.wanted, outcome.fallback) == ("v2", bool(got))
    assert outcome.status == (None if got else 503)


def test_the_first_sticky_key_that_is_not_empty_names_the_caller() -> None:
    by_address = oracle.decide(service("stable"), request("/", ("id", "")))
    assert by_address.slot == oracle.slot_of("salt", "192.0.2.1")
    by_header = oracle.decide(service("stable"), request("/", ("id", "u")))
    assert by_header.slot == oracle.slot_of("salt", "u")
    assert only(by_header).wanted == ("v1" if by_header.slot < 5000 else "v3")


def test_the_strategies_reach_every_kind_of_decision() -> None:
    seen = set()
    for snapshot, requests in strategies.random_cases(seed=3, count=150, size=8):
        for decision in (oracle.decide(snapshot, asked) for asked in requests):
            outcomes = list(decision.outcomes.values())
            seen |= {
                ("status", decision.status if not outcomes else outcomes[0].status),
                ("rule", decision.rule is not None),
                ("slot", decision.slot is not None),
                ("draw", decision.draw_used),
                ("fallback", any(outcome.fallback for outcome in outcomes)),
            }
    assert seen >= {("status", status) for status in (None, 301, 302, 404, 503)}
    assert seen >= set(itertools.product(("rule", "slot", "draw", "fallback"), (True, False)))
