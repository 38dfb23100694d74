"""A command does and says the same whether it asks the running proxy or opens the store itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.parts import document, users, write
from tests.control.running import Running, started
from tests.integration.admins import TOKEN, Certificates, graylb

RULES = [
    {"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v2"},
    {"name": "ab", "match": {"query": {"exp": "a"}}, "split": {"v1": 50, "v2": 50}},
]
EXPORTED = '{"services": {"users": {"split": {"v3": 7}, "rules": [], "stable": "v1"}}}'

COMMANDS: list[tuple[int, list[str]]] = [
    (0, ["get"]),
    (0, ["get", "--json"]),
    (0, ["get", "users/split"]),
    (2, ["get", "users/rules/none"]),
    (0, ["split", "users", "v1=50", "v2=50", "-m", "half"]),
    (0, ["split", "users", "v1=50", "v2=50", "--json"]),
    (0, ["split", "users", "v1=1", "v2=2", "--json"]),
    (2, ["split", "users", "v9=1"]),
    (2, ["split", "users", "v1=0"]),
    (2, ["split", "orders", "v1=1"]),
    (1, ["split", "users", "v1=1", "--expect", "1"]),
    (0, ["rollback", "users", "-m", "no"]),
    (0, ["rollback", "users", "--to", "1"]),
    (2, ["rollback", "users", "--to", "1"]),
    (2, ["rollback", "orders"]),
    (0, ["set", "users/rules/staff", '{"match": {"headers": {"x-staff": "1"}}, "to": {"version": "v2"}}']),
    (2, ["set", "users/rules/staff", '{"mach": {}, "to": "v2"}']),
    (
        2,
        ["set", "users/rules/staff", '{"match": '],
    ),
    (2, ["set", "users/split", '{"v1": NaN}']),
    (2, ["set", "users/nonsense", "1"]),
    (1, ["set", "users/instances/x", '{"address": "a:1", "version": 1.10}']),
    (1, ["set", "orders/split", '{"v1": 1}']),
    (0, ["delete", "users/rules/staff", "-m", "enough"]),
    (2, ["delete", "users/rules/staff"]),
    (0, ["export"]),
    (0, ["export", "--json"]),
    (0, ["apply", "-f", "FILE", "--dry-run"]),
    (0, ["apply", "-f", "FILE", "--dry-run", "--json"]),
    (0, ["apply", "-f", "FILE", "--json", "--prune"]),
    (0, ["apply", "-f", "FILE"]),
    (0, ["history"]),
    (0, ["history", "users", "--json"]),
    (2, ["history", "orders"]),
    (0, ["diff", "1", "2", "--json"]),
    (0, ["diff", "2"]),
    (2, ["diff", "99"]),
    (0, ["explain", "-H", "user-group: beta", "--json"]),
    (0, ["explain", "-H", "x-user-id: 7"]),
    (2, ["explain", "--listener", "none"]),
    (2, ["explain", "-H", "host: a b"]),
]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    with started(folder, write(folder, document(users=users(rules=RULES)))) as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, proxy: Running) -> Path:
    """The same document and state, and no proxy."""
    folder = tmp_path_factory.mktemp("alone")
    for file in ("graylb.yaml", "graylb.yaml.state.json"):
        (folder / file).write_bytes((proxy.folder / file).read_bytes())
    return folder / "graylb.yaml"


def timeless(text: str) -> str:
    """Without what may differ: times, and whether somebody applied it."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    text = text.replace('"applied": true', '"applied": false')
    text = text.replace("applied by the running proxy\n", "").replace(
        "no proxy runs on this document; it applies at the next start\n", ""
    )
    return re.sub(r"/[^ ]*/(running|alone)\d*/", "FOLDER/", text)


def test_the_same_at_both(proxy: Running, alone: Path, tmp_path: Path) -> None:
    """In one go, for each command finds what those before it did."""
    file = tmp_path / "services.yaml"
    file.write_text(EXPORTED)
    for status, command in COMMANDS:
        arguments = [str(file) if each == "FILE" else each for each in command]
        remote = graylb(*arguments, env={"GRAYLB_ADMIN": proxy.admin})
        local = graylb(*arguments, "-c", alone)
        assert remote.exit_code == status, (command, remote.output)
        assert timeless(remote.output) == timeless(local.output), command


