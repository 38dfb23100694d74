"""Laws of the table: damaged images are refused, and any whole head is decided as the slow oracle decides it."""

from __future__ import annotations

import functools

from graylb import _fast, _http1, table
from graylb.model.snapshot import Snapshot
from tests import oracle
from tests.strategies import random_cases

SEED = 1
SNAPSHOTS = 5


@functools.cache
def snapshots() -> tuple[Snapshot, ...]:
    return tuple(snapshot for snapshot, _ in random_cases(SEED, SNAPSHOTS, 1))


@functools.cache
def images() -> tuple[bytes, ...]:
    return tuple(map(table.compile, snapshots()))


@functools.cache
def tables() -> tuple[_fast.Table, ...]:
    return tuple(map(_fast.Table, images()))


def asked() -> list[bytes]:
    """Heads that the rules of these tables were written for: their cookies, queries, marks and patterns."""
    return [request.head() for _, requests in random_cases(SEED, SNAPSHOTS, 20) for request in requests]


def load(data: bytes) -> None:
    """An image is intact or it is refused: nothing else may come of bytes that the checksum does not vouch for.

    libFuzzer reads the right checksum off the comparison and forges images. They are outside the law: who can hand
    images to a worker is its own supervisor.
    """
    if data not in images() and data[8:16] == _fast.xxh64(data[16:]).to_bytes(8, "little"):
        return
    try:
        loaded = _fast.Table(data)
    except ValueError:
        assert data not in images()
        return
    assert data in images()
    assert loaded.image == data


def decide(data: bytes) -> None:
    """Any whole head gets a decision, by every table, and it is one that the oracle allows."""
    found = _http1.parse_request(data, 256)
    if not isinstance(found, dict):
        return
    target = found["path"] + (b"" if found["query"] is None else b"?" + found["query"])
    headers = [(name.decode(), value.decode("latin-1")) for name, value, _ in found["headers"]]
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("host", found["host"].decode()))
    request = oracle.Request(found["method"].decode(), target.decode("latin-1"), tuple(headers), "::1")
    for number, (snapshot, compiled) in enumerate(zip(snapshots(), tables(), strict=True)):
        got = compiled.decide(data, "::1", draw=len(data), pick=number)
        wanted = oracle.decide(snapshot, request)
        if wanted.status == 404 or wanted.redirect is not None:
            assert got["outcome"] == ("no-route" if wanted.redirect is None else "redirect"), (request, got)
            continue
        shown = (got["route"], got["service"], got["rule"], got["slot"], got["draw"] is not None)
        assert shown == (wanted.route, wanted.service, wanted.rule, wanted.slot, wanted.draw_used), (request, got)
        outcome = wanted.outcomes[got["wanted"]]
        assert got["outcome"] == ("no-instance" if outcome.status == 503 else "decided"), (request, got)
        assert outcome.status == 503 or got["instance"] in outcome.candidates, (request, got)
