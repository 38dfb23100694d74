"""A small, slow checker for the part of JSON Schema that our schema uses. An unknown keyword is an error."""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}
NOTES = {"title", "description", "default", "format", "$schema", "$defs"}


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    return all(_holds(keyword, value, schema, root) for keyword in schema if keyword not in NOTES)


def _holds(keyword: str, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    wanted = schema[keyword]
    if keyword == "$ref":
        return fits(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
    if keyword == "type":
        return any(_is(value, name) for name in (wanted if isinstance(wanted, list) else [wanted]))
    if keyword in ("enum", "const"):
        return any(value == each and type(value) is type(each) for each in (wanted if keyword == "enum" else [wanted]))
    if keyword in ("anyOf", "oneOf"):
        fitting = sum(fits(value, each, root) for each in wanted)
        return fitting >= 1 if keyword == "anyOf" else fitting == 1
    if isinstance(value, dict):
        return _holds_for_object(keyword, wanted, value, schema, root)
    if keyword == "items":
        return not isinstance(value, list) or all(fits(each, wanted, root) for each in value)
    if keyword == "minItems":
        return not isinstance(value, list) or len(value) >= wanted
    if keyword == "pattern":
        return not isinstance(value, str) or re.search(wanted, value) is not None
    if keyword in ("minimum", "maximum"):
        number = _is(value, "number")
        return not number or (value >= wanted if keyword == "minimum" else value <= wanted)
    assert keyword in KEYWORDS, keyword
    return True


KEYWORDS = {"properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"}


def _holds_for_object(
    keyword: str, wanted: Any, value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]
) -> bool:
    if keyword == "properties":
        return all(fits(each, wanted[key], root) for key, each in value.items() if key in wanted)
    if keyword == "required":
        return all(key in value for key in wanted)
    if keyword == "additionalProperties":
        rest = [each for key, each in value.items() if key not in schema.get("properties", {})]
        return not rest if wanted is False else wanted is True or all(fits(each, wanted, root) for each in rest)
    if keyword == "propertyNames":
        return all(fits(key, wanted, root) for key in value)
    if keyword in ("minProperties", "maxProperties"):
        return len(value) >= wanted if keyword == "minProperties" else len(value) <= wanted
    return True


def _is(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
