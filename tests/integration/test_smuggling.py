"""Hostile requests: refused with nothing at the upstream, or forwarded canonically; never anything between."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from tests.conftest import Site, lend
from tests.integration.payloads import PAYLOADS, Payload
from tests.integration.upstream import Call, Request

STEPS = [1, 7]
"""Some are sent in crumbs too: the verdict must not depend on how the bytes come."""


def test_there_are_enough() -> None:
    assert len(PAYLOADS) >= 80
    assert len({payload.name for payload in PAYLOADS}) == len(PAYLOADS)


@pytest.fixture(scope="module")
def target(shared: dict[str, list[Site]]) -> Iterator[Site]:
    """One site for all: connections that a payload has poisoned would show in the next test."""
    yield from lend(shared["plain"].pop())


def name_back(call: Call) -> None:
    call.body()
    call.answer(200, call.request.target.encode("latin-1"))


def statuses(raw: bytes) -> list[int]:
    """Statuses of the answers in `raw`; all our answers and the upstream's here have their length."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ", head)
        assert status, f"no answer: {raw[:200]!r}"
        found.append(int(status[1]))
        length = re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", head)
        assert length or status[1] == b"100", f"no length: {head!r}"
        raw = rest[int(length[1]) if length else 0 :]
    return found


def send(site: Site, data: bytes, step: int) -> tuple[list[int], list[Request]]:
    """The statuses that the client gets until the connection's end, and what reached the upstream."""
    before = len(site.requests)
    with site.proxy.client() as client:
        with contextlib.suppress(OSError):  # refused before its last byte was sent
            client.drip(data, step)
            client.half_close()
        got = client.rest()
    site.upstream.settle()
    reached = site.requests[before:]
    canary = site.ask(target="/canary")
    assert (canary.status, canary.body) == (200, b"/canary"), "the next client got somebody else's answer"
    site.upstream.check()
    return statuses(got), reached


def judge(payload: Payload, got: list[int], reached: list[Request]) -> None:
    told = [(request.target, bytes(request.body)) for request in reached]
    refused = payload.verdict == "refuse" or (payload.verdict == "either" and not (got and got[0] == 200))
    if refused:
        assert told == [], f"reached the upstream; answers {got}"
        assert len(got) == 1 or (payload.unfinished and not got), f"answers {got}"
        assert not got or got[0] in (payload.statuses or range(400, 600)), f"answers {got}"
    elif payload.verdict == "cut":
        assert not any(request.complete for request in reached), f"a complete request reached the upstream: {told}"
        assert len(reached) <= 1
        assert all(status in payload.statuses for status in got), f"answers {got}"
        assert len(got) <= 1
    else:
        assert told == list(payload.arrive)
        assert all(request.complete for request in reached)
        assert got == [200] * len(payload.arrive)


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_payload(target: Site, payload: Payload) -> None:
    target.upstream.default = name_back
    judge(payload, *send(target, payload.for_host(target.host), 1 << 20))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("part", range(8))
def test_payloads_in_crumbs(target: Site, step: int, part: int) -> None:
    target.upstream.default = name_back
    for payload in PAYLOADS[part::8]:
        try:
            judge(payload, *send(target, payload.for_host(target.host), step))
        except AssertionError as error:
            raise AssertionError(f"{payload.name}: {error}") from error


def test_a_refused_request_closes_its_connection(site: Site) -> None:
    """Without waiting for the client to close: what else it has sent must never be read as a request."""
    refused = [payload for payload in PAYLOADS if payload.verdict == "refuse" and not payload.unfinished]
    for payload in refused[::5]:
        with site.proxy.client(patience=5) as client:
            try:
                got = statuses(client.send(payload.for_host(site.host)).rest())
            except TimeoutError as error:
                raise AssertionError(f"{payload.name}: still open") from error
            assert len(got) == 1, payload.name
    assert not site.requests
