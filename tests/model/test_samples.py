"""Every sample in config/ is a golden test: its YAML, a separator, and the snapshot that it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from graylb.model.documents import load
from graylb.model.problems import ConfigErrors
from tests.model import goldens
from tests.model.snapshots import pretty, snapshot_of

CONFIG = Path(__file__).parents[2] / "config"
SAMPLES = sorted(path.name for path in CONFIG.glob("*.yaml"))
BAD = goldens.inputs(".bad.txt")


def read_file(name: str) -> str:
    return (CONFIG / name).read_text(encoding="utf-8")


def test_the_samples_are_there() -> None:
    wanted = {"reference", "edge", "sidecar", "header-testers", "user-ramp", "grpc", "demo"}
    assert wanted <= {name.removesuffix(".yaml") for name in SAMPLES}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample(name: str) -> None:
    text = read_file(name)
    document = load(text, name, read_file)
    assert document.warnings == ()
    goldens.check(name.replace(".yaml", ".txt"), text + goldens.SEPARATOR + pretty(snapshot_of(document)))


@pytest.mark.parametrize("name", BAD)
def test_bad_document(name: str) -> None:
    """The part before the separator is the document, what follows are its errors."""
    with pytest.raises(ConfigErrors) as caught:
        load(BAD[name], name.replace(".bad.txt", ".yaml"), read_file)
    goldens.check(name, BAD[name] + goldens.SEPARATOR + str(caught.value) + "\n")


def test_seven_errors_are_seven_errors() -> None:
    _, _, errors = (goldens.HERE / "seven.bad.txt").read_text().partition(goldens.SEPARATOR)
    assert len(errors.splitlines()) == 7
