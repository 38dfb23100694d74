"""The compiled matcher against the oracle: every decision, over random valid snapshots and requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from graylb import _fast, table
from graylb.model.snapshot import Snapshot
from tests import oracle, strategies

KINDS = ("rule", "slot", "draw", "fallback")


def assert_agrees(snapshot: Snapshot, compiled: _fast.Table, request: oracle.Request, pick: int) -> dict[str, Any]:
    """The decision of the compiled table is one that the oracle allows, field by field."""
    wanted = oracle.decide(snapshot, request)
    got = compiled.decide(request.head(), request.client_ip, draw=pick * 977, pick=pick)
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
            seen |= {
                got["outcome"],
                *(key for key in ("rule", "slot", "draw", "fallback") if got[key] not in (None, False)),
            }
    # a generator that stopped reaching a kind of decision would make this test empty
    assert seen == {"decided", "no-route", "no-instance", "redirect", *KINDS}
