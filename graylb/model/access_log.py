"""The `access_log` part of a document."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from graylb.model import log_fields, snapshot_observe, values
from graylb.model.base import Part
from graylb.model.values import deeper, fault

CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")


def percent(value: Any) -> float:
    """`10`, `0.5` or `10%` -> the number."""
    said = value.removesuffix("%").strip() if isinstance(value, str) and value.endswith("%") else value
    if isinstance(said, str):
        try:
            said = float(said)
        except ValueError:
            said = None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= 100:
        raise fault("a share from 0 to 100 percent, such as 10 or 0.5%")
    return float(said)


Percent = Annotated[float, PlainValidator(percent), WithJsonSchema({"type": ["number", "string"]})]


def _sample(value: Any) -> tuple[float, ...]:
    """Percent of 1xx … 5xx."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        return (percent(value),) * len(CLASSES)
    found = dict.fromkeys(CLASSES, 100.0)
    for key, share in value.items():
        with deeper(str(key)):
            if key not in CLASSES:
                known = ", ".join(CLASSES)
                raise fault(f"one of {known}", f"got {key!r} as key", suggestion=values.near(key, list(CLASSES)))
            found[key] = percent(share)
    return tuple(found.values())


_Sample = Annotated[
    tuple[float, ...],
    PlainValidator(_sample),
    PlainSerializer(lambda shares: dict(zip(CLASSES, shares, strict=True))),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["number", "string"]},
                {
                    "type": "object",
                    "properties": {name: {"type": ["number", "string"]} for name in CLASSES},
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


def _format(value: Any) -> str:
    found = values.filled(value)
    if found in ("json", "combined"):
        return found
    if "$" not in found:
        raise fault("json, combined, or a text with fields such as $method $path $status")
    if "\n" in found or "\r" in found or len(found) > values.MAX_PATTERN:
        raise fault(f"one line of at most {values.MAX_PATTERN} characters")
    try:
        log_fields.split(found)
    except log_fields.UnknownField as error:
        raise fault("fields that docs/observability.md lists", str(error), suggestion=error.suggestion) from None
    return found


def _fields(value: Any) -> tuple[str, ...]:
    names = values.texts(value)
    for index, name in enumerate(names):
        with deeper(index):
            try:
                log_fields.check(name)
            except log_fields.UnknownField as error:
                raise fault("a field that docs/observability.md lists", str(error), error.suggestion) from None
            if name in names[:index]:
                raise fault("each field once", f"{name} is there twice")
    return names


_Format = Annotated[str, PlainValidator(_format), WithJsonSchema({"type": "string"})]
_Fields = Annotated[
    tuple[str, ...],
    PlainValidator(_fields),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
_Buffer = Annotated[int, PlainValidator(values.size(65536, 2**28)), WithJsonSchema({"type": ["integer", "string"]})]


class AccessLogPart(Part):
    """One line for each request. Without it nothing is written."""

    path: values.Filled = Field(
        default="stdout",
        description="`stdout`, `stderr` or a file, relative to the document; SIGUSR1 opens it anew, and so does its "
        "being moved.",
    )
    format: _Format = Field(
        default="json",
        description="`json`, `combined` as of nginx and Apache, or a text with fields: `$method $path -> ${status}`, "
        "`$$` for a dollar; what has no value is `-`.",
    )
    fields: _Fields = Field(
        default=log_fields.DEFAULT,
        description="Of JSON, in their order; `http_NAME` is a request header, with `_` for `-`. What has no value is "
        "left out. Default: all that are about the request and its decision.",
        json_schema_extra={"default": list(log_fields.DEFAULT)},
    )
    sample: _Sample = Field(
        default=(100.0,) * len(CLASSES),
        description="Percent of the requests that are written, of all or by class of status: `{2xx: 1, 5xx: 100}`.",
        json_schema_extra={"default": 100},
    )
    buffer: _Buffer = Field(
        default=2**23,
        description="Bytes that wait in each worker for the writer; lines that find no room are dropped and counted.",
    )

    @model_validator(mode="after")
    def _fields_of_json(self) -> Self:
        if self.format != "json" and "fields" in self.model_fields_set:
            with deeper("fields"):
                raise fault("fields only beside format: json", "the format names them itself")
        return self

    def build(self) -> snapshot_observe.AccessLog:
        json = self.format == "json"
        text = log_fields.COMBINED if self.format == "combined" else self.format
        parts = log_fields.json_parts(self.fields) if json else log_fields.split(text)
        return snapshot_observe.AccessLog(self.path, json, parts, self.sample, self.buffer)
