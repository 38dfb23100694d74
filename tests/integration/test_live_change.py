"""The document and the commands while requests are under way: nothing fails, bad changes change nothing."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from graylb.cli.app import app
from tests.integration import proxies
from tests.integration.load import Load
from tests.integration.proxies import Document, Proxy, until
from tests.integration.upstream import Call, Upstream


@pytest.fixture(scope="module")
def versions() -> Iterator[dict[str, Upstream]]:
    upstreams = {name: Upstream(name).start() for name in ("v1", "v2", "v3")}
    yield upstreams
    for upstream in upstreams.values():
        upstream.stop()
    for upstream in upstreams.values():
        upstream.check()


def users(versions: dict[str, Upstream], **more: Any) -> dict[str, Any]:
    return proxies.service(*((upstream.address, name) for name, upstream in versions.items()), **more)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, versions: dict[str, Upstream]) -> Iterator[Proxy]:
    doc = proxies.document({"users": users(versions, split={"v1": 100})}, workers=2)
    with proxies.running(tmp_path_factory.mktemp("live"), doc) as running:
        yield running


TURNS = itertools.count(1)


@pytest.fixture
def proxy(started: Proxy, versions: dict[str, Upstream]) -> Proxy:
    """All to v1, whatever the test before has left: an edit that differs each time undoes commands too."""
    # sticky for the load, so that the draws of anonymous requests are those of the test alone
    sticky, timeouts = [{"header": "x-user-id"}], {"response": 15 + next(TURNS)}
    service = users(versions, split={"v1": 100}, sticky=sticky, timeouts=timeouts)
    started.edit({**started.document, "services": {"users": service}})
    until(lambda: started.status()["refusal"] is None, "nothing refused")
    return started


def with_split(doc: Document, **weights: float) -> Document:
    changed = copy.deepcopy(doc)
    changed["services"]["users"]["split"] = weights
    return changed


def shares(proxy: Proxy, count: int = 200) -> dict[str, int]:
    """Anonymous requests over one connection, so of one worker: versions and how often."""
    found: dict[str, int] = {}
    with proxy.client() as client:
        for _ in range(count):
            answer = client.ask()
            assert answer.status == 200
            version = answer.get("x-graylb-version") or ""
            assert answer.get("x-upstream") == version, "the header does not tell who answered"
            found[version] = found.get(version, 0) + 1
    return found


def test_edits_under_load(proxy: Proxy) -> None:
    with Load(proxy) as load:
        for number in range(6):
            weight = 20 * (number % 5) + 10
            revision = proxy.edit(with_split(proxy.document, v1=100 - weight, v2=weight))
            load.wait_more(30)
            got = shares(proxy)
            assert abs(got["v2"] - 2 * weight) <= 4, got
        until(lambda: load.failures or load.revisions[str(revision)], "an answer of the last revision")
    load.check()


def test_one_connection_lives_through_a_change(proxy: Proxy) -> None:
    with proxy.client() as client:
        assert client.ask().get("x-graylb-version") == "v1"
        revision = proxy.edit(with_split(proxy.document, v2=1))
        answer = client.ask()
        assert (answer.get("x-graylb-version"), answer.get("x-graylb-revision")) == ("v2", str(revision))


def test_a_request_under_way_keeps_its_table(proxy: Proxy, versions: dict[str, Upstream]) -> None:
    """Decided before the change, answered after it: by the old table, and completely."""
    gate = versions["v1"].gate()

    def hold(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        gate.wait()
        call.send(b"world")

    versions["v1"].on("/hold", hold)
    before = proxy.revision
    with proxy.client() as client:
        client.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: versions["v1"].of("/hold"), "the request at v1")
        proxy.edit(with_split(proxy.document, v2=1))
        gate.set()
        answer = client.response()
        assert (answer.status, answer.body) == (200, b"helloworld")
        assert (answer.get("x-graylb-version"), answer.get("x-graylb-revision")) == ("v1", str(before))
        assert client.ask().get("x-graylb-version") == "v2"


def test_an_instance_that_leaves_finishes_its_request(proxy: Proxy, versions: dict[str, Upstream]) -> None:
    gate = versions["v1"].gate()
    versions["v1"].on("/leave", lambda call: (gate.wait(), call.answer(200, b"done")))
    seen = len(versions["v1"].of("/leave"))
    with proxy.client() as client:
        client.send(b"GET /leave HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: len(versions["v1"].of("/leave")) > seen, "the request at v1")
        without = copy.deepcopy(proxy.document)
        service = without["services"]["users"]
        service.update(split={"v2": 1}, stable="v2", instances=service["instances"][1:])
        proxy.edit(without)
        gate.set()
        assert client.response().body == b"done"
        assert client.ask().get("x-graylb-version") == "v2"


BROKEN = {
    "not YAML": "services: [}",
    "unknown key": "servces",
    "no weight": "split",
    "empty": "",
}


def broken(kind: str, doc: Document) -> str:
    if kind == "unknown key":
        return yaml.safe_dump({**doc, "servces": {}})
    if kind == "no weight":
        return yaml.safe_dump(with_split(doc, v1=0, v2=0))
    return BROKEN[kind]


@pytest.mark.parametrize("kind", BROKEN)
def test_an_invalid_edit_keeps_the_last_good(proxy: Proxy, kind: str) -> None:
    good = proxy.document
    before = proxy.revision
    with Load(proxy) as load:
        proxy.write(broken(kind, good))
        refusal = until(lambda: proxy.status()["refusal"], "a refusal in the status")
        assert refusal["errors"]
        assert all(str(proxy.file.name) in error["text"] for error in refusal["errors"])
        assert proxy.revision == before
        load.wait_more(20)
        assert shares(proxy, 20) == {"v1": 20}
        proxy.write(good)
        until(lambda: proxy.status()["refusal"] is None, "the refusal to be gone")
        revision = proxy.edit(with_split(good, v2=1))
        assert revision == before + 1
        assert shares(proxy, 20) == {"v2": 20}
    load.check()


def test_a_status_command_shows_the_refusal(proxy: Proxy) -> None:
    proxy.write(broken("unknown key", proxy.document))
    until(lambda: proxy.status()["refusal"], "a refusal in the status")
    told = proxies.cli("status", "--admin", proxy.admin, "--json")
    assert told.returncode == 0, told.stderr
    text = json.dumps(json.loads(told.stdout)["refusal"])
    assert "servces" in text
    assert "services" in text, "a suggestion for the misspelt key"


def test_a_file_written_in_place_is_seen_too(proxy: Proxy) -> None:
    """Not every editor renames."""
    before = proxy.revision
    proxy.file.write_text(yaml.safe_dump(with_split(proxy.document, v2=1)))
    proxy.wait_revision(before + 1)
    assert shares(proxy, 20) == {"v2": 20}


def test_an_edit_that_changes_nothing_makes_no_revision(proxy: Proxy) -> None:
    before = proxy.revision
    proxy.write("# a comment\n" + yaml.safe_dump(proxy.document))
    revision = proxy.edit(with_split(proxy.document, v2=1))
    assert revision == before + 1


def test_a_list_of_100_000_ids_is_edited_while_it_is_in_use(proxy: Proxy) -> None:
    """The list is a file of its own; the document stays as it is."""
    staff = proxy.file.with_name("staff.txt")
    ids = [f"user-{number}" for number in range(100_000)]
    staff.write_text("\n".join(ids))
    doc = copy.deepcopy(proxy.document)
    doc["services"]["users"] |= {
        "lists": {"staff": {"file": staff.name}},
        "rules": [{"name": "staff", "match": {"headers": {"x-user-id": {"in": "staff"}}}, "to": "v2"}],
    }

    def versions_of(*users: str) -> list[str | None]:
        with proxy.client() as client:
            return [client.ask(headers=[f"X-User-Id: {user}"]).get("x-graylb-version") for user in users]

    with Load(proxy) as load:
        before = proxy.edit(doc)
        assert versions_of("user-0", "user-50000", "user-99999", "user-100000") == ["v2", "v2", "v2", "v1"]
        staff.write_text("\n".join([*ids[1:], "user-100000"]))
        proxy.wait_revision(before + 1)
        assert versions_of("user-0", "user-50000", "user-99999", "user-100000") == ["v1", "v2", "v2", "v2"]
    load.check()


def command(proxy: Proxy, *arguments: str) -> dict[str, Any]:
    done = proxies.cli(*arguments, "-c", proxy.file, "--admin", proxy.admin, "--json")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_split_and_rollback_while_running(proxy: Proxy) -> None:
    first = proxy.revision
    with Load(proxy) as load:
        told = command(proxy, "split", "users", "v1=50", "v2=50", "--reason", "try")
        assert told["applied"] is True
        assert proxy.revision == told["revision"] == first + 1
        got = shares(proxy, 100)
        assert abs(got["v1"] - 50) <= 3
        told = command(proxy, "rollback", "users")
        assert told["applied"] is True
        assert shares(proxy, 100) == {"v1": 100}
        told = command(proxy, "rollback", "users", "--to", str(first + 1))
        assert abs(shares(proxy, 100)["v2"] - 50) <= 3
    load.check()
    done = proxies.cli("history", "users", "-c", proxy.file, "--json")
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout)
    assert [change["revision"] for change in history][:3] == [first + 3, first + 2, first + 1]
    assert "try" in [change["why"] for change in history]


def test_a_command_that_makes_no_sense_changes_nothing(proxy: Proxy) -> None:
    before = proxy.revision
    for arguments in (
        ("split", "users", "v1=0"),
        ("split", "users", "v9=1"),
        ("split", "nobody", "v1=1"),
        ("split", "users", "v1"),
        ("rollback", "nobody"),
        ("rollback", "users", "--to", "999"),
    ):
        done = CliRunner().invoke(app, [*arguments, "-c", str(proxy.file)])
        assert (done.exit_code, type(done.exception)) in ((1, SystemExit), (2, SystemExit)), arguments
        assert done.stderr.startswith("graylb: "), done.stderr
    assert proxy.revision == before
    assert shares(proxy, 20) == {"v1": 20}


def test_a_person_who_edits_the_service_overrules_the_command(proxy: Proxy) -> None:
    command(proxy, "split", "users", "v2=1")
    assert shares(proxy, 20) == {"v2": 20}
    proxy.edit(with_split(proxy.document, v3=1))
    assert shares(proxy, 20) == {"v3": 20}
