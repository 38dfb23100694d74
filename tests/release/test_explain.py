from __future__ import annotations

import dataclasses

import pytest

from graylb.model.snapshot import Condition, Match, Subset
from graylb.model.snapshot_limits import Adaptive, Bounds, Rate, ServiceLimits
from graylb.model.snapshot_retries import Hedge, Retries
from graylb.release.explain import (
    describe,
    describe_limits,
    describe_match,
    describe_retries,
    describe_subset,
    why_not,
)
from tests import oracle, strategies

GROUP = Condition("header", "exact", ("beta",), "user-group")
INTERNAL = Condition("path", "path_prefix", ("/internal",))


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (GROUP, 'header user-group exact "beta"'),
        (dataclasses.replace(GROUP, negate=True), 'header user-group not exact "beta"'),
        (INTERNAL, 'path prefix "/internal"'),
        (Condition("cookie", "present", (), "uid"), "cookie uid present"),
        (Condition("cookie", "present", (), "uid", True), "cookie uid absent"),
        (Condition("query", "in", ("a", "b"), "exp"), 'query exp in ["a", "b"]'),
        (Condition("query", "in", tuple("abcdef"), "exp"), 'query exp in ["a", "b", "c" and 3 more]'),
        (Condition("header", "in", (), "x-user-id", True, "staff-ids"), "header x-user-id not in list staff-ids"),
        (Condition("client_ip", "cidr", ("10.0.0.0/8",)), 'client_ip cidr ["10.0.0.0/8"]'),
        (Condition("mark", "semver", (">=1.2,<2",)), 'mark semver ">=1.2,<2"'),
        (Condition("header", "regex", ('a"\\d',), "x"), 'header x regex "a\\"\\\\d"'),
        (Condition("header", "exact", ("x" * 100,), "x"), f'header x exact "{"x" * 79}…"'),
    ],
)
def test_describe(condition: Condition, text: str) -> None:
    assert describe(condition) == text


def test_why_not_names_the_first_condition_that_fails() -> None:
    match = Match((GROUP, INTERNAL))
    values = {("header", "user-group"): None, ("path", ""): b"/x"}
    assert why_not(match, [False, False], [], values) == 'header user-group is absent, expected exact "beta"'
    assert why_not(match, [True, False], [], values) == 'path is "/x", expected prefix "/internal"'
    assert why_not(match, [True, True], [], values) == ""


def test_why_not_names_the_group_that_excludes() -> None:
    match = Match((), ((GROUP, INTERNAL), (INTERNAL,)))
    values = {("header", "user-group"): "alpha", ("path", ""): "/internal/x"}
    reason = why_not(match, [], [[False, True], [True]], values)
    assert reason == 'path is "/internal/x", excluded by not (path prefix "/internal")'
    both = why_not(match, [], [[True, True], [True]], {**values, ("header", "user-group"): "beta"})
    assert both.startswith('header user-group is "beta" and path is "/internal/x", excluded by not (header user-group')


def test_describe_retries() -> None:
    assert describe_retries(Retries(), "GET") == "up to 2 attempts, after connect-failure, refused-stream, reset"
    own = Retries((), (503,), ("unavailable",), 3, ("GET",), 0.5, other_version=True, hedge=Hedge(0.1))
    assert describe_retries(own, "GET") == (
        "up to 3 attempts, after 503, gRPC unavailable; each within 0.5 s; a second one beside it when late by 0.1 s; "
        "may leave its version"
    )
    assert describe_retries(own, "POST") == (
        "only what nobody has looked at and gRPC unavailable, for POST is none of GET"
    )
    assert describe_retries(Retries(()), "GET").endswith("after nothing but what nobody has looked at")


def test_describe_limits() -> None:
    assert describe_limits(ServiceLimits(), None) == []
    limits = ServiceLimits(
        Bounds(requests=100, adaptive=Adaptive()),
        Bounds(pending=5),
        Bounds(connections=7),
        (Rate("all", 10, 20), Rate("callers", 1.5, key=(("header", "x-user-id"), ("client_ip", "")), rule="testers")),
    )
    every = [
        "at most 100 requests at once in the service",
        "an adaptive limit of 10 to 1000 requests at once in the service",
        "at most 5 waiting requests in the version",
        "at most 7 connections in the instance",
        "10 requests a second, 20 at once (rate all)",
    ]
    assert describe_limits(limits, None) == every
    callers = "1.5 requests a second by header x-user-id or client_ip, 1 at once (rate callers)"
    assert describe_limits(limits, "testers") == [*every, callers]


def test_what_a_client_sent_cannot_write_to_a_terminal() -> None:
    values = {("header", "user-group"): b"\x1b[2J\xff\xc2\x9b\nx\xe2\x80\xa8"}
    reason = why_not(Match((GROUP,)), [False], [], values)
    assert reason.isprintable()
    assert r"\u001b[2J" in reason


def test_describe_match_and_subset() -> None:
    assert describe_match(Match()) == "every request"
    match = Match((GROUP,), ((INTERNAL,),))
    assert describe_match(match) == 'header user-group exact "beta" and not (path prefix "/internal")'
    assert describe_subset(Subset()) == "every instance"
    subset = Subset(semver=">=2,<3", metadata=(("env", "gray"),))
    assert describe_subset(subset) == 'semver ">=2,<3" and metadata env=gray'
    assert describe_subset(Subset(version="v2")) == "version v2"


def test_there_is_a_reason_exactly_when_the_match_does_not_hold() -> None:
    reasons = 0
    for snapshot, requests in strategies.random_cases(seed=7, count=60, size=6):
        for service in snapshot.services:
            for match, request in ((rule.match, request) for rule in service.rules for request in requests):
                values: dict[tuple[str, str], bytes | str | None] = {
                    (each.kind, each.name): oracle.field_value(each.kind, each.name, request)
                    for each in (*match.all, *sum(match.none, ()))
                }
                outcomes = [oracle.condition_holds(each, request, service) for each in match.all]
                groups = [[oracle.condition_holds(each, request, service) for each in group] for group in match.none]
                reason = why_not(match, outcomes, groups, values)
                assert (reason == "") == oracle.holds(match, request, service)
                assert reason.isprintable()
                reasons += reason != ""
    assert reasons > 100
