"""One part of one service as one key: how parts are named and written in a store of keys, such as etcd.

Below a prefix that is not known here: `services/users/split`, `services/users/rules/NAME` … Values are JSON (RFC 8259).
Pure; every error names the key, the JSON path and what was expected, like those of a document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NoReturn

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from graylb.model import source_map, translate, values
from graylb.model.base import Part
from graylb.model.problems import ConfigError, ConfigErrors, json_path, shown
from graylb.model.services import IdList, Ids, InstancePart, Rule, ServicePart, SplitPart, full_split
from graylb.model.source_map import Source
from graylb.release.slots import Slots, allocate

ROOT: Final = "services/"

PartName = Literal["service", "split", "rules", "lists", "instances", "rollout"]
PARTS: Final[tuple[PartName, ...]] = ("service", "split", "rules", "lists", "instances", "rollout")
NAMED: Final = ("rules", "lists", "instances")
"""Parts of which a service has many; the rest of the key is the name. That of an instance may have slashes."""

OWN_KEYS: Final = ("split", "rules", "lists", "instances")
"""Settings of a document's service that are keys of their own here."""

_BY_NAME: Final[dict[str, PartName]] = {part: part for part in PARTS}
_IDS: Final[TypeAdapter[IdList]] = TypeAdapter(Ids)


@dataclass(frozen=True, slots=True)
class Entry:
    """One decoded key. name: "" for parts of which there is one.

    value: a ServicePart (without OWN_KEYS), SplitPart, Rule, IdList or InstancePart; of a rollout plain data.
    complete: False for a split, or a rule with one, that lacks salt or slots, or whose slots are not what its weights
    ask for (they are left out then). Somebody who knows the former slots has to complete it (`completed`).
    """

    service: str
    part: PartName
    name: str
    value: Any
    complete: bool = True

    @property
    def split(self) -> SplitPart | None:
        """Of the service or of the rule."""
        if isinstance(self.value, SplitPart):
            return self.value
        return self.value.split if isinstance(self.value, Rule) else None


def suffix_of(service: str, part: PartName, name: str = "") -> str:
    """The key below the prefix. Raises ValueError for names that no key can have."""
    if not values.is_name(service):
        raise ValueError(f"{shown(service)} is no name of a service")
    if (part in NAMED) != bool(name) or (part in ("rules", "lists") and not values.is_name(name)):
        raise ValueError(f"{shown(name)} is no name for {part}")
    return f"{ROOT}{service}/{part}/{name}" if name else f"{ROOT}{service}/{part}"


def split_key(suffix: str) -> tuple[str, str, str]:
    """(service, part, name) of a key that is one; nothing is checked."""
    service, _, rest = suffix.removeprefix(ROOT).partition("/")
    part, _, name = rest.partition("/")
    return service, part, name


def decode(suffix: str, value: bytes, *, prefix: str = "") -> Entry:
    """Raises ConfigErrors; their `file` is prefix + suffix, their paths begin at the value."""
    key = prefix + suffix
    service, part, name = _parse(suffix, key)
    data = _data(value, key)
    if part == "split":
        split, complete = _split(value, data, key)
        return Entry(service, part, name, split, complete)
    if part == "rules":
        return _rule(service, name, value, data, key)
    if part == "lists":
        return Entry(service, part, name, _checked(_ids, value, data, key, Part))
    if not isinstance(data, dict):
        _fail(key, "$", "a mapping", shown(data))
    if part == "rollout":
        return Entry(service, part, name, data)
    if part == "instances":
        return Entry(service, part, name, _checked(InstancePart.model_validate, value, data, key, InstancePart))
    for own in OWN_KEYS:
        if own in data:
            where = f"{prefix}{ROOT}{service}/{own}" + ("/NAME" if own in NAMED else "")
            _fail(key, json_path((own,)), f"the key {where} instead", message=f"{own} do not stand here")
    return Entry(service, part, name, _checked(ServicePart.model_validate, value, data, key, ServicePart))


def encode(
    service: str, part: PartName, name: str, value: Part | IdList | Mapping[str, Any] | list[str]
) -> tuple[str, bytes]:
    """(suffix, value), checked: `decode` gives an equal part. Raises ValueError for names, ConfigErrors for values."""
    if isinstance(value, IdList):
        data: Any = list(value.ids)
    elif isinstance(value, Part):
        data = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    else:
        data = value
    if part == "rules" and isinstance(data, Mapping):
        data = {key: each for key, each in data.items() if key != "name"}
    if part == "service" and isinstance(data, Mapping):
        data = {key: each for key, each in data.items() if key not in OWN_KEYS}
    suffix, text = suffix_of(service, part, name), orjson.dumps(data)
    decode(suffix, text)
    return suffix, text


def completed(value: bytes, entry: Entry, salt: str, slots: str) -> bytes:
    """The text of an incomplete entry with salt and slots put in; all else stays as the person wrote it."""
    split = {"weights": entry.split.weights if entry.split is not None else {}, "salt": salt, "slots": slots}
    if entry.part == "split":
        return orjson.dumps(split)
    return orjson.dumps({**orjson.loads(value), "split": split})


def slots_fit(split: SplitPart) -> bool:
    """Whether the slots are what the weights ask for: then allocating them anew would change nothing."""
    if split.salt is None or split.slots is None:
        return False
    owned = Slots.parse(split.slots)
    return allocate(owned, {name: weight for name, weight in split.weights.items() if weight > 0}) == owned