def test_a_proxy_without_its_files_at_hand(proxy: Running) -> None:
    """Everything goes by the address alone."""
    result = graylb("split", "users", "v1=3", "v2=4", "--json", "--admin", proxy.admin)
    assert (result.exit_code, json.loads(result.stdout)["applied"]) == (0, True)
    (newest, *_) = json.loads(graylb("history", "--json", "--admin", proxy.admin).stdout)
    assert (newest["split"], newest["who"]) != ("", "local")
    proxy.wait_for_log(f"revision {newest['revision']}:")  # the proxy wrote it itself


def test_the_log_level_and_the_end(tmp_path: Path) -> None:
    with started(tmp_path, write(tmp_path, document())) as running:
        admin = ["--admin", running.admin]
        assert graylb("log-level", *admin).stdout == "info\n"
        assert graylb("log-level", "debug", *admin).stdout == "debug\n"
        running.wait_for_log("debug: admin: PUT /log-level")
        refused = graylb("log-level", "loud", *admin)
        assert (refused.exit_code, "level" in refused.stderr) == (2, True)
        assert graylb("ready", *admin).stdout == "ready\n"
        for _ in range(2):
            assert graylb("ready", "no", *admin).stdout == "not ready\n"
        assert graylb("ready", *admin).stdout == "not ready\n"
        assert graylb("ready", "yes", *admin).stdout == "ready\n"
        refused = graylb("ready", "maybe", *admin)
        assert (refused.exit_code, "expected yes or no" in refused.stderr) == (2, True)
        assert graylb("drain", "--seconds", "5", *admin).stdout == "draining for at most 5 s\n"
        assert running.process.wait(20) == 0
        gone = graylb("drain", *admin)
        assert (gone.exit_code, "no proxy answers" in gone.stderr) == (1, True)


def test_a_token_and_tls(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates")
    cert, key = certificates.issue("ann")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"bob: {TOKEN}\n")
    data: dict[str, Any] = document()
    tls = {**certificates.tls, "client_ca": str(certificates.folder / "clients.pem")}
    data["admin"] |= {"token_file": str(tokens), "tls": tls}
    with started(tmp_path, write(tmp_path, data)) as running:
        address = f"https://{running.admin}"
        ca = ["--admin-ca", str(certificates.folder / "ca.pem")]
        unknown = graylb("status", "--admin", address)
        assert (unknown.exit_code, "--admin-ca" in unknown.stderr) == (1, True)
        for arguments in (("status",), ("split", "users", "v1=1"), ("get",), ("log-level",), ("drain",)):
            refused = graylb(*ca, *arguments, "--admin", address)
            assert (refused.exit_code, "GRAYLB_ADMIN_TOKEN or --admin-token-file" in refused.stderr) == (1, True)
            assert len(refused.stderr.splitlines()) == 1
        wrong = graylb(*ca, "get", "--admin", address, env={"GRAYLB_ADMIN_TOKEN": "x" * 20})
        assert "this token is not known" in wrong.stderr
        for who, shown, env in (
            ("bob", [], {"GRAYLB_ADMIN_TOKEN": TOKEN}),
            ("bob", ["--admin-token-file", str(tokens)], {}),
            ("ann", ["--admin-cert", str(cert), "--admin-key", str(key)], {}),
        ):
            change = ["rollback", "users"] if who == "ann" else ["split", "users", "v1=1"]
            done = graylb(*ca, *shown, *change, "--admin", address, env=env)
            assert done.exit_code == 0, done.output
            newest = json.loads(graylb(*ca, *shown, "history", "--json", "--admin", address, env=env).stdout)[0]
            assert newest["who"] == who
        missing = graylb("--admin-token-file", tmp_path / "none", "get", "--admin", address)
        assert (missing.exit_code, "cannot be read" in missing.stderr) == (1, True)
