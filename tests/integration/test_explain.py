"""What `explain` says is what the proxy does, through real sockets, and both are what the slow oracle says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from graylb.control import prepare
from graylb.control.store import Store, state_path
from graylb.model.snapshot import Snapshot
from tests import oracle
from tests.integration import proxies
from tests.integration.client import Response
from tests.integration.proxies import Proxy
from tests.integration.samples import Sample
from tests.integration.upstream import Upstream

INSTANCES = 6
CONFIGURATIONS = 8
REQUESTS = 60


@pytest.fixture(scope="module")
def instances() -> Iterator[list[Upstream]]:
    made = [Upstream("instance").start() for _ in range(INSTANCES)]
    for each in made:
        each.name = each.address  # answers carry it as x-upstream
    yield made
    for each in made:
        each.stop()
    for each in made:
        each.check()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, instances: list[Upstream]) -> Iterator[Proxy]:
    services = {"first": proxies.service(instances[0].address)}
    with proxies.running(tmp_path_factory.mktemp("explain"), proxies.document(services)) as running:
        yield running


def snapshot_in_force(proxy: Proxy) -> Snapshot:
    """Made here from the same files; the digest tells that it is the very one that the workers serve."""
    document = prepare.read(proxy.file)
    _, snapshot = prepare.prepare(document, Store(state_path(proxy.file)).read(), at=prepare.now())
    status = proxy.status()
    assert (snapshot.revision, snapshot.digest()) == (status["revision"], status["digest"])
    return snapshot


def check(snapshot: Snapshot, asked: tuple[str, str, str, list[str]], answer: Response) -> None:
    """One answer against the oracle."""
    method, target, host, lines = asked
    pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    request = oracle.Request(method, target, (("Host", host), *pairs), "127.0.0.1")
    wanted = oracle.decide(snapshot, request)
    if wanted.status is not None:
        assert answer.status == wanted.status
        assert answer.error == "no-route"
        return
    assert answer.get("x-graylb-service") == wanted.service
    assert answer.get("x-graylb-rule") == wanted.rule
    assert answer.get("x-graylb-slot") == (None if wanted.slot is None else str(wanted.slot))
    assert answer.get("x-graylb-revision") == str(snapshot.revision)
    reached = answer.get("x-upstream")
    fitting = [one for one in wanted.outcomes.values() if one.status == 503 or reached in one.candidates]
    if answer.status == 503:
        assert answer.error == "no-instance"
        assert any(one.status == 503 for one in fitting), wanted
        return
    assert answer.status == 200
    fitting = [one for one in fitting if one.status is None]
    assert fitting, f"{reached} was not to be had: {wanted}"
    version = next(
        i.version for s in snapshot.services if s.name == wanted.service for i in s.instances if i.address == reached
    )
    assert answer.get("x-graylb-version") == version
    assert (answer.get("x-graylb-fallback") is not None) in {one.fallback for one in fitting}


@pytest.mark.parametrize("seed", range(CONFIGURATIONS))
def test_the_proxy_decides_as_the_oracle(proxy: Proxy, instances: list[Upstream], seed: int) -> None:
    sample = Sample(seed)
    proxy.edit({**proxy.document, "services": sample.services([each.address for each in instances])})
    snapshot = snapshot_in_force(proxy)
    kinds = set()
    with proxy.client() as client:
        for number in range(REQUESTS):
            asked = sample.request()
            method, target, host, lines = asked
            answer = client.ask(method, target, host=host, headers=lines)
            try:
                check(snapshot, asked, answer)
            except AssertionError as error:
                raise AssertionError(f"request {number}: {asked}\nanswer {answer}\n{error}") from error
            kinds.add((answer.status, answer.get("x-graylb-rule"), answer.get("x-graylb-version")))
    assert len(kinds) > 1, "all requests were decided alike: the sample tests nothing"


def explained(proxy: Proxy, asked: tuple[str, str, str, list[str]], draw: str | None) -> dict[str, object]:
    """`graylb explain` of the same request, told the draw that the worker used."""
    from typer.testing import CliRunner

    from graylb.cli.app import app

    method, target, host, lines = asked
    arguments = [
        "explain",
        "-c",
        str(proxy.file),
        "--json",
        "--method",
        method,
        "--path",
        target,
        "--client-ip",
        "127.0.0.1",
    ]
    for line in [f"Host: {host}", *lines]:
        arguments += ["--header", line]
    if draw is not None:
        arguments += ["--draw", draw]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    found: dict[str, object] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("seed", range(100, 103))
def test_explain_says_what_the_proxy_does(proxy: Proxy, instances: list[Upstream], seed: int) -> None:
    sample = Sample(seed)
    proxy.edit({**proxy.document, "services": sample.services([each.address for each in instances])})
    with proxy.client() as client:
        for _ in range(20):
            asked = sample.request()
            method, target, host, lines = asked
            answer = client.ask(method, target, host=host, headers=lines)
            told = explained(proxy, asked, answer.get("x-graylb-draw"))
            for key in ("service", "version", "rule", "slot"):
                said = told.get(key)
                assert (None if said is None else str(said)) == answer.get(f"x-graylb-{key}"), (key, asked, told)
            assert str(told["revision"]) == str(proxy.revision)