def _parse(suffix: str, key: str) -> tuple[str, PartName, str]:
    if not suffix.startswith(ROOT):
        _fail(key, "", f"a key like …/{ROOT}NAME/PART", message="not a service's key")
    service, _, rest = suffix[len(ROOT) :].partition("/")
    if not values.is_name(service):
        expected = "a name of letters, digits, '.', '_' and '-'"
        _fail(key, "", expected, message=f"{shown(service)} is no name of a service")
    word, _, name = rest.partition("/")
    part = _BY_NAME.get(word)
    if part is None:
        meant = values.near(word, PARTS)
        _fail(
            key, "", "" if meant else f"one of {', '.join(PARTS)}", message=f"unknown part {shown(word)}", meant=meant
        )
    if (part in NAMED) != bool(name):
        expected = f"{part}/NAME" if part in NAMED else f"{part} and nothing behind it"
        _fail(key, "", expected, message="the name is missing" if part in NAMED else "the key is too long")
    if part in ("rules", "lists") and not values.is_name(name):
        _fail(key, "", "a name of letters, digits, '.', '_' and '-'", message=f"{shown(name)} is no name")
    return service, part, name


class _Again(ValueError):
    """The slow parser has to look at it, for positions."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs) or None in data.values():
        raise _Again
    return data


def _constant(word: str) -> NoReturn:
    raise _Again(f"{word} is no JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs,
    # numbers remember how they were written: a version 1.10 is not 1.1
    parse_float=source_map.plain_scalar,
    parse_int=source_map.plain_scalar,
    parse_constant=_constant,
)


def _data(value: bytes, key: str) -> Any:
    """Plain data of a JSON text, numbers as in documents. Raises ConfigErrors."""
    try:
        return _DECODER.decode(value.decode())
    except _Again:
        source = source_map.parse(value, key)
        if nulls := translate.nulls(source, []):
            raise ConfigErrors(nulls) from None
        _fail(key, "", "a JSON text without NaN and infinities", message="a number that JSON does not know")
    except RecursionError:
        _fail(key, "", f"at most {source_map.MAX_DEPTH} levels", message="the value is nested too deeply")
    except UnicodeDecodeError:
        _fail(key, "", "a JSON text in UTF-8", message="not UTF-8")
    except json.JSONDecodeError as error:
        at = (error.lineno, error.colno)
        _fail(key, "", 'a JSON text, such as {"v1": 95, "v2": 5}', message=f"not valid JSON: {error.msg}", at=at)


def _checked(check: Callable[[Any], Any], value: bytes, data: Any, key: str, root: type[Part]) -> Any:
    """What `check` makes of the data. Raises ConfigErrors with positions."""
    try:
        return check(data)
    except ValidationError as error:
        source = source_map.parse(value, key)
        if source.data is None:  # YAML would say it otherwise
            source = Source(key, data, (1, 1))
        raise ConfigErrors(translate.from_validation(source, error, root)) from None


def _ids(data: Any) -> IdList:
    return _IDS.validate_python(data, context={})


def _split(value: bytes, data: Any, key: str) -> tuple[SplitPart, bool]:
    def check(data: Any) -> SplitPart:
        return SplitPart.model_validate(full_split(data))

    data = {"weights": data} if isinstance(data, dict) and not data else data
    try:
        found: SplitPart = check(data)
    except (ValidationError, PydanticCustomError):
        without = _without_slots(data)
        try:
            return check(without), False
        except (ValidationError, PydanticCustomError):
            pass
        if not isinstance(data, dict):
            _fail(key, "$", "a mapping of versions to weights", shown(data))
        found = _checked(check, value, data, key, SplitPart)
    return _judged(found)


def _without_slots(data: Any) -> Any:
    """A split whose slots are well-formed but those of other versions, without them; else as it is."""
    if isinstance(data, dict) and isinstance(data.get("slots"), str) and isinstance(data.get("salt"), str):
        try:
            Slots.parse(data["slots"])
        except ValueError:
            return data
        return {name: each for name, each in data.items() if name != "slots"}
    return data


def _judged(split: SplitPart) -> tuple[SplitPart, bool]:
    if slots_fit(split):
        return split, True
    return (split.model_copy(update={"slots": None}) if split.slots is not None else split), False


def _rule(service: str, name: str, value: bytes, data: Any, key: str) -> Entry:
    if not isinstance(data, dict):
        _fail(key, "$", "a mapping with match, and to or split", shown(data))
    if data.get("name", name) != name:
        _fail(key, "$.name", f"{shown(name)}, as the key says", shown(data["name"]))
    named = {**data, "name": name}
    try:
        rule = Rule.model_validate(named)
    except ValidationError:
        if "split" in data:
            try:
                rule = Rule.model_validate({**named, "split": _without_slots(data["split"])})
            except ValidationError:
                pass
            else:
                return Entry(service, "rules", name, rule, complete=False)
        rule = _checked(Rule.model_validate, value, named, key, Rule)
    if rule.split is None:
        return Entry(service, "rules", name, rule)
    split, complete = _judged(rule.split)
    entry = Entry(service, "rules", name, rule)
    return entry if complete else replace(entry, value=rule.model_copy(update={"split": split}), complete=False)


def _fail(
    key: str,
    path: str,
    expected: str,
    value: str = "",
    message: str = "",
    meant: str | None = None,
    at: tuple[int, int] = (1, 1),
) -> NoReturn:
    raise ConfigErrors([ConfigError(key, *at, path, value, expected, message, meant)])
