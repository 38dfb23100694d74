"""pydantic's findings -> `ConfigError`s in the document's own terms: where, what was there, what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from graylb.model.base import Part
from graylb.model.problems import ConfigError, Path, json_path, shown
from graylb.model.source_map import Source
from graylb.model.values import near

_EXPECTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}
_REQUIRED = {
    "address": "ADDRESS:PORT",
    "app": "the address of the local app, such as 127.0.0.1:8000",
    "cert": "a PEM file with the certificate",
    "delay": "when a second attempt begins, such as 100ms",
    "endpoint": "the collector's address, such as 127.0.0.1:4317",
    "key": "a PEM file with the key",
    "kind": "the framework that writes there, such as kratos",
    "match": "a mapping of conditions; {} for every request",
    "name": "a name for the rule",
    "otlp": "a mapping with the endpoint of a collector",
    "prefix": "the path that takes the prefix's place",
    "rate": "so many in a time, such as 100/s",
    "secret": "a file with the secret",
    "service": "the name of a service",
    "time": "how long they wait, such as 2s",
    "to": "a version, or a mapping of version, semver and metadata",
    "trusted": "a list of networks; or true, to believe everybody",
    "version": "the instance's version",
    "weights": "a mapping of versions to weights",
}


def problem(
    source: Source,
    path: Path,
    expected: str = "",
    message: str = "",
    suggestion: str | None = None,
    *,
    key: bool = False,
) -> ConfigError:
    """At the value of a path, or at its key; what the path has more than the document is left out."""
    path, found = _resolve(source.data, path)
    line, column = source.position(path, key=key)
    value = shown(found)
    return ConfigError(source.name, line, column, json_path(path), value, expected, message, suggestion)


def missing(source: Source, location: Path, expected: str) -> ConfigError:
    """The last key of the location is not there."""
    path, _ = _resolve(source.data, location)
    line, column = source.position(path)
    return ConfigError(source.name, line, column, json_path((*path, location[-1])), "", expected, "missing")


def from_validation(source: Source, error: ValidationError, root: type[Part]) -> list[ConfigError]:
    """One ConfigError for each of pydantic's, but a key that is only misspelt is not told to be missing as well."""
    found = [(each, _from_details(source, each, root)) for each in error.errors(include_url=False, include_input=False)]
    meant = {
        (each["loc"][:-1], told.suggestion) for each, told in found if each["type"] == "extra_forbidden"
    }  # (mapping, key)
    return [
        told for each, told in found if each["type"] != "missing" or (each["loc"][:-1], each["loc"][-1]) not in meant
    ]


def nulls(source: Source, errors: list[ConfigError]) -> list[ConfigError]:
    """Every null is an error: no setting takes one, and a blank value is rarely meant. errors: what is told already."""
    told = {error.path for error in errors}
    return [
        problem(source, path, "a value, or the key left out")
        for path in _null_paths(source.data, ())
        if not any(json_path(path[:depth]) in told for depth in range(1, len(path) + 1))
    ]


def _null_paths(data: Any, path: Path) -> Iterator[Path]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if value is None:
            yield (*path, key)
        elif isinstance(value, dict | list):
            yield from _null_paths(value, (*path, key))


def _from_details(source: Source, details: ErrorDetails, root: type[Part]) -> ConfigError:
    location, kind = details["loc"], details["type"]
    if kind == "graylb":
        told = details["ctx"]
        key = location[-1:] == ("[key]",) or told["message"].startswith("unknown key")
        path = (*location, *told["at"])
        return problem(source, path, told["expected"], told["message"], told["suggestion"], key=key)
    if kind == "missing":
        return missing(source, location, _REQUIRED[str(location[-1])])
    if kind == "extra_forbidden":
        known = list(_keys(_part_at(root, location[:-1])))
        meant = near(location[-1], known)
        expected = "" if meant else f"one of {', '.join(known)}"
        return problem(source, location, expected, "unknown key", meant, key=True)
    return problem(source, location, _EXPECTED[kind])


def _resolve(data: Any, location: Path) -> tuple[Path, Any]:
    """The path that a location has in the document, and the value there.

    What a short form left unwritten is passed over; names of headers may be written in another case.
    """
    path: list[str | int] = []
    for part in location:
        key: Any = part
        if isinstance(data, dict):
            if key not in data:
                key = next((written for written in data if written.lower() == key), None)
            if key is None:
                continue
        elif not (isinstance(data, list) and isinstance(key, int) and key < len(data)):
            continue
        data = data[key]
        path.append(key)
    return tuple(path), data


def _keys(part: type[Part]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in part.model_fields.items()}


def _part_at(root: type[Part], location: Path) -> type[Part]:
    """The class of the mapping at a location."""
    part, container = root, ""
    for key in location:
        if container:
            container = ""
        else:
            part, container = inner(_keys(part)[str(key)])
    return part


def inner(annotation: Any) -> tuple[type[Part], str]:
    """The one Part within a field's type (else Part itself), and what holds it there: "tuple", "dict" or ""."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation, ""
    origin = get_origin(annotation)
    for argument in get_args(annotation):
        part, container = inner(argument)
        if part is not Part:
            return part, origin.__name__ if origin in (tuple, dict) else container
    return Part, ""
