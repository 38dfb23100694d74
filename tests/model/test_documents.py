"""Laws of `load`: a Document or ConfigErrors and nothing else; one document in many texts; a way back to data."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from graylb.model.documents import Document, load
from graylb.model.problems import ConfigErrors
from graylb.model.schema import json_schema
from graylb.model.source_map import parse
from tests.model import generated
from tests.model.schemas import fits
from tests.model.snapshots import snapshot_of

CONFIG = Path(__file__).parents[2] / "config"
REFERENCE = (CONFIG / "reference.yaml").read_text(encoding="utf-8")
DATA = {name: parse((CONFIG / f"{name}.yaml").read_text(), name).data for name in ("reference", "sidecar", "edge")}
SCHEMA = json_schema()


def read_file(name: str) -> str:
    return (CONFIG / name).read_text(encoding="utf-8")


@settings(max_examples=60)
@given(generated.DOCUMENTS)
def test_valid_documents_load_in_every_form(data: dict[str, Any]) -> None:
    document = load(json.dumps(data), "x")
    assert load(json.dumps(data, indent="\t", ensure_ascii=False).encode(), "x") == document
    assert load(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), "x") == document
    assert snapshot_of(document).digest() == snapshot_of(load(json.dumps(data), "y")).digest()
    assert fits(data, SCHEMA, SCHEMA)


@settings(max_examples=60)
@given(generated.DOCUMENTS)
def test_there_and_back(data: dict[str, Any]) -> None:
    document = load(json.dumps(data), "x")
    again = load(json.dumps(document.to_data()), "x")
    assert again == document
    assert snapshot_of(again) == snapshot_of(document)
    assert fits(document.to_data(), SCHEMA, SCHEMA)


def test_the_reference_there_and_back() -> None:
    document = load(REFERENCE, "x", read_file)
    again = load(json.dumps(document.to_data()), "x", read_file)  # keys and certificates stay in their files
    assert snapshot_of(again) == snapshot_of(document)
    assert "lists/staff-ids.txt" in document.files
    assert "lists/staff-ids.txt" not in again.files  # lists are inlined


def test_a_document_cannot_be_changed() -> None:
    document = load(REFERENCE, "x", read_file)
    with pytest.raises(pydantic.ValidationError):
        document.workers = 5  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        document.services["users"].stable = "v9"  # type: ignore[misc]


# ---- nothing else than a document or errors --------------------------------------------------------------------------


def outcome(text: str | bytes) -> None:
    try:
        found: Document | ConfigErrors = load(text, "x", read_file)
    except ConfigErrors as errors:
        found = errors
    if isinstance(found, Document):
        snapshot_of(found).to_bytes()
        return
    assert found.errors
    for error in found.errors:
        assert "\n" not in str(error)
        assert error.expected or error.suggestion
        assert error.line >= 1
        assert error.column >= 1
    assert list(found.errors) == sorted(found.errors, key=lambda error: (error.line, error.column))


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text(text: str | bytes) -> None:
    outcome(text)


@given(st.dictionaries(generated.KEYS, generated.NEARLY, max_size=6))
def test_any_data(data: dict[str, Any]) -> None:
    outcome(json.dumps(data))


@pytest.mark.parametrize("sample", ["reference", "sidecar", "edge"])
@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), generated.NEARLY)
def test_one_value_replaced(sample: str, chance: random.Random, value: Any) -> None:
    """Somewhere in a valid document something else stands."""
    data = copy.deepcopy(DATA[sample])
    node = data
    while True:
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.2:
            break
        node = inner
    if isinstance(node, dict) and chance.random() < 0.3:
        node[chance.choice(["namee", "x", "to", "split", "not", "in", "sidecar", "preset", "listeners"])] = value
    else:
        node[key] = value
    outcome(json.dumps(data))


@settings(max_examples=60)
@given(st.integers(0, len(REFERENCE)), st.integers(0, 30), st.text("ab:-[]{},&*!|>'\"#%?\n \t", max_size=4))
def test_a_piece_of_text_replaced(start: int, length: int, piece: str) -> None:
    outcome(REFERENCE[:start] + piece + REFERENCE[start + length :])
