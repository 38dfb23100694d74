"""Draws of faults and mirrors: shares hold in short windows, and kinds know nothing of one another."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import table
from graylb._faults import draws
from graylb.explain import explain
from graylb.model import snapshot as model
from graylb.model.documents import load
from graylb.model.problems import ConfigErrors
from graylb.model.snapshot_faults import Abort, Delay, Fault, Mirror

Kind = Literal["delay", "abort", "mirror"]
KINDS: tuple[Kind, ...] = ("delay", "abort", "mirror")
GOLDEN = 0x9E3779B97F4A7C15
"""The step of anonymous splits."""

DOCUMENT = """
listeners: [{address: "127.0.0.1:0"}]
services:
  up:
    instances: [{address: "127.0.0.1:1", version: v1}]
"""

kinds = st.sampled_from(KINDS)
percents = st.integers(0, 10_000).map(lambda parts: parts / 100)
firsts = st.integers(0, 2**64 - 1)


@given(kinds, percents, firsts, st.integers(1, 1000))
def test_the_share_holds_in_every_window(kind: Kind, percent: float, first: int, count: int) -> None:
    """Within 3 for up to 1,000 requests: the discrepancy of these numbers' multiples grows with the logarithm."""
    assert abs(sum(draws(kind, percent, count, first)) - count * percent / 100) <= 3


@given(kinds, st.integers(1, 9_999))
def test_steps_of_a_hundredth_of_a_percent_hold(kind: Kind, parts: int) -> None:
    assert abs(sum(draws(kind, parts / 100, 100_000)) - 10 * parts) <= 8


@given(kinds, firsts)
def test_none_is_never_and_all_is_always(kind: Kind, first: int) -> None:
    assert not any(draws(kind, 0, 2_000, first))
    assert all(draws(kind, 100, 2_000, first))


@pytest.mark.parametrize(("one", "other"), [("delay", "abort"), ("delay", "mirror"), ("abort", "mirror")])
def test_kinds_are_independent(one: Kind, other: Kind) -> None:
    """Of those that one kind draws, the other draws its share."""
    both = [a and b for a, b in zip(draws(one, 20, 100_000), draws(other, 10, 100_000), strict=True)]
    assert abs(sum(both) - 2_000) <= 60


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_independent_of_an_anonymous_split(kind: Kind) -> None:
    """Where all requests are anonymous both counters go up together; a version of 5 % gets its share all the same."""
    canary = [(number * GOLDEN) % 2**64 >= 0.95 * 2**64 for number in range(1, 100_001)]
    both = [a and b for a, b in zip(draws(kind, 10, 100_000), canary, strict=True)]
    assert abs(sum(both) - 500) <= 40


def test_explain_says_what_may_be_injected() -> None:
    match = model.Match((model.Condition("header", "exact", ("1",), "x"),))
    rules = (model.Rule("chaos", match, model.Subset(version="v1"), fault=Fault(None, Abort(429, percent=0.25))),)
    instances = (model.Instance("127.0.0.1:1", "v1"),)
    service = model.Service("up", "v1", None, rules=rules, instances=instances, fault=Fault(Delay(0.5, 10.0), Abort()))
    routes = (model.Route("up", "*", "prefix", "/", service="up"),)
    snapshot = model.Snapshot(1, (), routes, (service,))
    image = table.compile(snapshot)
    assert explain(snapshot, image)["fault"] == "10% wait 0.5 s, 100% get status 503 (gRPC unavailable)"
    assert explain(snapshot, image, headers=[("x", "1")])["fault"] == "0.25% get status 429 (gRPC unavailable)"


def test_explain_says_which_requests_are_copied() -> None:
    instances = (model.Instance("127.0.0.1:1", "v1"), model.Instance("127.0.0.1:2", "v2"))
    mirror = Mirror(model.Subset(semver=">=2"), 0.5, methods=("GET",))
    service = model.Service("up", "v1", None, instances=instances, mirror=mirror)
    snapshot = model.Snapshot(1, (), (model.Route("up", "*", "prefix", "/", service="up"),), (service,))
    told = explain(snapshot, table.compile(snapshot))
    assert (told["version"], told["mirror"]) == ("v1", '0.5% of GET are copied to semver ">=2"')


@pytest.mark.parametrize(
    ("setting", "where", "expected"),
    [
        ("fault: {delay: {time: 2h}}", "fault.delay.time", "at most an hour"),
        ("fault: {delay: {percent: 3}}", "fault.delay", "time"),
        ("fault: {delay: {time: 1s, percent: 0.001}}", "fault.delay.percent", "steps of 0.01"),
        ("fault: {delay: {time: 1s, percent: 101}}", "fault.delay.percent", "from 0 to 100"),
        ("fault: {abort: {status: 200}}", "fault.abort.status", "from 400 to 599"),
        ("fault: {abort: {grpc_status: ok}}", "fault.abort.grpc_status", "one of cancelled"),
        ("fault: {abort: {httpStatus: 500}}", "fault.abort.httpStatus", "unknown key"),
        ("mirror: {percent: 3}", "mirror", "a version, or a mapping"),
        ("mirror: {to: {}}", "mirror.to", "version, semver or metadata"),
        ("mirror: {to: v2, body: 2MiB}", "mirror.body", "from 0 to 1 MiB"),
        ("mirror: {to: v2, body: 64 pages}", "mirror.body", "a text such as 64KiB"),
        ("mirror: {to: v2, methods: GET}", "mirror.methods", "a list of methods"),
        ("mirror: {to: v2, methods: [GET, post]}", "mirror.methods[1]", "a method in capitals"),
        ("mirror: {to: v2, timeout: 0s}", "mirror.timeout", "a time over 0"),
        ("mirror: {to: v2, max: 0}", "mirror.max", "from 1 to"),
    ],
)
def test_what_is_wrong_is_named(setting: str, where: str, expected: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        load(f"{DOCUMENT}    {setting}", "a.yaml")
    (error,) = raised.value.errors
    assert f"services.up.{where}" in str(error)
    assert expected in str(error)
