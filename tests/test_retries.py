"""What may be sent once more, when, and how often: retries against slow, obvious readings of the laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb import _retries
from graylb.model.snapshot_retries import IDEMPOTENT, RETRY_CONDITIONS

MOST = 4
METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "POST", "PATCH", "GE", "GETX", "CUSTOM"]
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "on": st.lists(st.sampled_from(RETRY_CONDITIONS), unique=True),
        "statuses": st.lists(st.integers(400, 599), max_size=3),
        "grpc": st.integers(0, 2**17 - 1),
        "attempts": st.integers(1, MOST),
        "methods": st.none() | st.lists(st.sampled_from(METHODS), min_size=1, unique=True),
        "other_version": st.booleans(),
    },
)
FAILURES = st.fixed_dictionaries(
    {
        "cause": st.sampled_from(_retries.CAUSE_NAMES),
        "attempts": st.integers(1, MOST),
        "unseen": st.integers(0, MOST),
        "kept": st.booleans(),
        "method": st.sampled_from(METHODS),
        "status": st.integers(400, 599),
        "code": st.integers(0, 16),
    }
)


def oracle(policy: dict[str, Any], failure: dict[str, Any]) -> str:
    """As docs/retries.md has it, sentence by sentence."""
    on = policy.get("on", ["connect-failure", "refused-stream", "reset"])
    cause, status, method = failure["cause"], failure["status"], failure["method"]
    idempotent = method in IDEMPOTENT
    listed = method in (policy.get("methods") or IDEMPOTENT)
    if not failure["kept"] or failure["attempts"] >= MOST:
        return "stands"
    if cause == "unseen":
        return "other"
    if cause == "refused" or (cause == "stale" and idempotent):
        return "again"
    wanted = {
        "stale": "reset" in on or "5xx" in on,
        "reset": "reset" in on or "5xx" in on,
        "timeout": "timeout" in on or "5xx" in on,
        "invalid": "5xx" in on,
        "status": status in policy.get("statuses", ())
        or ("5xx" in on and status >= 500)
        or ("gateway-error" in on and status in (502, 503, 504))
        or ("retriable-4xx" in on and status == 409),
        "grpc-status": failure["code"] in [n for n in range(17) if policy.get("grpc", 0) & 2**n],
    }[cause]
    if (
        not wanted
        or failure["attempts"] - failure["unseen"] >= policy.get("attempts", 2)
        or not (listed or cause == "grpc-status")
    ):
        return "stands"
    if cause == "stale":
        return "again"
    return "other-version" if policy.get("other_version") else "other"


@settings(max_examples=1000, deadline=None)
@given(POLICIES, FAILURES)
def test_the_verdict(policy: dict[str, Any], failure: dict[str, Any]) -> None:
    told = {**failure, "method": failure["method"].encode(), "idempotent": failure["method"] in IDEMPOTENT}
    if failure["cause"] == "grpc-status":
        told["status"] = failure["code"]
    assert _retries.judged(policy, told) == oracle(policy, failure)


@settings(max_examples=300, deadline=None)
@given(FAILURES.filter(lambda failure: failure["method"] not in IDEMPOTENT), POLICIES)
def test_what_is_not_idempotent_is_never_done_twice_unless_it_is_listed(
    failure: dict[str, Any], policy: dict[str, Any]
) -> None:
    told = {**failure, "method": failure["method"].encode(), "idempotent": False}
    policy = {**policy, "methods": None}
    if failure["cause"] not in ("unseen", "refused", "grpc-status"):
        assert _retries.judged(policy, told) == "stands"


EVENTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2_000_000)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.sampled_from([0.0, 20.0, 100.0]), st.sampled_from([0.0, 0.5, 3.0, 50.0]))
def test_a_budget_gives_no_more_than_the_larger_of_its_two_shares(
    steps: list[tuple[int, int]], percent: float, rate: float
) -> None:
    """Over every beginning of a run; what time has saved up, three seconds' worth, is the most it gives at once."""
    calls, now = 0, 1
    events = []
    for more, later in steps:
        calls, now = calls + more, now + later
        events.append((calls, now))
    afforded = _retries.spent({"budget": {"percent": percent, "min_per_second": rate}}, events)
    saved = max(3 * rate, 1) if rate else 0
    spent = 0
    for (asked, us), given_ in zip(events, afforded, strict=True):
        spent += given_
        assert spent <= percent / 100 * asked + rate * us / 1e6 + saved + 1e-6


def test_a_budget_under_load_is_a_fifth_of_the_requests() -> None:
    """Every request fails, 1,000 within a second: the few that are given in advance are paid back."""
    afforded = _retries.spent({}, [(number, 1 + number * 1000) for number in range(1, 1001)])
    assert 190 <= sum(afforded) <= 200


def test_a_budget_of_few_requests_is_three_a_second() -> None:
    """One request in half a second, all of which fail: each may be retried."""
    assert all(_retries.spent({}, [(number, number * 500_000) for number in range(1, 100)]))


def test_a_budget_of_nothing() -> None:
    none = {"budget": {"percent": 0.0, "min_per_second": 0.0}}
    assert not any(_retries.spent(none, [(number, number * 1000) for number in range(1, 100)]))


@pytest.mark.parametrize(("attempts", "most"), [(1, 25_000), (2, 50_000), (3, 60_000)])
def test_the_time_before_an_attempt(attempts: int, most: int) -> None:
    policy = {"backoff": {"base": 0.025, "max": 0.06}}
    drawn = [_retries.backoff_us(policy, attempts, random) for random in range(0, 10 * most, 97)]
    assert 0 <= min(drawn) < most / 100
    assert most * 0.99 < max(drawn) <= most
    assert _retries.backoff_us({"backoff": {"base": 0, "max": 0}}, attempts, 12345) == 0
