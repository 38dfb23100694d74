"""What doctor refuses before it sends anything, and whom it does not reach: one line, exit status 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graylb.cli.app import app

NOWHERE = "http://127.0.0.1:1/"  # where nobody answers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ftp://users.local/"], ["'ftp://users.local/'", "expected http(s)://"]),
        (["users.local"], ["expected http(s)://"]),
        (["http://users.local:99999/"], ["expected http(s)://"]),
        (["http://users.local/\n"], ["expected http(s)://"]),
        (["grpc://users.local/a.B/C"], ["expected grpc(s)://HOST:PORT"]),
        (["grpc://users.local:80/C"], ["expected grpc(s)://HOST:PORT"]),
        ([NOWHERE, "--mark", "v 2"], ["--mark 'v 2'", "expected letters"]),
        ([NOWHERE, "--secret", "none"], ["--secret: expected --mark"]),
        ([NOWHERE, "--mark", "v2", "--secret", "none"], ["none: No such file"]),
        ([NOWHERE, "-H", "x-a"], ["--header 'x-a'", "expected 'name: value'"]),
        ([NOWHERE, "-H", "x-ä: 1"], ["expected a name and a value of printable ASCII"]),
        (["grpc://127.0.0.1:1/a.B/C", "-H", "x(: 1"], ["--header 'x(: 1'"]),
        (["grpc://127.0.0.1:1/a.B/C", "-H", "x!: 1"], ["--header 'x!'", "that gRPC takes"]),
        (["grpc://127.0.0.1:1/a.B/C", "-H", "x-bin: 1"], ["--header 'x-bin'"]),
        ([NOWHERE, "--timeout", "soon"], ["--timeout soon: expected a time"]),
        (["https://127.0.0.1:1/", "--ca", "none.pem"], ["--ca none.pem: No such file"]),
        (["grpcs://127.0.0.1:1/a.B/C", "--ca", "none.pem"], ["--ca none.pem: No such file"]),
        ([NOWHERE], [NOWHERE]),
        (["grpc://127.0.0.1:1/a.B/C"], ["grpc://127.0.0.1:1/a.B/C: UNAVAILABLE"]),
    ],
)
def test_it_fails_in_one_line(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("url", ["http://{}/", "grpc://{}/a.B/C"])
def test_who_does_not_answer_is_not_waited_for_longer_than_asked(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = url.format(f"127.0.0.1:{mute.getsockname()[1]}")
        result = CliRunner().invoke(app, ["doctor", place, "--timeout", "200ms"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"graylb: {place}: ")
