"""What `explain` says is what the proxy does, through real sockets, and both are what the slow oracle says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graylb import table
from graylb.control import prepare
from graylb.control.store import Store, state_path
from graylb.explain import explain
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
    if answer.status == 503 and answer.error == "no-instance":
        assert any(one.status == 503 for one in wanted.outcomes.values()), wanted
        return
    assert answer.get("x-graylb-service") == wanted.service
    assert answer.get("x-graylb-rule") == wanted.rule
    assert answer.get("x-graylb-slot") == (None if wanted.slot is None else str(wanted.slot))
    assert answer.get("x-graylb-revision") == str(snapshot.revision)
    assert answer.status == 200
    reached = answer.get("x-upstream")
    fitting = [one for one in wanted.outcomes.values() if reached in one.candidates]
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


def differences(told: dict[str, Any], answer: Response) -> list[str]:
    """Where `explain` and the proxy's answer disagree; which instance is picked is a matter of the worker's state."""
    if answer.status != 200:
        return [] if told["outcome"] == answer.error else [f"{answer.error} but {told['outcome']}"]
    said = {key: told[key] for key in ("service", "rule", "slot", "draw", "revision")}
    got = {key: answer.get(f"x-graylb-{key}") for key in said}
    found = [f"{key}: {said[key]} but {got[key]}" for key in said if (said[key] is None) != (got[key] is None)]
    found += [f"{key}: {said[key]} but {got[key]}" for key in said if got[key] and str(said[key]) != got[key]]
    pairs = [(each["instance"], each["version"]) for each in told["candidates"]]
    if (answer.get("x-upstream"), answer.get("x-graylb-version")) not in pairs:
        found.append(f"{answer.get('x-upstream')} is none of {pairs}")
    if bool(told["fallback"]) != (answer.get("x-graylb-fallback") is not None):
        found.append(f"fallback: {told['fallback']} but {answer.get('x-graylb-fallback')}")
    return found


def explain_equals(proxy: Proxy, instances: list[Upstream], seed: int, requests: int) -> None:
    """Told the draw that the worker used."""
    sample = Sample(seed)
    proxy.edit({**proxy.document, "services": sample.services([each.address for each in instances])})
    snapshot = snapshot_in_force(proxy)
    image = table.compile(snapshot)
    with proxy.client() as client:
        for _ in range(requests):
            method, target, host, lines = sample.request()
            answer = client.ask(method, target, host=host, headers=lines)
            pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            draw = int(answer.get("x-graylb-draw") or 0)
            told = explain(snapshot, image, method=method, path=target, headers=[("Host", host), *pairs], draw=draw)
            assert not differences(told, answer), f"{method} {target} {host} {lines}\n{told}\n{answer}"


@pytest.mark.parametrize("seed", range(100, 100 + CONFIGURATIONS))
def test_explain_says_what_the_proxy_does(proxy: Proxy, instances: list[Upstream], seed: int) -> None:
    explain_equals(proxy, instances, seed, REQUESTS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_explain_says_what_the_proxy_does_ten_thousand_times(proxy: Proxy, instances: list[Upstream]) -> None:
    for seed in range(200, 250):
        explain_equals(proxy, instances, seed, 200)


def test_the_command_explains_as_the_function(proxy: Proxy, instances: list[Upstream]) -> None:
    sample = Sample(1000)
    proxy.edit({**proxy.document, "services": sample.services([each.address for each in instances])})
    snapshot = snapshot_in_force(proxy)
    image = table.compile(snapshot)
    for _ in range(3):
        method, target, host, lines = sample.request()
        headers = [argument for line in [f"Host: {host}", *lines] for argument in ("--header", line)]
        done = proxies.cli("explain", "-c", proxy.file, "--json", "--method", method, "--path", target, *headers)
        assert done.returncode == 0, done.stderr
        pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        told = explain(snapshot, image, method=method, path=target, headers=[("Host", host), *pairs])
        assert json.loads(done.stdout) == json.loads(json.dumps(told))


def test_errors_of_ours_carry_the_decision_too(tmp_path: Path) -> None:
    """A 503 or 502 is an answer as well: it can be explained, and a canary's failures can be told from the stable's."""
    rules = [{"name": "gone", "match": {"headers": {"x-want": "v2"}}, "to": "v2", "fallback": "strict"}]
    users = proxies.service(("127.0.0.1:1", "v1"), rules=rules)
    with proxies.running(tmp_path, proxies.document({"users": users})) as proxy, proxy.client() as client:
        answer = client.ask()
        assert (answer.status, answer.get("x-graylb-service"), answer.get("x-graylb-version")) == (502, "users", "v1")
        answer = client.ask(headers=["X-Want: v2"])
        assert (answer.status, answer.get("x-graylb-service"), answer.get("x-graylb-rule")) == (503, "users", "gone")
