"""A service cut into keys and read back is the same service; and what no key can hold is told with its place."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graylb.model import documents, keys
from graylb.model.keys import Entry, decode, encode
from graylb.model.problems import ConfigErrors
from graylb.model.services import IdList, InstancePart, Rule, ServicePart, SplitPart
from graylb.release.slots import allocate
from tests.model import generated

SLOTS = str(allocate(None, {"v1": 95, "v2": 5}, "v1"))
WHOLE = {"weights": {"v1": 95, "v2": 5}, "salt": "s", "slots": SLOTS}


def read(suffix: str, value: Any) -> Entry:
    return decode(f"services/users/{suffix}", value if isinstance(value, bytes) else orjson.dumps(value))


def told(suffix: str, value: bytes) -> str:
    with pytest.raises(ConfigErrors) as caught:
        decode(suffix, value, prefix="/graylb/")
    (error,) = caught.value.errors
    assert error.file == "/graylb/" + suffix
    return str(error).removeprefix(error.file + ":")


@settings(max_examples=15, deadline=None)
@given(generated.DOCUMENTS)
def test_every_part_of_every_service_comes_back_as_it_was(data: dict[str, Any]) -> None:
    document = documents.load(json.dumps(data), "test", lambda _: "ann\nbob")
    for name, service in document.services.items():
        parts: list[tuple[keys.PartName, str, Any]] = [("service", "", service)]
        parts += [("rules", rule.name, rule) for rule in service.rules]
        parts += [("lists", key, ids) for key, ids in service.lists.items()]
        parts += [("instances", each.address, each) for each in service.instances]
        for part, own, value in parts:
            entry = decode(*encode(name, part, own, value))
            assert (entry.service, entry.part, entry.name) == (name, part, own)
            if part == "service":
                without = dict.fromkeys(keys.OWN_KEYS)
                assert value.model_copy(update=without) == entry.value.model_copy(update=without)
            elif part == "lists":
                assert entry.value.ids == value.ids
            elif value.__class__ is not Rule or value.split is None or entry.complete:
                assert entry.value == value


def test_what_each_part_is() -> None:
    assert read("split", WHOLE) == Entry("users", "split", "", SplitPart.model_validate(WHOLE))
    assert isinstance(read("service", {"hosts": ["a.test"]}).value, ServicePart)
    assert isinstance(read("rules/r", {"match": {}, "to": "v2"}).value, Rule)
    assert read("lists/staff", ["ann", "ann", 7]).value == IdList(("ann", "7"))
    assert read("rollout", {"any": ["thing"]}).value == {"any": ["thing"]}
    instance = read("instances/unix:/run/x", {"address": "unix:/run/x", "version": "v1"})
    assert instance.name == "unix:/run/x"
    assert isinstance(instance.value, InstancePart)


@pytest.mark.parametrize(
    "split",
    [
        {"v1": 95, "v2": 5},
        {"weights": {"v1": 95, "v2": 5}},
        {"weights": {"v1": 95, "v2": 5}, "salt": "s"},
        {**WHOLE, "weights": {"v1": 90, "v2": 10}},  # as after an edit by hand
        {**WHOLE, "weights": {"v1": 90, "v3": 10}},
    ],
)
def test_a_split_that_somebody_has_to_complete(split: dict[str, Any]) -> None:
    for entry in (read("split", split), read("rules/r", {"match": {}, "split": split})):
        assert not entry.complete
        assert entry.split is not None
        assert entry.split.slots is None
        assert entry.split.salt == split.get("salt")
        assert dict(entry.split.weights) == split.get("weights", split)


def test_completing_leaves_all_else_as_it_was_written() -> None:
    text = b'{"match": {"path": "/x"}, "split": {"v1": 95, "v2": 5}, "priority": 3}'
    entry = read("rules/r", text)
    done = read("rules/r", keys.completed(text, entry, "s", SLOTS))
    assert done.complete
    assert done.value == Rule.model_validate({**orjson.loads(text), "name": "r", "split": WHOLE})


def test_numbers_are_as_they_were_written() -> None:
    assert read("instances/a", b'{"address": "10.0.0.1:80", "version": 1.10}').value.version == "1.10"


@pytest.mark.parametrize(
    ("suffix", "value", "message"),
    [
        ("nodes/a", b"{}", "1:1: not a service's key; expected a key like …/services/NAME/PART"),
        ("services/us ers/split", b"{}", '1:1: "us ers" is no name of a service'),
        ("services/users/splitt", b"{}", '1:1: unknown part "splitt" (did you mean "split"?)'),
        ("services/users/rules", b"{}", "1:1: the name is missing; expected rules/NAME"),
        ("services/users/split/x", b"{}", "1:1: the key is too long; expected split and nothing behind it"),
        ("services/users/rules/a/b", b"{}", '1:1: "a/b" is no name'),
        ("services/users/split", b"{}", "1:1: $: no version has a weight; expected at least one weight above 0"),
        ("services/users/split", b"7", "1:1: $: got 7; expected a mapping of versions to weights"),
        ("services/users/split", b'{"v1":\n -1}', "2:2: $.v1: got -1; expected a number >= 0"),
        ("services/users/split", b'{"v1": NaN}', "1:1: a number that JSON does not know"),
        ("services/users/split", b"v1: 95", "1:1: not valid JSON"),
        ("services/users/split", b"\xff", "1:1: not UTF-8"),
        ("services/users/split", b'{"v1": 1, "v1": 2}', '1:11: $.v1: key "v1" stands twice, first in line 1'),
        ("services/users/split", b'{"weights": {"v1": 1}, "salt": "s", "slots": "v1"}', "1:46: $.slots: "),
        ("services/users/service", b'{"rules": []}', "1:1: $.rules: rules do not stand here"),
        ("services/users/service", b'{"stable": null}', "1:12: $.stable: got null"),
        ("services/users/service", b"[]", "1:1: $: got []; expected a mapping"),
        ("services/users/rules/a", b'{"name": "b", "match": {}, "to": "v1"}', '1:1: $.name: got "b"; expected "a"'),
        ("services/users/rules/a", b'{"match": {}}', "1:1: $: the rule has neither; expected either to or split"),
        ("services/users/lists/a", b'{"file": "x"}', '1:10: $.file: file "x" cannot be read in this place'),
        ("services/users/instances/a", b'{"version": "v1"}', "1:1: $.address: missing; expected ADDRESS:PORT"),
    ],
)
def test_what_is_wrong_is_told_with_its_key_and_place(suffix: str, value: bytes, message: str) -> None:
    assert told(suffix, value).startswith(message)


@given(
    st.binary(max_size=40) | generated.NEARLY.map(lambda data: json.dumps(data).encode()), st.sampled_from(keys.PARTS)
)
@example(b"[" * 100_000, "service")
@example(b'{"a":' * 100_000, "rollout")
def test_nothing_but_config_errors_comes_of_any_value(value: bytes, part: str) -> None:
    with contextlib.suppress(ConfigErrors):
        decode(f"services/users/{part}" + ("/x" if part in keys.NAMED else ""), value)


@pytest.mark.parametrize(("part", "name"), [("split", "x"), ("rules", ""), ("rules", "a/b")])
def test_names_that_no_key_can_have(part: Any, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        encode("users", part, name, {})
