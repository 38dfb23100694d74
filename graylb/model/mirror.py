"""The `mirror` part of a service."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from graylb.model import snapshot, snapshot_faults, values
from graylb.model.base import Part
from graylb.model.faults import Most, Percent
from graylb.model.targets import To
from graylb.model.values import fault

MAX_BODY = 1 << 20
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def _size(value: Any) -> int:
    expected = "a size from 0 to 1 MiB: a number of bytes, or a text such as 64KiB"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise fault(expected)
    digits = str(value).rstrip("BKMi ")
    unit = str(value)[len(digits) :].strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9 or unit not in _UNITS:
        raise fault(expected)
    if int(digits) * _UNITS[unit] > MAX_BODY:
        raise fault(expected)
    return int(digits) * _UNITS[unit]


_Size = Annotated[int, PlainValidator(_size), WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})]


def _methods(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise fault("a list of methods, such as [GET, HEAD]")
    return tuple(dict.fromkeys(values.each(value, values.method)))


class MirrorPart(Part):
    """Copies of requests to another version, whose answers nobody sees.

    Side effects of a copy are real: what a POST does, its copy does once more.
    """

    to: To = Field(
        description="Where copies go: a version, or a subset as `to` of a rule has it. Requests that go there "
        "themselves are not copied."
    )
    percent: Percent = Field(default=100.0, description="Of the requests, in steps of 0.01.")
    max: Most = Field(default=100, description="Most copies at once, of each worker; any more are left out.")
    body: _Size = Field(
        default=65536,
        description="Bytes, or a text such as `64KiB`; at most 1 MiB. Requests with a longer body are not copied.",
    )
    methods: Annotated[
        tuple[str, ...],
        PlainValidator(_methods),
        PlainSerializer(list),
        WithJsonSchema({"type": "array", "items": {"type": "string"}}),
    ] = Field(
        default=(),
        description="Only requests with these methods. Default: all, also POST, PUT and DELETE, whose effects a copy "
        "has too.",
    )
    timeout: values.Duration = Field(default=15.0, description="For one copy in all, its answer included.")

    def build(self) -> snapshot_faults.Mirror:
        to = snapshot.Subset(self.to.version, self.to.semver, tuple(sorted((self.to.metadata or {}).items())))
        return snapshot_faults.Mirror(to, self.percent, self.max, self.body, self.methods, self.timeout)
