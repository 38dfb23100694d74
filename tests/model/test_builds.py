"""What a build has not is an error where it is asked for by name, and left out where it is only a default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from graylb import builds
from graylb.model.documents import load
from graylb.model.problems import ConfigErrors

ROOT = Path(__file__).parents[2]
WITHOUT_H2 = "import sys; sys.modules['graylb._h2'] = None\n"
LISTENER = "listeners: [{{address: 127.0.0.1:8080{more}}}]\n"
SERVICE = "services: {{users: {{stable: v1, instances: [{{address: 127.0.0.1:1, version: v1}}]{more}}}}}\n"


def document(listener: str = "", service: str = "") -> str:
    return LISTENER.format(more=listener) + SERVICE.format(more=service)


def test_asking_for_h2_in_a_build_without_it_names_the_package(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(document(", protocols: [h2]", ", connections: {protocol: h2}"))
    code = f"{WITHOUT_H2}from graylb.cli import main\nsys.argv = ['graylb', 'check', {str(path)!r}]\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    why = "this build of graylb has no HTTP/2"
    assert f"x.yaml:1:50: $.listeners[0].protocols: {why}" in first
    assert f"$.services.users.connections.protocol: {why}" in second
    assert all("libnghttp2-dev" in each for each in (first, second))


def test_a_listener_that_does_not_ask_serves_what_the_build_has() -> None:
    code = (
        f"{WITHOUT_H2}import socket\nfrom graylb import supervisor\nfrom graylb.model.snapshot import Listener\n"
        "print(supervisor._told(Listener('127.0.0.1:0'), socket.socket(), ())['protocols'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['http/1.1']\n"


@pytest.mark.parametrize("asked", [(", protocols: [h2]", ""), ("", ", connections: {protocol: h2}")])
def test_this_build_accepts_h2_if_it_has_it(asked: tuple[str, str]) -> None:
    if builds.has("h2"):
        load(document(*asked), "x.yaml")
    else:
        with pytest.raises(ConfigErrors, match="libnghttp2-dev"):
            load(document(*asked), "x.yaml")
