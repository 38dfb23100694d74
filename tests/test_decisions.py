"""The compiled matcher against the oracle: every decision, over random valid snapshots and requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from graylb import _fast, table
from graylb.model.snapshot import Listener, Route, Service, Snapshot
from tests import oracle, strategies

KINDS = ("rule", "slot", "draw", "fallback")


def assert_agrees(snapshot: Snapshot, compiled: _fast.Table, request: oracle.Request, pick: int) -> dict[str, Any]:
    """The decision of the compiled table is one that the oracle allows, field by field."""
    wanted = oracle.decide(snapshot, request)
    bit = compiled.meta["listener_bits"][request.listener] if request.listener is not None else 0
    got = compiled.decide(request.head(), request.client_ip, draw=pick * 977, pick=pick, listener=bit)
    if wanted.status == 404:
        assert got["outcome"] == "no-route", (request, got)
        return got
    assert (got["route"], got["service"]) == (wanted.route, wanted.service), (request, got, wanted)
    if wanted.redirect is not None:
        assert got["outcome"] == "redirect"
        return got
    assert (got["rule"], got["slot"], got["draw"] is not None) == (wanted.rule, wanted.slot, wanted.draw_used), (
        request, got, wanted,
    )  # fmt: skip
    assert got["wanted"] in wanted.outcomes, (request, got, wanted)
    outcome = wanted.outcomes[got["wanted"]]
    if outcome.status == 503:
        assert got["outcome"] == "no-instance", (request, got, wanted)
        return got
    assert got["outcome"] == "decided"
    assert got["instance"] in outcome.candidates
    assert got["fallback"] == outcome.fallback
    if outcome.version is not None:
        assert got["version"] == outcome.version
    return got


@settings(max_examples=30, deadline=None)
@given(strategies.cases())
def test_decisions_equal_the_oracles(case: tuple[Snapshot, list[oracle.Request]]) -> None:
    snapshot, requests = case
    compiled = _fast.Table(table.compile(snapshot))
    for pick, request in enumerate(requests):
        assert_agrees(snapshot, compiled, request, pick)


@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_random_requests_are_decided_as_the_oracle_says(seed: int) -> None:
    seen: set[str] = set()
    for snapshot, requests in strategies.random_cases(seed, 50, 40):
        compiled = _fast.Table(table.compile(snapshot))
        for pick, request in enumerate(requests):
            got = assert_agrees(snapshot, compiled, request, pick)
            if passes_over(snapshot, request):
                seen.add("passed-over")
            seen |= {
                got["outcome"],
                *(key for key in ("rule", "slot", "draw", "fallback") if got[key] not in (None, False)),
            }
    # a generator that stopped reaching a kind of decision would make this test empty
    assert seen == {"decided", "no-route", "no-instance", "redirect", "passed-over", *KINDS}


def passes_over(snapshot: Snapshot, request: oracle.Request) -> bool:
    """Whether the request would have another route if listeners did not matter."""
    everywhere = [replace(route, listeners=()) for route in snapshot.routes]
    best, here = oracle.find_route(everywhere, request), oracle.find_route(snapshot.routes, request)
    return best is not None and (here is None or best.name != here.name)


LISTENERS = (Listener("127.0.0.1:0", name="in"), Listener("127.0.0.1:0", name="out"), Listener("127.0.0.1:0", name="x"))
ROUTES = (
    Route("exact-in", "a.b", "exact", "/p", service="s", listeners=("in",)),
    Route("regex-out", "a.b", "regex", "/p+", service="s", listeners=("out",)),
    Route("prefix-in", "a.b", "prefix", "/", service="s", listeners=("in",)),
    Route("wild-out", "*.b", "prefix", "/p", service="s", listeners=("out", "in")),
    Route("any", "*", "prefix", "/p", service="s"),
    Route("any-x", "*", "prefix", "/", service="s", listeners=("x",)),
)


@pytest.mark.parametrize(
    ("listener", "host", "path", "route"),
    [
        ("in", "a.b", "/p", "exact-in"),
        ("in", "a.b", "/pp", "prefix-in"),
        ("in", "c.b", "/p", "wild-out"),
        ("in", "c.b", "/q", None),
        ("out", "a.b", "/p", "regex-out"),
        ("out", "a.b", "/p/q", "wild-out"),  # the exact host has none for it: on to the wildcard
        ("x", "a.b", "/p/q", "any"),  # and on to *
        ("x", "a.b", "/q", "any-x"),
        (None, "a.b", "/p", "any"),  # where it came in is not known: only what is for every listener
        (None, "a.b", "/q", None),
    ],
)
def test_a_route_for_other_listeners_is_as_if_it_were_not_there(
    listener: str | None, host: str, path: str, route: str | None
) -> None:
    snapshot = Snapshot(1, LISTENERS, ROUTES, (Service("s", "v1", None),))
    compiled = _fast.Table(table.compile(snapshot))
    assert compiled.meta["listener_bits"] == {"in": 1, "out": 2, "x": 4}
    request = oracle.Request(target=path, headers=(("Host", host),), listener=listener)
    found = oracle.find_route(ROUTES, request)
    assert (None if found is None else found.name) == route
    assert assert_agrees(snapshot, compiled, request, 0)["route"] == route


def test_there_are_thirty_two_listeners_at_most() -> None:
    listeners = tuple(Listener("127.0.0.1:0", name=f"l{n}") for n in range(33))
    last = Route("last", "*", "prefix", "/", service="s", listeners=("l31",))
    snapshot = Snapshot(1, listeners[:32], (last,), (Service("s", "v1", None),))
    compiled = _fast.Table(table.compile(snapshot))
    for name, bit in compiled.meta["listener_bits"].items():
        found = compiled.decide(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", listener=bit)
        assert found["route"] == ("last" if name == "l31" else None)
    with pytest.raises(ValueError, match="33 different names; at most 32"):
        table.compile(replace(snapshot, listeners=listeners))
    with pytest.raises(ValueError, match="route last: no listener is called l31"):
        table.compile(replace(snapshot, listeners=listeners[:31]))
