"""The JSON Schema and the reference page say what `load` accepts, and say it of every setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graylb.model.base import Part
from graylb.model.documents import Document, load
from graylb.model.schema import json_schema, reference_markdown
from graylb.model.source_map import parse
from graylb.model.translate import inner
from tests.model import goldens
from tests.model.schemas import fits

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema()
SAMPLES = sorted((ROOT / "config").glob("*.yaml"))


def parts(part: type[Part] = Document, seen: set[type[Part]] | None = None) -> Iterator[type[Part]]:
    seen = set() if seen is None else seen
    if part is not Part and part not in seen:
        seen.add(part)
        yield part
        for field in part.model_fields.values():
            yield from parts(inner(field.annotation)[0], seen)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_fit_the_schema(path: Path) -> None:
    assert fits(parse(path.read_text(), path.name).data, SCHEMA, SCHEMA)


@pytest.mark.parametrize("name", sorted(goldens.inputs(".bad.txt")))
def test_what_is_malformed_in_shape_does_not_fit(name: str) -> None:
    assert not fits(parse(goldens.inputs(".bad.txt")[name], name).data, SCHEMA, SCHEMA)


@pytest.mark.parametrize(
    "service",
    [
        {"stiky": []},
        {"sticky": []},
        {"sticky": [{"header": "a", "cookie": "b"}]},
        {"split": {"v1": -1}},
        {"split": {"v1": "1"}},
        {"paths": ["users"]},
        {"fallback": None},
        {"fallback": "never"},
        {"instances": [{"address": "127.0.0.1:1"}]},
        {"rules": [{"name": "r", "match": {}}]},
        {"rules": [{"name": "r", "match": {}, "to": "v1", "split": {"v1": 1}}]},
        {"rules": [{"name": "r", "match": {"headers": {"a": {"exact": "b", "prefix": "c"}}}, "to": "v1"}]},
        {"rules": [{"name": "r", "match": {"headers": {"a": None}}, "to": "v1"}]},
        {"lists": {"a": {"fiel": "x"}}},
        {"timeouts": {"connect": True}},
    ],
)
def test_the_schema_refuses(service: dict[str, Any]) -> None:
    whole = {"listeners": [{"address": "127.0.0.1:1"}], "services": {"users": {"stable": "v1"}}}
    assert fits(whole, SCHEMA, SCHEMA)
    whole["services"] = {"users": {"stable": "v1", **service}}
    assert not fits(whole, SCHEMA, SCHEMA)


def test_the_schema_names_its_dialect() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_setting_and_every_mapping_is_described() -> None:
    for part in parts():
        assert part.__doc__, part
        for name, field in part.model_fields.items():
            assert field.description, (part, name)


def test_the_reference_sample_shows_every_setting() -> None:
    text = (ROOT / "config" / "reference.yaml").read_text()
    document = load(text, "reference.yaml", lambda name: (ROOT / "config" / name).read_text())
    given = dict(used(document))
    for preset in ("edge.yaml", "sidecar.yaml"):  # as written: `load` has resolved them
        written = Document.model_validate(parse((ROOT / "config" / preset).read_text(), preset).data)
        for name, keys in used(written):
            given.setdefault(name, set()).update(keys)
    for part in parts():
        keys = {field.alias or name for name, field in part.model_fields.items()}
        if part.__name__ not in ("Group", "Operators"):
            assert given[part.__name__] >= keys, part
    assert given["Operators"] == set(SCHEMA["$defs"]["Operators"]["properties"])


def used(value: Any) -> Iterator[tuple[str, set[str]]]:
    """Each class of mapping, with the keys that were written in any of its mappings."""
    found: dict[str, set[str]] = {}

    def walk(each: Any) -> None:
        if isinstance(each, Part):
            found.setdefault(type(each).__name__, set()).update(each.given())
            each = each.given()
        for inner_value in each.values() if isinstance(each, dict) else each if isinstance(each, tuple) else ():
            walk(inner_value)

    walk(value)
    yield from found.items()


def test_the_reference_page_is_current() -> None:
    page = ROOT / "docs" / "configuration.md"
    if goldens.REGENERATE:
        page.write_text(reference_markdown(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == reference_markdown()
