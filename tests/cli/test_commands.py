"""Commands without a running proxy: what they print, what they store, how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from graylb.control.store import Store, state_path
from tests.control.parts import document, users, write

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "127.0.0.1:1"  # where no proxy answers


def graylb(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"GRAYLB_ADMIN": NOBODY, "COLUMNS": "150"})


def fails(result: Result, status: int, *words: str) -> None:
    """One line on stderr that has all the words."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, document())


def split_of(path: Path) -> dict[str, float]:
    content = Store(state_path(path)).read().services["users"].in_force
    assert content is not None
    return content.splits[""].weights


# -- check ---------------------------------------------------------------------------------------------------------


def test_check_says_ok(path: Path) -> None:
    result = graylb("check", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}: ok\n")


def test_check_says_everything_that_is_wrong_in_every_file(tmp_path: Path, path: Path) -> None:
    bad = write(tmp_path, document(users=users(fallback="perhaps", spit={"v1": 1})), "bad.yaml")
    result = graylb("check", path, bad)
    assert result.exit_code == 1
    assert f"{path}: ok" in result.stdout
    assert f"{bad}: 2 errors" in result.stdout
    assert "perhaps" in result.stderr
    assert 'did you mean "split"' in result.stderr
    assert not state_path(path).exists()


def test_check_as_json(tmp_path: Path) -> None:
    bad = write(tmp_path, document(users=users(fallback="perhaps")))
    result = graylb("check", "--json", bad)
    (found,) = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (1, False)
    assert found["errors"][0]["path"] == "$.services.users.fallback"
    assert found["errors"][0]["line"] > 1


def test_check_shows_warnings_and_passes(tmp_path: Path) -> None:
    odd = write(tmp_path, document(users=users(split={"v1": 1, "v9": 1})))
    result = graylb("check", odd)
    assert result.exit_code == 0
    assert "warning:" in result.stderr
    assert "v9" in result.stderr


@pytest.mark.parametrize("sample", sorted((ROOT / "config").glob("*.yaml")), ids=lambda sample: sample.name)
def test_check_passes_every_sample(sample: Path) -> None:
    result = graylb("check", sample)
    assert (result.exit_code, result.stdout) == (0, f"{sample}: ok\n"), result.stderr


def test_check_explains_a_document_in_full(tmp_path: Path) -> None:
    path = write(tmp_path, {"services": {"users": users()}})
    fails_without = graylb("check", "--explain", path)
    assert (fails_without.exit_code, fails_without.stdout) == (1, f"{path}: 1 error\n")
    assert "preset: edge or sidecar" in fails_without.stderr
    full = graylb("check", "--explain", "--edge", path).stdout
    again = write(tmp_path, full, "full.yaml")
    assert graylb("check", again).stdout == f"{again}: ok\n"
    assert full.startswith(f"# {path} in full")
    assert "header_timeout: 5\n" in full
    assert "preset" not in full.partition("\n")[2]
    data = json.loads(graylb("check", "--explain", "--edge", "--json", path).stdout)
    assert data["forwarding"] == {"x_forwarded": "replace", "forwarded": "replace", "via": True, "request_id": "pass"}
    fails(graylb("check", "--explain", path, again), 2, "expected one FILE")
    fails(graylb("check", "--edge", "--sidecar", path), 2, "expected one of them")
    assert graylb("check", "--edge", path).stdout == f"{path}: ok\n"


def test_explain_with_a_preset(tmp_path: Path) -> None:
    path = write(tmp_path, {"services": {"users": users()}})
    assert explained(path, "--edge")["service"] == "users"
    path = write(tmp_path, {"sidecar": {"service": "a", "version": "v1", "app": "127.0.0.1:1"}})
    assert explained(path, "--listener", "inbound")["service"] == "a-local"
    fails(graylb("explain", "-c", path, "--edge"), 1, "$.sidecar", "as --edge asks")


