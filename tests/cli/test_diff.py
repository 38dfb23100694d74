"""The command diff on real documents, their state files and histories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from tests.control.parts import document, users, write

NOBODY = "127.0.0.1:1"  # where no proxy answers


def graylb(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"GRAYLB_ADMIN": NOBODY, "COLUMNS": "150"})


def diff(*arguments: str | Path) -> Any:
    result = graylb("diff", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def texts(found: Any) -> list[str]:
    return [change["text"] for change in found["changes"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, document())


def test_two_documents(path: Path, tmp_path: Path) -> None:
    new = write(tmp_path, document(users=users(split={"v1": 90, "v2": 10}, fallback="strict")), "new.yaml")
    assert graylb("diff", path, new).stdout.splitlines() == [
        "users",
        "  ~ split v1 95 → 90, v2 5 → 10",
        "  ~ moved slots 500 (5.00 %): v1 → v2 500",
        "  ~ fallback stable → strict",
        "  = 5.00 % of the callers that no rule decides change version: v1 → v2 5.00 %",
    ]
    (callers,) = diff(path, new)["callers"]
    assert (callers["exact"], callers["moved"], callers["moves"]) == (True, 0.05, [["v1", "v2", 0.05]])
    assert graylb("diff", path, path).stdout == "no difference\n"


def test_the_second_comes_in_the_place_of_the_first_and_on_its_state(path: Path, tmp_path: Path) -> None:
    """Slots that commands have moved stay moved, and what a command has set holds where the document says the same."""
    for weights in (["v1=50", "v2=50"], ["v1=50", "v2=30", "v3=20"]):
        assert graylb("split", "users", *weights, "-c", path).exit_code == 0
    before = path.with_name("graylb.yaml.state.json").read_bytes()
    same = write(
        tmp_path,
        document(users=users(instances=[*users()["instances"][:2], {"address": "127.0.0.1:9", "version": "v3"}])),
        "same.yaml",
    )
    assert texts(diff(path, same)) == ["instance 127.0.0.1:9003 removed (v3)", "instance 127.0.0.1:9 added (v3)"]
    # from where they are now: v2 gives 2,000 slots of its 3,000
    new = write(tmp_path, document(users=users(split={"v1": 70, "v2": 10, "v3": 20})), "new.yaml")
    (callers,) = diff(path, new)["callers"]
    assert callers["moves"] == [["v2", "v1", 0.2]]
    assert diff(new, "-c", path) == diff(path, new)
    assert path.with_name("graylb.yaml.state.json").read_bytes() == before


def test_revisions(path: Path) -> None:
    graylb("split", "users", "v1=50", "v2=50", "-c", path)
    graylb("split", "users", "v1=20", "v2=80", "-c", path)
    assert texts(diff(1, 2, "-c", path)) == [
        "split v1 95 → 50, v2 5 → 50",
        "moved slots 4,500 (45.00 %): v1 → v2 4,500",
    ]
    assert texts(diff(3, 2, "-c", path))[1] == "moved slots 3,000 (30.00 %): v2 → v1 3,000"
    to_now = diff(1, "-c", path)
    assert to_now["callers"][0]["moves"] == [["v1", "v2", 0.75]]
    assert "not in the history" in to_now["notes"][0]
    assert "note: instances and lists" in graylb("diff", "3", "-c", path).stdout


def test_a_revision_of_services_that_came_and_went(path: Path, tmp_path: Path) -> None:
    graylb("split", "users", "v1=50", "v2=50", "-c", path)  # revision 2, users came with 1
    write(tmp_path, document(shop=users()))
    graylb("split", "shop", "v1=50", "v2=50", "-c", path)  # 3: the document, 4: the command
    assert texts(diff(2, 4, "-c", path)) == [
        'route users (host "*", prefix /) removed, to service users',
        'route shop (host "*", prefix /) added, to service shop',
        "service users removed (split v1 50, v2 50, 0 rules, 0 instances)",
        "service shop added (split v1 50, v2 50, 0 rules, 3 instances)",
    ]


def test_a_rule_of_the_past_may_ask_for_a_list_that_is_gone(path: Path, tmp_path: Path) -> None:
    rules = [{"name": "staff", "match": {"headers": {"x-user-id": {"in": "staff"}}}, "to": "v2"}]
    write(tmp_path, document(users=users(rules=rules, lists={"staff": ["ann"]})))
    graylb("split", "users", "v1=50", "v2=50", "-c", path)
    write(tmp_path, document(users=users()))
    graylb("split", "users", "v1=50", "v2=50", "-c", path)
    assert "rule staff removed: header x-user-id in list staff → version v2" in texts(diff(2, "-c", path))


def test_what_cannot_be_compared(path: Path, tmp_path: Path) -> None:
    graylb("split", "users", "v1=50", "v2=50", "-c", path)
    bad = write(tmp_path, document(users=users(fallback="perhaps")), "bad.yaml")
    for arguments, status, word in [
        ((path, bad), 1, "perhaps"),
        ((bad, path), 1, "perhaps"),
        (("1", "9", "-c", path), 2, "no revision 9; the history is at revision 2"),
        (("1", path), 2, "expected a revision"),
        ((path, "1"), 2, "expected a document"),
        ((path, path, "-c", path), 2, "two documents are given"),
        (("1",), 1, "no proxy answers"),
        ((path, tmp_path / "none.yaml"), 1, "No such file"),
    ]:
        result = graylb("diff", *arguments)
        assert (result.exit_code, result.stdout) == (status, ""), arguments
        assert word in result.stderr
