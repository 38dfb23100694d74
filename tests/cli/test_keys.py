"""Commands on what people change, the same on a state file and on a real etcd: no proxy runs, and none is needed."""

from __future__ import annotations

import itertools
import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from graylb.release.slots import Slots
from tests.control.etcd import servers
from tests.control.parts import Data, document, users, write
from tests.integration import etcds, proxies

NOBODY = "127.0.0.1:1"  # where no proxy answers
COUNT = itertools.count()


@dataclass(frozen=True)
class Place:
    """A document whose services are where the test wants them."""

    path: Path
    kind: str

    def __call__(self, *arguments: Any, stdin: str | None = None, editor: str = "false") -> Result:
        env = {"GRAYLB_ADMIN": NOBODY, "COLUMNS": "150", "EDITOR": editor, "VISUAL": None}
        texts = [str(each) for each in arguments]
        return CliRunner().invoke(app, [*texts, "-c", str(self.path)], input=stdin, env=env)

    def data(self, *arguments: Any, **more: Any) -> Any:
        result = self(*arguments, "--json", **more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def value(self, key: str) -> Any:
        result = self("get", key)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def fails(self, status: int, *arguments: Any, words: str, **more: Any) -> None:
        result = self(*arguments, **more)
        assert (result.exit_code, result.stdout) == (status, ""), result.output
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert words in result.stderr

    def owners(self) -> list[str]:
        return Slots.parse(self.value("users/split")["slots"]).owners()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Cluster]:
    with servers.running(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["file", "etcd"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """With the service `users` of `parts`, and one revision of it in the history."""
    if request.param == "file":
        return Place(write(tmp_path, document()), "file")
    cluster: servers.Cluster = request.getfixturevalue("etcd")
    part = {"endpoints": list(cluster.endpoints), "prefix": f"/test-{next(COUNT)}"}
    found = Place(write(tmp_path, {"listeners": [{"address": "127.0.0.1:0"}], "etcd": part}), "etcd")
    services = write(tmp_path, {"services": {"users": users()}}, "services.yaml")
    (told,) = found.data("apply", "-f", services, "-m", "begin")
    assert (told["service"], told["split"]) == ("users", "v1=95 v2=5")
    return found


def services(place: Place, name: str = "more.yaml", **parts: Any) -> Path:
    return write(place.path.parent, {"services": parts}, name)


def rule(to: str, **more: Any) -> Data:
    return {"match": {"headers": {"group": "beta"}}, "to": to, **more}


def test_a_ramp_and_the_way_back(place: Place) -> None:
    first = place.owners()
    told = place.data("split", "users", "v1=50", "v2=50", "-m", "looks good")
    assert (told["former"], told["split"], told["applied"]) == ("v1=95 v2=5", "v1=50 v2=50", False)
    ramped = place.owners()
    assert {(a, b) for a, b in zip(first, ramped, strict=True) if a != b} == {("v1", "v2")}
    assert "users: v1=95 v2=5 (was v1=50 v2=50), revision" in place("rollback", "users").stdout
    assert place.owners() == first
    assert "users: v1=50 v2=50 (was" in place("rollback", "users").stdout
    assert place.owners() == ramped
    history = place.data("history", "users")
    assert [(each["action"], each["split"]) for each in history[:3]] == [
        ("rollback", "v1=50 v2=50"),
        ("rollback", "v1=95 v2=5"),
        ("split", "v1=50 v2=50"),
    ]
    assert (history[2]["why"], history[2]["keys"]) == ("looks good", ["services/users/split"])
    assert history[2]["revision"] == history[1]["previous"] == history[0]["to"] == told["revision"]
    assert "looks good" in place("history").stdout
    assert place.data("rollback", "users", "--to", history[-1]["revision"])["split"] == "v1=95 v2=5"


def test_the_difference_between_two_revisions(place: Place) -> None:
    begin = place.data("get")["revision"]
    place.data("set", "users/rules/beta", json.dumps(rule("v2")))
    middle = place.data("split", "users", "v1=50", "v2=50")["revision"]
    place.data("delete", "users/rules/beta")
    texts = [change["text"] for change in place.data("diff", begin, middle)["changes"]]
    assert texts[:2] == ["split v1 95 → 50, v2 5 → 50", "moved slots 4,500 (45.00 %): v1 → v2 4,500"]
    assert "rule beta added" in texts[2]
    (gone,) = [change["text"] for change in place.data("diff", middle)["changes"]]
    assert "rule beta removed" in gone
    place.fails(2, "diff", "1", "999999999", words="no revision 999999999")


def test_keys_are_set_shown_and_deleted(place: Place) -> None:
    told = place.data("set", "users/rules/beta", json.dumps(rule("v2")), "-m", "testers")
    assert told["keys"] == ["services/users/rules/beta"]
    assert place.value("services/users/rules/beta")["to"] in ("v2", {"version": "v2"})
    assert place.value("/graylb/services/users/rules/beta") == place.value("users/rules/beta")
    shown = place("get", "users").stdout
    assert "services/users/rules/beta" in shown
    assert "services/users/split" in shown
    assert "slots" not in shown
    place.fails(2, "get", "users/rules/alpha", words="there is no key services/users/rules/alpha")
    again = place.data("set", "users/rules/beta", "-", stdin=json.dumps(rule("v2")))
    assert (again["keys"], again["applied"]) == ([], False)
    assert "users: rules/beta, revision" in place("delete", "users/rules/beta").stdout
    place.fails(2, "delete", "users/rules/beta", words="there is no key services/users/rules/beta")
    place.fails(2, "set", "users/split", '{"v1": -1}', words="$.v1: got -1; expected a number >= 0")
    place.fails(2, "set", "users/split", "@/nowhere", words="/nowhere cannot be read")
    place.fails(2, "set", "users/splat", "{}", words="unknown part")
    entry = place.data("history", "users")[0]
    assert (entry["action"], entry["keys"]) == ("delete", ["services/users/rules/beta"])


def test_a_bare_split_is_completed_at_once(place: Place) -> None:
    before = place.owners()
    file = place.path.parent / "split.json"
    file.write_text('{"v1": 90, "v2": 10}')
    place.data("set", "users/split", f"@{file}")
    after = place.owners()
    assert {(a, b) for a, b in zip(before, after, strict=True) if a != b} == {("v1", "v2")}


def test_who_looked_before_somebody_else_changed_it_is_told(place: Place) -> None:
    seen = place.data("get")["revision"]
    place.data("split", "users", "v1=50", "v2=50", "-m", "first")
    for command in (["split", "users", "v2=1"], ["set", "users/split", '{"v2": 1}'], ["rollback", "users"]):
        place.fails(1, *command, "--expect", seen, words="(first)")
    more = services(place, users={"split": {"v2": 1}})
    place.fails(1, "apply", "-f", more, "--expect", seen, words="(first)")
    assert place.value("users/split")["weights"] == {"v1": 50, "v2": 50}


def test_commands_that_cannot_be(place: Place) -> None:
    place.fails(2, "split", "shop", "v1=1", words="no service 'shop'; there is users")
    place.fails(2, "split", "users", "v9=1", words="no instance of version 'v9'; there is v1, v2, v3")
    place.fails(2, "rollback", "shop", words="no service 'shop'; there is users")
    place.fails(2, "history", "shop", words="no service 'shop'")
    place.fails(2, "rollback", "users", words="no former split")
    place.fails(
        2, "set", "users/rules/staff", '{"match": {"headers": {"x": {"in": "none"}}}, "to": "v1"}', words="none"
    )


def test_what_is_exported_is_applied_without_a_change(place: Place) -> None:
    place.data("split", "users", "v1=60", "v2=30", "v3=10")
    place.data("set", "users/rules/ab", json.dumps({"match": {"query": {"e": "a"}}, "split": {"v1": 1, "v2": 1}}))
    file = place.path.parent / "exported.yaml"
    assert place("export", "-o", file).stdout == ""
    assert file.read_text() == place("export").stdout
    for options in ([], ["--prune"], ["--dry-run"]):
        assert place("apply", "-f", file, *options).stdout == "nothing to change\n"
    owners = place.owners()
    place.data("split", "users", "v1=1")
    place.data("apply", "-f", "-", stdin=file.read_text())
    assert place.owners() == owners


def test_apply_changes_what_differs_and_prunes_when_asked(place: Place) -> None:
    place.data("set", "users/rules/old", json.dumps(rule("v2")))
    more = services(place, users={"split": {"v1": 50, "v2": 50}, "rules": [{"name": "new", **rule("v3")}]})
    planned = place("apply", "-f", more, "--dry-run").stdout
    assert "users would change: v1=50 v2=50 (was v1=95 v2=5)" in planned
    assert place.value("users/split")["weights"] == {"v1": 95, "v2": 5}
    (told,) = place.data("apply", "-f", more)
    assert sorted(told["keys"]) == ["services/users/rules/new", "services/users/split"]
    assert place.value("users/rules/old")
    whole = services(
        place, users={"stable": "v1", "split": {"v1": 50, "v2": 50}, "rules": [{"name": "new", **rule("v3")}]}
    )
    (told,) = place.data("apply", "-f", whole, "--prune")
    assert sorted(told["keys"]) == ["services/users/rules/old", "services/users/service"]
    assert place.data("history", "users")[0]["action"] == "apply"
    bad = services(place, users={"split": {"v1": 0}})
    place.fails(2, "apply", "-f", bad, words=f"{bad}:")
    place.fails(2, "apply", "-f", "/nowhere.yaml", words="/nowhere.yaml cannot be read")


def script(text: str) -> str:
    """An editor that does this with the file's `text`."""
    code = f"import pathlib, sys; file = pathlib.Path(sys.argv[1]); text = file.read_text(); {text}"
    return f"{sys.executable} -c {shlex.quote(code)}"


def test_edit(place: Place) -> None:
    saved = script("file.write_text(text.replace('95', '80'))")
    assert "users: v1=80 v2=5 (was v1=95 v2=5), revision" in place("edit", "users/split", editor=saved).stdout
    history = len(place.data("history", "users"))
    unchanged = place("edit", "users/split", editor="true")
    assert (unchanged.exit_code, unchanged.stdout) == (0, "")
    assert "nothing was written" in unchanged.stderr
    place.fails(1, "edit", "users/split", editor="false", words="ended with status 1")
    place.fails(2, "edit", "users/split", editor="/nowhere/vi", words="cannot be run")
    bad = script("file.write_text(text.replace('80', 'eighty'))")
    place.fails(2, "edit", "users/split", editor=bad, words="services/users/split:")
    other = f"{sys.executable} -m graylb.cli split users v2=1 -c {place.path}"
    late = script(f"import subprocess; subprocess.run({other!r}.split(), check=True); file.write_text('{{\"v1\": 1}}')")
    conflict = place("edit", "users/split", editor=late)
    assert (conflict.exit_code, conflict.stdout) == (1, "")
    assert "set the split of users" in conflict.stderr
    assert 'what you wrote: {"v1": 1}' in conflict.stderr
    assert len(place.data("history", "users")) == history + 1
    fresh = script(f"file.write_text({json.dumps(json.dumps(rule('v2')))})")
    assert "users: rules/beta, revision" in place("edit", "users/rules/beta", editor=fresh).stdout


def test_what_is_wrong_can_be_edited_again(tmp_path: Path) -> None:
    """At a terminal the errors are shown, and the editor opens with what was written before."""
    place = Place(write(tmp_path, document()), "file")
    mend = "text.replace('ninety', '90') if 'ninety' in text else text.replace('95', 'ninety')"
    env = {**os.environ, "GRAYLB_ADMIN": NOBODY, "EDITOR": script(f"file.write_text({mend})")}
    env.pop("VISUAL", None)
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-m", "graylb.cli", "edit", "users/split", "-c", str(place.path)]
        os.write(ours, b"y\n")
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, env=env, timeout=60, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "not valid JSON" in done.stderr
    assert "edit again?" in done.stderr
    assert place.value("users/split")["weights"] == {"v1": 90, "v2": 5}


def test_what_only_a_document_can_say(tmp_path: Path) -> None:
    place = Place(write(tmp_path, document()), "file")
    place.fails(1, "set", "users/lists/staff", '["ann"]', words="lists of users are kept in the document")
    place.fails(1, "delete", "users/instances/127.0.0.1:9001", words="instances of users are kept in the document")
    place.fails(1, "apply", "-f", services(place, shop={"stable": "v1"}), words="add shop to")
    sidecar = write(tmp_path, {"sidecar": {"service": "a", "version": "v1", "app": "127.0.0.1:1"}}, "sidecar.yaml")
    place.fails(2, "apply", "-f", sidecar, words="placed for that sidecar alone")
    assert not (tmp_path / "graylb.yaml.state.json").exists()


def test_a_document_on_an_etcd_that_is_away(tmp_path: Path) -> None:
    part = {"endpoints": ["127.0.0.1:1"]}
    place = Place(write(tmp_path, {"listeners": [{"address": "127.0.0.1:0"}], "etcd": part}), "etcd")
    place.fails(1, "get", words="cannot be read")
    write(tmp_path, "etcd: {endpoints: 5}\n")
    place.fails(2, "get", words="$.etcd.endpoints")


@pytest.mark.slow
def test_beside_a_proxy_on_etcd(etcd: servers.Cluster, tmp_path: Path) -> None:
    """With it, or past it by the document; the status names every node, and the key that one refuses."""
    prefix = f"/test-{next(COUNT)}"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    part = {"endpoints": list(etcd.endpoints), "prefix": prefix}
    past = Place(write(folder, {"listeners": [{"address": "127.0.0.1:0"}], "etcd": part}), "etcd")
    past.data("apply", "-f", write(folder, {"services": {"users": users()}}, "services.yaml"))
    past.fails(1, "status", words="no proxy runs on")
    with proxies.running(tmp_path, etcds.document(etcd, "one", prefix=prefix)) as proxy:
        near = ["-c", proxy.file, "--admin", proxy.admin]
        told = proxies.cli("split", "users", "v1=50", "v2=50", *near)
        assert "applied by the running proxy" in told.stdout, told.stderr
        assert "applied by one" in past("split", "users", "v1=40", "v2=60").stdout
        with etcd.nodes[0].store() as store:
            store.put(f"{prefix}/services/users/rules/bad", "{")
        key = f"{prefix}/services/users/rules/bad"

        def refused() -> list[str]:
            (node,) = past.data("status")["nodes"]
            return [each["key"] for each in node["refused"]]

        proxies.until(lambda: refused() == [key], "told")
        for shown in (past("status").stdout, proxies.cli("status", *near).stdout):
            assert key in shown
            assert "not valid JSON" in shown
        found = json.loads(proxies.cli("status", *near, "--json").stdout)
        assert [each["node"] for each in found["nodes"]] == ["one"]
        assert "users: rules/bad, revision" in proxies.cli("delete", "users/rules/bad", *near).stdout
        proxies.until(lambda: refused() == [], "mended")


def test_more_than_etcd_takes_at_once_is_applied_in_parts(etcd: servers.Cluster, tmp_path: Path) -> None:
    part = {"endpoints": list(etcd.endpoints), "prefix": f"/test-{next(COUNT)}"}
    place = Place(write(tmp_path, {"listeners": [{"address": "127.0.0.1:0"}], "etcd": part}), "etcd")
    many = [{"address": f"127.0.1.{n}:80", "version": f"v{n % 3 + 1}"} for n in range(1, 200)]
    large = {f"s{n}": users(hosts=[f"s{n}"]) for n in range(20)} | {"users": users(hosts=["users"], instances=many)}
    told = place.data("apply", "-f", services(place, **large))
    assert sorted(each["service"] for each in told) == sorted(large)
    assert sum(len(each["keys"]) for each in told) == 20 * 5 + 2 + 199
    assert place("apply", "-f", services(place, **large), "--prune").stdout == "nothing to change\n"
    text = place("export").stdout
    assert text.count("address: ") == 20 * 3 + 199


def test_what_is_refused_is_mended_by_what_is_in_force(etcd: servers.Cluster, tmp_path: Path) -> None:
    """The same value again is no change of what is in force, but of what stands there; a refused key can be deleted."""
    prefix = f"/test-{next(COUNT)}"
    part = {"endpoints": list(etcd.endpoints), "prefix": prefix}
    place = Place(write(tmp_path, {"listeners": [{"address": "127.0.0.1:0"}], "etcd": part}), "etcd")
    place.data("apply", "-f", services(place, users=users()))
    with etcd.nodes[0].store() as store:
        for key in ("split", "rules/bad"):
            store.put(f"{prefix}/services/users/{key}", "{")
        assert place.value("users/split")["weights"] == {"v1": 95, "v2": 5}
        assert place.data("set", "users/split", '{"v1": 95, "v2": 5}')["keys"] == ["services/users/split"]
        assert json.loads(store.get(f"{prefix}/services/users/split")[0])["weights"] == {"v1": 95, "v2": 5}
        assert place.data("delete", "users/rules/bad")["keys"] == ["services/users/rules/bad"]
        place.fails(2, "delete", "users/rules/bad", words="there is no key")
