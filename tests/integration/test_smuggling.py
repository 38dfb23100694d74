"""Hostile requests: refused with nothing at the upstream, or forwarded canonically; never anything between.

And hostile answers: refused, cut short visibly, or passed on as what they are; nobody else ever gets their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Site, lend
from tests.integration import answers, hazards
from tests.integration.payloads import HAZARDS, PAYLOADS, Payload


def test_there_are_enough() -> None:
    """Issue 3 asks for 124 hazards."""
    assert len(PAYLOADS) >= 500
    assert len({payload.name for payload in PAYLOADS}) == len(PAYLOADS)
    assert {payload.hazard for payload in PAYLOADS} == HAZARDS.keys() - {"15"}
    assert len({answer.name for answer in answers.ANSWERS}) == len(answers.ANSWERS) >= 100


@pytest.fixture(scope="module")
def target(shared: dict[str, list[Site]]) -> Iterator[Site]:
    """One site for all: connections that a payload has poisoned would show in the next test."""
    site = shared["plain"].pop()
    for lent in lend(site):
        yield lent
        hazards.check_wire(site)


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_payload(target: Site, payload: Payload) -> None:
    hazards.judge(payload, *hazards.send(target, payload, "whole"))


@pytest.mark.parametrize("way", hazards.WAYS[1:])
@pytest.mark.parametrize("hazard", [hazard for hazard in HAZARDS if hazard != "15"])
def test_payloads_in_other_ways(target: Site, way: str, hazard: str) -> None:
    for payload in PAYLOADS:
        if payload.hazard == hazard:
            try:
                hazards.judge(payload, *hazards.send(target, payload, way))
            except AssertionError as error:
                raise AssertionError(f"{payload.name}: {error}") from error


def test_a_refused_request_closes_its_connection(site: Site) -> None:
    """Without waiting for the client to close: what else it has sent must never be read as a request."""
    refused = [payload for payload in PAYLOADS if payload.verdict == "refuse" and not payload.unfinished]
    for payload in refused[::5]:
        with site.proxy.client(patience=5) as client:
            try:
                got = hazards.statuses(client.send(payload.for_host(site.host)).rest())
            except TimeoutError as error:
                raise AssertionError(f"{payload.name}: still open") from error
            assert len(got) == 1, payload.name
    assert not site.requests


@pytest.mark.parametrize("number", range(len(answers.ANSWERS)), ids=lambda number: answers.ANSWERS[number].name)
def test_answer(impatient_target: Site, number: int) -> None:
    answers.ask(impatient_target, answers.ANSWERS[number], number)


@pytest.fixture(scope="module")
def impatient_target(shared: dict[str, list[Site]]) -> Iterator[Site]:
    """One for all: what an answer leaves behind would show in the next test."""
    for site in lend(shared["impatient"].pop()):
        site.upstream.default = hazards.name_back
        yield site
