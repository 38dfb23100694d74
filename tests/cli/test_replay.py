"""The command replay on real logs: formats, compressed ones, stdin, what it prints and how it fails."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from graylb.cli.app import app
from tests.control.parts import document, users, write

NOBODY = "127.0.0.1:1"  # where no proxy answers
TESTERS = {"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v3"}


def graylb(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"GRAYLB_ADMIN": NOBODY, "COLUMNS": "150"})


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path, document(users=users(split={"v1": 1})))


@pytest.fixture
def new(tmp_path: Path, old: Path) -> Path:
    return write(tmp_path, document(users=users(split={"v1": 50, "v2": 50}, rules=[TESTERS])), "new.yaml")


def record(user: str | None = None, **headers: str) -> dict[str, Any]:
    headers = headers | ({"x-user-id": user} if user else {})
    return {"method": "GET", "host": "a", "path": "/x", "headers": headers, "client_ip": "192.0.2.1"}


def write_log(path: Path, *records: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    keyed = [record(f"u{n}") for n in range(100)]
    return write_log(tmp_path / "a.jsonl", *keyed, record("t", **{"user-group": "beta"}), "{", *[record()] * 9)


def test_the_matrix(log: Path, old: Path, new: Path) -> None:
    result = graylb("replay", log, "-c", old, "-f", new, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (service,) = found["services"]
    moves = {(each["from"], each["to"]): each["requests"] for each in service["matrix"]}
    assert moves["v1", "v3"] == 1
    assert sum(moves.values()) == 110
    # half of the callers, and half of the requests without a key
    assert 30 < moves["v1", "v2"] - 4.5 < 70
    assert service["drawn"] == 9
    assert {"from": "the split", "to": "rule testers", "requests": 1} in service["decided_by"]
    assert found["bad"] == [{"reason": "not JSON", "lines": 1, "first": [str(log), 102]}]


def test_what_is_printed(log: Path, old: Path, new: Path) -> None:
    text = graylb("replay", log, "-c", old, "-f", new).stdout
    assert text.startswith(
        f"110 requests of 111 lines\nleft out: 1 lines, first {log}:102: not JSON\n\nusers: 110 requests, "
    )
    assert "change version (" in text
    assert "decided by: the split → rule testers: 1 (0.91%)" in text
    assert "9 requests are drawn, as the log shows no sticky key of theirs: shares to be expected" in text
    (row,) = [line for line in text.splitlines() if line.startswith("│ v1")]
    assert row.count("│") == 6
    assert row.rstrip().endswith("100.00% │")


def test_the_answer_is_that_of_explain(old: Path, new: Path, tmp_path: Path) -> None:
    """Caller by caller, on the state that commands have written."""
    assert graylb("split", "users", "v1=50", "v2=50", "-c", old).exit_code == 0
    versions = set()
    for user in ("ann", "bob", "eve", "joe"):
        log = write_log(tmp_path / "one.jsonl", record(user))
        (service,) = json.loads(graylb("replay", log, "-c", old, "-f", new, "--json").stdout)["services"]
        explained = json.loads(graylb("explain", "-H", f"x-user-id: {user}", "-c", old, "--json").stdout)
        assert service["matrix"] == [{"from": explained["version"], "to": explained["version"], "requests": 1}]
        versions.add(explained["version"])
    assert versions == {"v1", "v2"}


def test_compressed_logs_several_logs_and_stdin(log: Path, old: Path, new: Path, tmp_path: Path) -> None:
    (packed := tmp_path / "a.log.1").write_bytes(gzip.compress(log.read_bytes()))
    once = json.loads(graylb("replay", log, "-c", old, "-f", new, "--json").stdout)
    twice = json.loads(graylb("replay", log, packed, "-c", old, "-f", new, "--json").stdout)
    assert twice["requests"] == 2 * once["requests"]
    assert twice["services"][0]["changed"] == pytest.approx(2 * once["services"][0]["changed"])
    for source in (log, packed):
        with source.open("rb") as file:
            command = [sys.executable, "-m", "graylb.cli", "replay", "-", "-c", old, "-f", new, "--json"]
            piped = json.loads(subprocess.run(command, stdin=file, capture_output=True, check=True).stdout)
        assert piped["services"] == once["services"]
        assert piped["bad"][0]["first"] == ["stdin", 102]


def test_the_combined_format_and_named_fields(old: Path, new: Path, tmp_path: Path) -> None:
    line = '192.0.2.1 - - [10/Oct/2025:13:55:36 -0700] "GET /x HTTP/1.1" 200 23 "-" "agent" "{}"'
    log = write_log(tmp_path / "access.log", *[line.format(group) for group in ("beta", "alpha", "beta")], "what")
    found = json.loads(
        graylb("replay", log, "-c", old, "-f", new, "--field", "header.user-group=extra1", "--json").stdout
    )
    moves = {(each["from"], each["to"]): each["requests"] for each in found["services"][0]["matrix"]}
    assert moves["v1", "v3"] == 2
    assert found["bad"][0]["lines"] == 1


def test_routes_by_listener(tmp_path: Path) -> None:
    data = document(users=users(listeners=["inner"]))
    data["listeners"] = [{"address": "127.0.0.1:0", "name": "outer"}, {"address": "127.0.0.1:0", "name": "inner"}]
    both = write(tmp_path, data)
    log = write_log(tmp_path / "a.jsonl", record(), record() | {"listener": "inner"})
    result = graylb("replay", log, "-c", both, "-f", both)
    assert (result.exit_code, "routes differ by listener" in result.stderr) == (2, True)
    found = json.loads(graylb("replay", log, "-c", both, "-f", both, "--listener", "outer", "--json").stdout)
    assert [(each["service"], each["requests"]) for each in found["services"]] == [(None, 1), ("users", 1)]


def test_what_it_refuses(log: Path, old: Path, new: Path, tmp_path: Path) -> None:
    bad = write(tmp_path, document(users=users(fallback="perhaps")), "bad.yaml")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(log.read_bytes())[:-20])
    empty = write_log(tmp_path / "empty.jsonl", "{", "{")
    for arguments, status, word in [
        ((log, "-c", old, "-f", bad), 1, "perhaps"),
        ((log, "-c", old, "-f", tmp_path / "none.yaml"), 1, "No such file"),
        ((tmp_path / "none.log", "-c", old, "-f", new), 1, "cannot be read: No such file"),
        ((cut, "-c", old, "-f", new), 1, "cannot be read"),
        ((log, "-c", old, "-f", new, "--format", "clf"), 2, "expected auto, json or combined"),
        ((log, "-c", old, "-f", new, "--field", "x=y"), 2, "expected NAME=FIELD"),
        ((log, "-c", old, "-f", new, "--listener", "none"), 2, "unknown listener"),
        ((log, "-f", new), 1, "no proxy answers"),
        ((empty, "-c", old, "-f", new), 1, "no line of the log is a request"),
    ]:
        result = graylb("replay", *arguments)
        assert result.exit_code == status, (arguments, result.output)
        assert word in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
