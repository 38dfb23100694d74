"""How errors are told: all at once, by position, with a path, a value, an expectation and what was meant."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from graylb.model import translate
from graylb.model.base import Part
from graylb.model.documents import load
from graylb.model.problems import ConfigError, ConfigErrors, json_path, shown


def errors_of(text: str) -> tuple[ConfigError, ...]:
    with pytest.raises(ConfigErrors) as caught:
        load(text, "demo.yaml")
    return caught.value.errors


def test_the_parts_of_an_error() -> None:
    text = """
listeners: [{address: 127.0.0.1:1}]
services:
  users:
    stable: v1
    split:
      v1: 1
      v2: x
"""
    (error,) = errors_of(text)
    assert error == ConfigError("demo.yaml", 8, 11, "$.services.users.split.v2", '"x"', "a number >= 0")
    assert str(error) == 'demo.yaml:8:11: $.services.users.split.v2: got "x"; expected a number >= 0'
    assert error.to_dict() == {
        "file": "demo.yaml",
        "line": 8,
        "column": 11,
        "path": "$.services.users.split.v2",
        "value": '"x"',
        "expected": "a number >= 0",
        "message": "",
        "suggestion": None,
        "text": str(error),
    }
    assert json.loads(json.dumps(error.to_dict())) == error.to_dict()


def test_by_position_and_one_line_each() -> None:
    text = "workers: 0\nzone: a\nlisteners: [{address: x}, {address: y}]\nservices: {a: {stable: 1 2}}\nadmin: {}\n"
    errors = errors_of(text)
    assert [(error.line, error.path) for error in errors] == [
        (1, "$.workers"),
        (2, "$.zone"),
        (3, "$.listeners[0].address"),
        (3, "$.listeners[1].address"),
        (4, "$.services.a.stable"),
        (5, "$.admin.address"),
    ]
    assert str(ConfigErrors(reversed(errors))) == "\n".join(map(str, errors))


def test_references_are_checked_beside_broken_shapes() -> None:
    """What is sound in a document is held to the names of all of it, also of what is not sound."""
    text = """
listeners: [{address: 127.0.0.1:1}, {address: 127.0.0.1:1}, {address: bad}]
services:
  broken: {stable: v1, fallback: maybe}
  sound: {stable: v1, rules: [{name: r, match: {path: {in: nowhere}}, to: v1}]}
routes:
  - {hosts: [a.example], service: broken}
  - {hosts: [a.example], service: missing}
  - 5
"""
    assert [error.path for error in errors_of(text)] == [
        "$.listeners[1].address",
        "$.listeners[2].address",
        "$.services.broken.fallback",
        "$.services.sound.rules[0].match.path.in",
        "$.routes[1]",
        "$.routes[1].service",
        "$.routes[2]",
    ]


def test_errors_behind_an_alias_and_a_merge_stand_where_the_value_is_written() -> None:
    text = """
listeners: [{address: 127.0.0.1:1}]
services:
  a: &a
    hosts: [a]
    stable: v1
    fallback: maybe
  b:
    <<: *a
    hosts: [b]
"""
    errors = errors_of(text)
    assert [(error.path, error.line) for error in errors] == [
        ("$.services.a.fallback", 7),
        ("$.services.b.fallback", 7),
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sticki", "sticky"),
        ("Split", "split"),
        ("instance", "instances"),
        ("time_outs", "timeouts"),
        ("fall_back", "fallback"),
        ("xyz", None),
    ],
)
def test_misspelt_keys(key: str, meant: str | None) -> None:
    (error,) = errors_of(f"listeners: [{{address: 127.0.0.1:1}}]\nservices: {{a: {{stable: v1, {key}: 1}}}}\n")
    assert error.suggestion == meant
    assert ("did you mean" in str(error)) == (meant is not None)
    assert ("expected one of" in str(error)) == (meant is None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", '"x"'),
        ('say "a"\n', '"say \\"a\\"\\n"'),
        ("ü" * 100, '"' + "ü" * 60 + '…"'),
        ({}, "{}"),
        ({"a": 1}, "a mapping"),
        ([], "[]"),
        ([1], "a list"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
    ],
)
def test_values_are_shown_short(value: object, text: str) -> None:
    assert shown(value) == text


def test_paths() -> None:
    assert json_path(()) == "$"
    assert json_path(("a", 0, "b-c", "1.10", "a b", 'q"', "")) == '$.a[0].b-c["1.10"]["a b"]["q\\""][""]'


def test_warnings_do_not_stop_a_document() -> None:
    text = """
listeners: [{address: 127.0.0.1:1}]
services:
  a: {stable: v1}
  b:
    hosts: [b]
    stable: v1
    split: {v1: 1, v3: 1, v4: 0}
    rules:
      - {name: r, match: {path: /x}, to: v22}
      - {name: s, match: {path: /y}, split: {v2: 1, v9: 1}}
    instances: [{address: 127.0.0.1:2, version: v2}]
"""
    assert [str(warning) for warning in load(text, "x").warnings] == [
        "x:4:6: $.services.a: the service has no instance yet",
        'x:7:13: $.services.b.stable: version "v1" has no instance yet',
        'x:8:17: $.services.b.split.v1: version "v1" has no instance yet',
        'x:8:24: $.services.b.split.v3: version "v3" has no instance yet',
        'x:10:42: $.services.b.rules[0].to: version "v22" has no instance yet (did you mean "v2"?)',
        'x:11:57: $.services.b.rules[1].split.v9: version "v9" has no instance yet',
    ]


def test_a_token_that_crosses_the_network_in_the_clear() -> None:
    def warnings(admin: str) -> list[str]:
        text = f"listeners: [{{address: 127.0.0.1:1}}]\nservices: {{}}\netcd: {{}}\nadmin: {admin}\n"
        return [str(warning) for warning in load(text, "x").warnings]

    assert warnings("{address: 0.0.0.0:9900, token_file: t}") == [
        "x:4:18: $.admin.address: tokens and what they are sent with cross the network in the clear; expected "
        "tls: {cert, key} beside it"
    ]
    for admin in (
        "{address: 0.0.0.0:9900, token_file: t, tls: {cert: c, key: k}}",
        "{address: 127.0.0.1:9900, token_file: t}",
        "{address: 'unix:/a', token_file: t}",
    ):
        assert warnings(admin) == []


def test_what_is_missing_is_asked_for_by_name() -> None:
    """Every key that some mapping must have. `tracing: {}` and others ended in a KeyError."""

    def parts(base: type[Part]) -> Iterator[type[Part]]:
        for each in base.__subclasses__():
            yield each
            yield from parts(each)

    asked = {
        field.alias or name for part in parts(Part) for name, field in part.model_fields.items() if field.is_required()
    }
    assert asked
    assert asked <= translate._REQUIRED.keys()
    with pytest.raises(ConfigErrors, match=r"\$\.tracing\.otlp: missing; expected a mapping with the endpoint"):
        load(json.dumps({"listeners": [{"address": "127.0.0.1:0"}], "services": {}, "tracing": {}}), "x")
