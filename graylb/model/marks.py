"""The `mark` parts: of a document, which are believed and how they are written; of a service, what they do there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from graylb.model import snapshot, values
from graylb.model.base import Part
from graylb.model.problems import shown
from graylb.model.values import deeper, fault
from graylb.release.marks import is_mark

MAX_NAMES = 4
"""Headers that one mark is written to."""
MAX_KEY = 64
MIN_SECRET = 16
MAX_SECRET = 4096
MAX_MEMORY = 3600.0
_A_MARK = "a mark: letters, digits and ._+/:@-, at most 128, with a letter or digit first"


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or len(value) > MAX_NAMES:
        raise fault(f"a list of one to {MAX_NAMES} names of headers")
    found = tuple(values.each(value, values.header_name))
    for index, each in enumerate(found):
        with deeper(index):
            if each in found[:index]:
                raise fault("each name once", f"{each} is there twice")
            if each in ("baggage", "host", "connection", "content-length", "transfer-encoding", "te", "upgrade"):
                raise fault("the name of a header of its own")
    return found


Names = Annotated[
    tuple[str, ...],
    PlainValidator(_names),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


def _key(value: Any) -> str | Literal[False]:
    if value is False or value == "off":
        return False
    found: str = values.token(value)
    if len(found) > MAX_KEY:
        raise fault(f"at most {MAX_KEY} characters")
    return found


Key = Annotated[
    str | Literal[False],
    PlainValidator(_key),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "boolean"}]}),
]


def _memory(value: Any) -> float:
    if value is False or value == "off" or (value == 0 and not isinstance(value, str)):
        return 0.0
    if (found := values.duration(value)) > MAX_MEMORY:
        raise fault("a time of at most an hour, or off")
    return found


Memory = Annotated[
    float, PlainValidator(_memory), WithJsonSchema({"anyOf": [{"type": ["number", "string"]}, {"const": False}]})
]


def _secret(value: Any, info: ValidationInfo) -> snapshot.Pem:
    if isinstance(value, snapshot.Pem):
        return value
    if not isinstance(value, str) or not value or "\n" in value:
        raise fault("the path of a file")
    read_file = (info.context or {}).get("read_file")
    if read_file is None:
        return snapshot.Pem.of(value, "")
    try:
        text = read_file(value).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise fault("a readable file", f"file {shown(value)} cannot be read: {reason}") from None
    if not MIN_SECRET <= len(text.encode()) <= MAX_SECRET:
        raise fault(f"a file with a secret of {MIN_SECRET} to {MAX_SECRET} bytes", f"it has {len(text.encode())}")
    return snapshot.Pem.of(value, text)


Secret = Annotated[
    snapshot.Pem,
    PlainValidator(_secret),
    PlainSerializer(lambda found: found.name),
    WithJsonSchema({"type": "string"}),
]


class SignedPart(Part):
    """Marks that clients may send because they are signed, for a time: `graylb mark`."""

    secret: Secret = Field(description="A file with the secret, of at least 16 bytes; it is watched.")
    header: values.HeaderName = Field(
        default="x-service-version-signature",
        description="Where the signature stands: `EXPIRES.HEX`, Unix seconds and the HMAC-SHA256 of `EXPIRES.MARK`.",
    )


class MarkPart(Part):
    """The version decision, carried along a call chain. At listeners of role `edge` marks of clients are taken off."""

    headers: Names = Field(
        default=("x-service-version",),
        description="Its headers, or gRPC metadata: the first that is there is read, all are written.",
    )
    baggage: Key = Field(
        default="x-service-version",
        description="Its key in W3C `baggage`, read where no header has it, and written. `false`: not there.",
    )
    trusted: tuple[values.Network, ...] = Field(
        default=(), description="Networks whose marks are believed at listeners of role `edge`. Default: none."
    )
    signed: SignedPart | None = Field(default=None, description="Believes signed marks. Default: none are.")
    memory: Memory = Field(
        default=60.0,
        description="How long the mark of a trace that came in at a listener of role `inbound` is put onto calls of "
        "that trace at listeners of role `outbound`; at most an hour. `off`: they have none.",
    )

    def build(self) -> snapshot.Marks:
        key, header = (self.signed.secret, self.signed.header) if self.signed is not None else (None, "")
        return snapshot.Marks(self.headers, self.baggage or None, self.trusted, key, header, self.memory)


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        return MarkPart() if value else None
    if value is not None and not isinstance(value, dict | MarkPart):
        raise fault("true, false, or a mapping such as {trusted: [10.0.0.0/8]}")
    return value


Mark = Annotated[MarkPart | None, BeforeValidator(_whole, json_schema_input_type=values.Bool | MarkPart)]


def _carried(value: Any) -> bool | dict[str, str]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise fault("true, false, or a mapping of versions to marks")
    found = {}
    for version, mark in value.items():
        with deeper(version):
            if not isinstance(version, str) or not isinstance(mark, str) or not is_mark(mark):
                raise fault(_A_MARK)
        found[version] = mark
    return found


Carried = Annotated[
    bool | dict[str, str],
    PlainValidator(_carried),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
Otherwise = Annotated[
    Literal["stable", "split"],
    PlainValidator(values.choice("stable", "split")),
    WithJsonSchema({"enum": ["stable", "split"]}),
]


class ServiceMarkPart(Part):
    """What marks do at this service. Nothing, while the document has no `mark`."""

    prefer: values.Bool = Field(
        default=True,
        description="Marked requests that no rule decides go to the version of that name, else to instances with "
        "`env: MARK` in their metadata.",
    )
    otherwise: Otherwise = Field(
        default="stable", description="Where marked requests go when there is neither: `stable`, or by the `split`."
    )
    carry: Carried = Field(
        default=True,
        description="At listeners of role `edge`, unmarked requests of a version other than the stable one get its "
        "name for a mark. `{v2: gray}`: only these versions, with these marks. `false`: none.",
    )
    headers: Names | None = Field(default=None, description="Headers for its instances. Default: the document's.")
    baggage: Key | None = Field(default=None, description="Key in baggage for its instances. Default: the document's.")

    def build(self) -> snapshot.ServiceMarks:
        carried = tuple(sorted(self.carry.items())) if isinstance(self.carry, dict) else self.carry
        baggage = "" if self.baggage is False else self.baggage
        return snapshot.ServiceMarks(self.prefer, self.otherwise, carried, self.headers, baggage)


def rules(marks: snapshot.ServiceMarks, stable: str, instances: Sequence[snapshot.Instance]) -> list[snapshot.Rule]:
    """What marks are to a service: rules behind all that people have written.

    One for each version, one for each `env` that is no version's name, and one for every other mark.
    """
    return list(_rules(marks, stable, instances)) if marks.prefer else []


def _rules(
    marks: snapshot.ServiceMarks, stable: str, instances: Sequence[snapshot.Instance]
) -> Iterator[snapshot.Rule]:
    versions = {each.version for each in instances}
    kinds = {each.metadata for each in instances}
    lanes = {value for metadata in kinds for key, value in metadata if key == "env"}
    subsets = {version: snapshot.Subset(version) for version in versions}
    subsets |= {lane: snapshot.Subset(metadata=(("env", lane),)) for lane in lanes - versions}
    for mark, subset in sorted(subsets.items()):
        if is_mark(mark):
            yield _rule(mark, snapshot.Condition("mark", "exact", (mark,)), subset)
    if marks.otherwise == "stable" and stable:
        yield _rule("*", snapshot.Condition("mark", "present"), snapshot.Subset(stable))


def _rule(name: str, condition: snapshot.Condition, to: snapshot.Subset) -> snapshot.Rule:
    return snapshot.Rule(
        snapshot.MARK_RULE + name, snapshot.Match((condition,)), to, priority=snapshot.LAST, fallback="stable"
    )
