"""A soak in small, for real: tunnels held over changes, misbehaviour answered as it must be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import peers
from benchmarks.load.peers import Upstreams
from benchmarks.soak import trouble, tunnels
from benchmarks.soak.proxy import Proxy, proxy

CORES = frozenset(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def under(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    work = tmp_path_factory.mktemp("soak")
    peers.compile_native(work, ["upstream"])
    with (
        peers.upstream("v1", work, CORES) as v1,
        peers.upstream("v2", work, CORES) as v2,
        tunnels.echo() as echo,
        proxy(work, CORES, Upstreams(v1, v2), echo) as made,
    ):
        yield made


def test_the_key_of_the_handshake_is_that_of_rfc_6455() -> None:
    assert tunnels.accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_tunnels_outlive_changes_and_cut_ones_are_noticed(under: Proxy) -> None:
    assert asyncio.run(tunnels.hold(under, 12, 2)) == (12, 0)
    assert under.revision >= 3

    async def cut_one() -> bool:
        streams = await tunnels.open_one(under.port)
        streams[1].transport.abort()
        answered = await tunnels.echoes(streams, b"hello?")
        await tunnels.leave(streams)
        return answered

    assert not asyncio.run(cut_one())


@pytest.mark.parametrize("name", trouble.KINDS)
def test_misbehaviour_is_answered_as_expected(under: Proxy, name: str) -> None:
    assert trouble.misbehave(under.port, name) is None


def test_an_answer_that_was_not_expected_is_told(under: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, read, reset, _ = trouble.KINDS["HTTP/1.0"]
    monkeypatch.setitem(trouble.KINDS, "HTTP/1.0", (sent, read, reset, (b"418",)))
    odd = trouble.misbehave(under.port, "HTTP/1.0")
    assert odd is not None
    assert "200 OK" in odd


def test_a_sample_is_taken_when_all_clients_are_gone(under: Proxy, tmp_path: Path) -> None:
    under.quiet()
    found = under.sample(5)
    assert found["requests"] == 5
    assert found["rss"] > 1e7
    assert found["descriptors"] > found["pooled"] >= 0
