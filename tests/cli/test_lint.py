"""The command lint on real files: places, exit status, JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from tests.control.parts import document, users, write

DOCUMENT = """\
listeners:
  - {address: 127.0.0.1:0}
services:
  users:
    stable: v1
    sticky: [{header: x-user-id}]
    split: {v1: 95, v2: 4, v9: 1}
    lists:
      staff: [ann, bob, ann]
      old: {file: old.txt}
    rules:
      - name: testers
        match: {headers: {user-group: {in: [beta, alpha]}}}
        to: v2
      - name: beta
        match: {headers: {user-group: beta}}
        to: v1
      - name: staff
        match: {headers: {x-user-id: {in: staff}}}
        to: v1
    instances:
      - {address: 127.0.0.1:9001, version: v1}
      - {address: 127.0.0.1:9002, version: v2}
      - {address: "localhost:9003", version: v3}
"""


def lint(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "old.txt").write_text("# gone\n\nann\nann\n")
    return write(tmp_path, DOCUMENT)


def test_findings_with_their_places(path: Path) -> None:
    result = lint(path)
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert lines == [
        f"{path}:15:9: error GL001: rule beta never wins",
        f"{path}:7:32: warning GL004: the split gives 1 to v9, which has no instance",
        f"{path}:9:14: warning GL012: list staff of users has ids more than once",
        f"{path}:10:12: warning GL011: list old of users is not used",
        f"{path}:10:12: warning GL012: list old of users has ids more than once",
        f"{path}:24:9: warning GL005: no request reaches version v3 of users",
        f"{path}:18:9: info GL008: rules testers and staff overlap",
        f"{path}: 1 error, 5 warnings, 1 info",
    ]


def test_findings_as_json(path: Path) -> None:
    (result,) = json.loads(lint("--json", path).stdout)
    first = result["findings"][0]
    assert (first["id"], first["line"], first["column"], first["path"]) == ("GL001", 15, 9, "$.services.users.rules[1]")
    (overlap,) = [each for each in result["findings"] if each["id"] == "GL008"]
    assert overlap["witness"]["headers"] == [["user-group", "alpha"], ["x-user-id", "ann"]]


def test_the_printed_example_is_a_command_that_explains_it(path: Path) -> None:
    import shlex

    line = next(line for line in lint(path).stdout.splitlines() if "graylb explain" in line)
    command = shlex.split(line.partition("graylb ")[2])
    result = CliRunner().invoke(app, [*command, "-c", str(path), "--json"])
    assert json.loads(result.stdout)["rule"] == "testers"


def test_exit_status_and_ignored_kinds(path: Path, tmp_path: Path) -> None:
    assert lint(path, "--ignore", "GL001").exit_code == 0
    assert lint(path, "--ignore", "GL001", "--strict").exit_code == 1
    clean = write(tmp_path, document(users=users(split={"v1": 1, "v2": 1, "v3": 1})), "clean.yaml")
    result = lint("--strict", clean)
    assert (result.exit_code, result.stdout) == (0, f"{clean}: nothing found\n")
    result = lint(path, "--ignore", "GL999")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_document_that_is_not_valid_has_errors_only(tmp_path: Path) -> None:
    bad = write(tmp_path, document(users=users(fallback="perhaps")))
    result = lint(bad)
    assert (result.exit_code, result.stdout) == (1, f"{bad}: 1 error\n")
    assert "perhaps" in result.stderr
    assert "cannot be read" in lint(tmp_path / "none.yaml").stderr


def test_the_long_form_of_a_split_and_its_versions(tmp_path: Path) -> None:
    text = DOCUMENT.replace("split: {v1: 95, v2: 4, v9: 1}", "split:\n      weights: {v1: 95, v2: 4, v9: 1}")
    found = json.loads(lint("--json", write(tmp_path, text.replace("old: {file: old.txt}", "old: [x]"))).stdout)
    (one,) = [each for each in found[0]["findings"] if each["id"] == "GL004"]
    assert (one["path"], one["line"]) == ("$.services.users.split.weights.v9", 8)


def test_the_guide_names_only_commands_that_exist() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "releases.md").read_text()
    named = set(re.findall(r"`(?:\$ )?graylb ([a-z]+)", guide)) | set(
        re.findall(r"^\$ graylb ([a-z]+)", guide, re.MULTILINE)
    )
    assert named >= {"lint", "diff", "replay", "split", "rollback", "history", "explain", "check"}
    for command in named:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
