"""Laws of sticky splits over many keys, with the slot function written out from the release model."""

from __future__ import annotations

import math

import pytest
import xxhash

from graylb.model.snapshot import SLOTS
from graylb.release.slots import Slots, allocate, default_salt

KEYS = [f"user-{n}".encode() for n in range(100_000)]


def slots_of(salt: str) -> list[int]:
    seed = xxhash.xxh64_intdigest(salt.encode(), 0)
    return [xxhash.xxh64_intdigest(key, seed) % SLOTS for key in KEYS]


def callers(slots: Slots, salt: str, version: str) -> set[int]:
    owners = slots.owners()
    return {key for key, slot in enumerate(slots_of(salt)) if owners[slot] == version}


@pytest.mark.parametrize(
    "weights",
    [{"v1": 95, "v2": 5}, {"v1": 99.9, "v2": 0.1}, {"v1": 1, "v2": 1, "v3": 1}, {"v1": 80, "v2": 17, "v3": 3}],
)
def test_shares_hold_within_three_sigma(weights: dict[str, float]) -> None:
    salt = default_salt("users", None, weights, None)
    owners = allocate(None, weights, "v1").owners()
    versions = [owners[slot] for slot in slots_of(salt)]
    for version, weight in weights.items():
        share = weight / sum(weights.values())
        sigma = math.sqrt(len(KEYS) * share * (1 - share))
        assert abs(versions.count(version) - len(KEYS) * share) <= 3 * sigma


def test_a_caller_never_flips_back_during_a_ramp() -> None:
    salt = default_salt("users", None, {"v1": 99, "v2": 1}, None)
    slots = None
    before: set[int] = set()
    for percent in (1, 5, 20, 50, 100):
        slots = allocate(slots, {"v1": 100 - percent, "v2": percent}, "v1")
        now = callers(slots, salt, "v2")
        assert before <= now
        before = now
    assert len(before) == len(KEYS)


def test_cohorts_of_two_services_and_of_two_releases_are_independent() -> None:
    weights = {"v1": 95, "v2": 5}
    salt = default_salt("users", None, weights, None)
    others = {
        "another service": default_salt("orders", None, weights, None),
        "a rule of the same service": default_salt("users/ab", None, weights, None),
        "the next release": default_salt("users", {"v2": 1}, {"v2": 95, "v3": 5}, salt),
    }
    slots = allocate(None, weights, "v1")
    cohort = callers(slots, salt, "v2")
    for what, other_salt in others.items():
        both = len(cohort & callers(slots, other_salt, "v2"))
        mean = len(cohort) * 0.05
        assert abs(both - mean) <= 4 * math.sqrt(mean), what


def test_everyone_who_reads_the_text_form_agrees() -> None:
    slots = allocate(allocate(None, {"v1": 1, "v2": 1}, "v1"), {"v1": 1, "v2": 2, "v3": 3}, "v1")
    assert Slots.parse(str(slots)).owners() == slots.owners()