def test_check_of_a_missing_file(tmp_path: Path) -> None:
    result = graylb("check", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "No such file" in result.stderr


# -- schema, version, help ---------------------------------------------------------------------------------------


def test_schema_is_one_of_json_schema() -> None:
    schema = json.loads(graylb("schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"listeners", "services", "admin"} <= schema["properties"].keys()


def test_version() -> None:
    assert json.loads(graylb("version", "--json").stdout)["graylb"] in graylb("version").stdout


def test_every_command_has_help_and_completion_exists() -> None:
    assert "--install-completion" in graylb("--help").stdout
    for command in (
        *("run", "demo", "status", "check", "schema", "explain", "version", "diff"),
        *("split", "rollback", "history", "get", "set", "delete", "edit", "apply", "export"),
    ):
        assert graylb(command, "--help").exit_code == 0


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "graylb.cli", "version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("graylb ")


# -- split, rollback, history ------------------------------------------------------------------------------------


def test_split_and_rollback_are_stored_for_the_next_start(path: Path) -> None:
    result = graylb("split", "users", "v1=50", "v2=50", "-c", path, "--reason", "looks good")
    assert result.exit_code == 0, result.output
    assert "users: v1=50 v2=50 (was v1=95 v2=5), revision 2" in result.stdout
    assert "applies at the next start" in result.stdout
    assert split_of(path) == {"v1": 50, "v2": 50}
    assert "users: v1=95 v2=5 (was v1=50 v2=50), revision 3" in graylb("rollback", "users", "-c", path).stdout
    assert "users: v1=50 v2=50" in graylb("rollback", "users", "-c", path, "--to", "2").stdout


def test_history_tells_who_what_and_why(path: Path) -> None:
    graylb("split", "users", "v1=50", "v2=50", "-c", path, "-m", "looks good")
    first, last = json.loads(graylb("history", "users", "-c", path, "--json").stdout)[::-1]
    assert (first["who"], first["what"], first["former"], first["split"]) == ("file", ["new"], "-", "v1=95 v2=5")
    assert (last["action"], last["why"], last["former"]) == ("split", "looks good", "v1=95 v2=5")
    table = graylb("history", "users", "-c", path).stdout
    assert "looks good" in table
    assert "v1=95 v2=5 → v1=50 v2=50" in table


def test_split_as_json(path: Path) -> None:
    found = json.loads(graylb("split", "users", "v2=1", "-c", path, "--json").stdout)
    assert found["revision"] == 2
    assert found["applied"] is False


def test_another_state_file(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    assert graylb("split", "users", "v2=1", "-c", path, "--state", elsewhere).exit_code == 0
    assert elsewhere.exists()
    assert not state_path(path).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["users", "v1"], ["'v1'", "VERSION=WEIGHT"]),
        (["users", "v1=x"], ["'v1=x'", "weight from 0 up"]),
        (["users", "v1=-1", "v2=1"], ["'v1=-1'"]),
        (["users", "v1=nan"], ["'v1=nan'"]),
        (["users", "v1=inf"], ["'v1=inf'"]),
        (["users", "=5"], ["'=5'"]),
        (["users", "v1=1", "v1=2"], ["v1 is given twice"]),
        (["users", "v1=0"], ["one of them positive"]),
        (["users", "v1=1", "v9=1"], ["no instance of version 'v9'", "v1, v2, v3"]),
        (["user", "v1=1"], ["no service 'user'", "there is users"]),
        (["users", "v1=1", "--expect", "7"], ["revision 0, not 7"]),
    ],
)
def test_a_split_that_cannot_be(path: Path, arguments: list[str], words: list[str]) -> None:
    result = graylb("split", *arguments, "-c", path)
    fails(result, 1 if "--expect" in arguments else 2, *words)
    assert not state_path(path).exists()


def test_an_old_look_conflicts_and_tells_what_happened(path: Path) -> None:
    graylb("split", "users", "v1=50", "v2=50", "-c", path, "-m", "first")
    result = graylb("split", "users", "v1=1", "-c", path, "--expect", "1")
    fails(result, 1, "at revision 2, not 1", "v1=50 v2=50", "(first)")


def test_rollback_without_a_past(path: Path) -> None:
    fails(graylb("rollback", "users", "-c", path), 2, "no former split")
    fails(graylb("rollback", "users", "-c", path, "--to", "9"), 2, "already as it was")


def test_history_before_there_is_one(path: Path) -> None:
    fails(graylb("history", "users", "-c", path), 1, "no history yet")
    graylb("split", "users", "v2=1", "-c", path)
    fails(graylb("history", "orders", "-c", path), 2, "no service 'orders'; there is users")


def test_a_damaged_state_is_told_by_every_command(path: Path) -> None:
    state_path(path).write_text("{")
    for command in (["split", "users", "v1=1"], ["rollback", "users"], ["history", "users"], ["explain"]):
        fails(graylb(*command, "-c", path), 1, "is damaged", str(state_path(path)))


def test_without_a_proxy_and_a_document() -> None:
    for command in (["split", "users", "v1=1"], ["rollback", "users"], ["history", "users"], ["explain"], ["status"]):
        fails(graylb(*command), 1, f"no proxy answers on {NOBODY}")
    fails(graylb("status", "--admin", "nowhere"), 2, "expected host:port")
    fails(graylb("history", "users", "-c", "/nowhere.yaml"), 2, "no such file")


# -- explain -----------------------------------------------------------------------------------------------------


def explained(path: Path, *arguments: str) -> dict[str, Any]:
    result = graylb("explain", "-c", path, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_explain_names_rule_or_slot(tmp_path: Path) -> None:
    rule = {"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}
    path = write(tmp_path, document(users=users(rules=[rule])))
    tester = explained(path, "--path", "/x", "--header", "user-group: beta")
    assert (tester["service"], tester["rule"], tester["version"]) == ("users", "testers", "v2")
    caller = explained(path, "--header", "x-user-id: ann", "--header", "user-group: alpha")
    assert caller["slot"] in range(10_000)
    assert caller["version"] in ("v1", "v2")
    shown = graylb("explain", "-c", path, "--header", "x-user-id: ann").stdout
    assert "testers" in shown
    assert "users" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--header", "nocolon"], ["'nocolon'", "name: value"]),
        (["--client-ip", "here"], ["'here'", "IP address"]),
        (["--path", "x"], ["begins with /"]),
        (["--path", "/a b"], ["would not accept this request"]),
        (["--header", "a: b\r\nc: d"], ["line break"]),
    ],
)
def test_explain_of_no_request(path: Path, arguments: list[str], words: list[str]) -> None:
    fails(graylb("explain", "-c", path, *arguments), 2, *words)


def test_explain_by_listener(tmp_path: Path) -> None:
    listeners = [{"address": f"127.0.0.1:{port}", "role": role} for port, role in ((1, "inbound"), (2, "outbound"))]
    path = write(tmp_path, {**document(users=users(listeners=["inbound"])), "listeners": listeners})
    assert explained(path, "--listener", "inbound")["service"] == "users"
    told = explained(path, "--listener", "outbound")
    assert (told["outcome"], told["listener"]) == ("no-route", "outbound")
    assert told["because"].endswith("on listener outbound")
    fails(graylb("explain", "-c", path), 2, "--listener", "expected one of inbound, outbound")
    fails(graylb("explain", "-c", path, "--listener", "edge"), 2, "unknown listener 'edge'", "inbound, outbound")
    path = write(tmp_path, {**document(users=users()), "listeners": listeners})
    assert explained(path)["listener"] is None  # no route asks for it
    assert explained(write(tmp_path, document(users=users())))["listener"] == "edge"


def test_explain_shows_a_long_reason_whole(tmp_path: Path) -> None:
    """A tree of rich is cut at the terminal's width, and with it what the rule expected."""
    value = "x" * 70 + "-the-end"
    document = tmp_path / "graylb.yaml"
    document.write_text(
        "listeners: [{address: 127.0.0.1:0}]\n"
        "services: {users: {instances: [{address: 127.0.0.1:1, version: v1}],\n"
        f"  rules: [{{name: long, match: {{headers: {{x-some-header: {value}}}}}, to: v1}}]}}}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "graylb.cli", "explain", "-c", str(document)], capture_output=True, text=True, check=True
    )
    assert value in done.stdout
