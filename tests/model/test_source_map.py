"""Text -> data and places: YAML 1.2 scalars, JSON in full, merge keys and anchors, a place for everything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graylb.model.problems import ConfigErrors, Path
from graylb.model.source_map import parse

# U+007F may stand in JSON as it is, but not in YAML.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)
MAPPINGS = st.dictionaries(TEXTS, DATA, min_size=1, max_size=4)


def test_texts_are_read_by_c_code() -> None:
    assert hasattr(yaml, "CBaseLoader")  # else loading takes ten times as long, and messages differ


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("'true'", "true"),
        ("2024-11-05", "2024-11-05"),
        ("2024-11-05T10:00:00Z", "2024-11-05T10:00:00Z"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("-5", -5),
        ("+5", 5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("~", None),
        ("", None),
        ("Null", None),
        ("''", ""),
        ("=", "="),
        ("1.2.3", "1.2.3"),
        ("'-'", "-"),
        ("9" * 41, "9" * 41),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("!!int '5'", 5),
        ("!!float 5", 5),
        ("!!bool 'true'", True),
        ("!!null ''", None),
        ("|\n  a\n  b\n", "a\nb\n"),
        (">-\n  a\n  b\n", "a b"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"a: {text}", "x").data["a"]
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize("text", ["1.10", "007", "0x1F", "1e3", "+5", "-0", ".nan", "-.INF", "1e999", "5."])
def test_numbers_remember_how_they_were_written(text: str) -> None:
    found = parse(f"a: {text}", "x").data["a"]
    assert isinstance(found, int | float)
    assert found.text == text  # type: ignore[union-attr]


def test_nan_is_a_number() -> None:
    assert math.isnan(parse("a: .nan", "x").data["a"])


def test_keys_are_texts_as_written() -> None:
    assert list(parse("{1: a, 1.10: b, true: c, ~: d, 0x1F: e, 2024-01-01: f, on: g}", "x").data) == [
        "1", "1.10", "true", "~", "0x1F", "2024-01-01", "on"
    ]  # fmt: skip


def test_merge_keys_and_anchors() -> None:
    text = """
base: &base {a: 1, b: 2}
more: &more
  b: 3
  c: 4
one: {<<: *base, b: 5}
two:
  <<: [*more, *base]
  d: *base
quoted: {"<<": 6}
name: &name users
*name : 7
"""
    source = parse(text, "x")
    assert source.data["one"] == {"a": 1, "b": 5}
    assert source.data["two"] == {"b": 3, "c": 4, "a": 1, "d": {"a": 1, "b": 2}}
    assert source.data["quoted"] == {"<<": 6}
    assert source.data["users"] == 7
    assert source.position(("one", "a")) == (2, 17)
    assert source.position(("two", "c")) == (5, 6)
    assert source.position(("two", "d", "b")) == (2, 23)


def test_an_anchor_may_be_set_anew() -> None:
    assert parse("[&a 1, *a, &a 2, *a]", "x").data == [1, 1, 2, 2]


def test_aliases_of_a_long_list_are_fine() -> None:
    ids = ", ".join(map(str, range(10_000)))
    data = parse(f"a: &a [{ids}]\nb: [{', '.join(['*a'] * 90)}]", "x").data
    assert len(data["b"]) == 90
    assert data["b"][89][-1] == 9999


def test_byte_order_mark_and_carriage_returns() -> None:
    source = parse(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: 2\r\n", "x")
    assert source.data == {"a": 1, "b": {"c": 2}}
    assert source.position(("b", "c")) == (3, 6)


def test_json_with_tabs_and_pairs_of_escapes() -> None:
    text = '{\n\t"a": [\n\t\t"\\ud83d\\ude00",\n\t\t"\\\\ud83d\\\\ude00", "\\/"\n\t]\n}'
    source = parse(text, "x")
    assert source.data == json.loads(text)
    assert source.position(("a", 0)) == (3, 3)
    assert source.position(("a",), key=True) == (2, 2)


@given(MAPPINGS, st.sampled_from([None, 1, 4, "\t"]), st.booleans())
def test_json_is_read_as_json(data: dict[str, Any], indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    if ascii_only or text.isascii():
        assert parse(text, "x").data == json.loads(text)


@given(MAPPINGS, st.sampled_from([None, 1, 4, "\t"]))
def test_everything_has_its_place(data: dict[str, Any], indent: int | str | None) -> None:
    text = json.dumps(data, indent=indent)
    lines = text.split("\n")
    source = parse(text, "x")
    for path, value in walk(data, ()):
        line, column = source.position(path)
        start = "{" if isinstance(value, dict) else "[" if isinstance(value, list) else json.dumps(value)
        if "\\ud" not in lines[line - 1]:  # a pair of escapes counts as the one character it stands for
            assert lines[line - 1][column - 1 :].startswith(start)
            if path and isinstance(path[-1], str):
                line, column = source.position(path, key=True)
                assert lines[line - 1][column - 1 :].startswith(json.dumps(path[-1]))


def walk(data: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    yield path, data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


@given(MAPPINGS)
def test_yaml_is_read_as_it_was_meant(data: dict[str, Any]) -> None:
    text = yaml.safe_dump(json.loads(json.dumps(data), parse_int=str, parse_float=str), default_style='"')
    assert strings(parse(text, "x").data) == strings(data)


def strings(data: Any) -> Any:
    """Quoted YAML keeps texts only, and PyYAML writes true, null and numbers as tagged ones."""
    if isinstance(data, dict):
        return {key: strings(value) for key, value in data.items()}
    if isinstance(data, list):
        return [strings(value) for value in data]
    return data if isinstance(data, str | bool) or data is None else json.dumps(data)


@given(st.text(max_size=200) | st.text("ab:-[]{},&*!|>'\"#%?\n \t<<.01", max_size=60) | st.binary(max_size=100))
def test_any_text_gives_data_or_one_error(text: str | bytes) -> None:
    try:
        parse(text, "x")
    except ConfigErrors as error:
        (only,) = error.errors
        assert only.line >= 1
        assert only.column >= 1
        assert "\n" not in str(only)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "- " * 100_000, "a: [" * 100_000, "{a: " * 100_000])
def test_depth_is_bounded(text: str) -> None:
    with pytest.raises(ConfigErrors):
        parse(text, "x")
