"""The configuration document: one YAML or JSON text -> `Document`, or every error in it at once."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field, PrivateAttr, ValidationError

from graylb.model import references, source_map, translate, values
from graylb.model.base import Part
from graylb.model.problems import ConfigError, ConfigErrors
from graylb.model.routes import RoutePart
from graylb.model.services import ReadFile, ServicePart
from graylb.model.settings import AdminPart, ForwardingPart, LimitsPart, ListenerPart

PartType = TypeVar("PartType", bound=Part)


class Document(Part):
    """One whole configuration."""

    listeners: Annotated[tuple[ListenerPart, ...], values.AT_LEAST_ONE] = Field(description="Where clients connect.")
    services: dict[values.NameKey, ServicePart] = Field(default={}, description="Service name to its settings.")
    routes: tuple[RoutePart, ...] = Field(
        default=(), description="Routes beyond the short form (`hosts` and `paths` of a service)."
    )
    admin: AdminPart | None = Field(default=None, description="The administration interface. Default: none.")
    workers: values.Workers = Field(default=1, description="Worker processes; `auto`: one for each CPU.")
    pin_workers: values.Bool = Field(default=False, description="Each worker on a CPU of its own.")
    decision_headers: values.Bool = Field(
        default=False,
        description="Answers carry `x-graylb-service`, `-version`, `-rule` or `-slot`, and `-revision`.",
    )
    forwarding: ForwardingPart = Field(default=ForwardingPart(), description="What instances are told of the client.")
    limits: LimitsPart = Field(default=LimitsPart(), description="Bounds of a connection.")

    _warnings: tuple[ConfigError, ...] = PrivateAttr(())

    def __eq__(self, other: object) -> bool:
        """The same settings; where they stand in their texts, as warnings tell, does not matter."""
        return isinstance(other, Document) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @property
    def warnings(self) -> tuple[ConfigError, ...]:
        """What is allowed but may be a mistake, by position."""
        return self._warnings

    @property
    def files(self) -> tuple[str, ...]:
        """The list files that were read, as the document names them."""
        lists = (each for service in self.services.values() for each in service.lists.values())
        return tuple(dict.fromkeys(each.file for each in lists if each.file is not None))

    def to_data(self) -> dict[str, Any]:
        """Plain data that `load` accepts (as JSON or YAML) and that gives an equal document; lists are inlined."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return data


def load(text: str | bytes, name: str, read_file: ReadFile | None = None) -> Document:
    """The document in a YAML or JSON text; `name` stands for it in errors.

    read_file: gives the text of a list file, by its path as the document has it (relative to the document); it may
    raise OSError or ValueError. Raises ConfigErrors with every error of the text, sorted by position, and nothing else.
    """
    source = source_map.parse(text, name)
    if not isinstance(source.data, dict):
        raise ConfigErrors([translate.problem(source, (), expected="a mapping with listeners and services")])
    context = {"read_file": read_file}
    errors: list[ConfigError] = []
    document = None
    try:
        document = Document.model_validate(source.data, context=context)
        parts = references.Parts(
            frozenset(document.services),
            document.services,
            dict(enumerate(document.routes)),
            dict(enumerate(document.listeners)),
            document.admin,
            document.limits,
        )
    except ValidationError as error:
        errors = translate.from_validation(source, error, Document)
        parts = _sound_parts(source.data, context)
    errors += translate.nulls(source, errors)
    found, warnings = references.check(source, parts)
    if errors or found or document is None:
        raise ConfigErrors([*errors, *found])
    document._warnings = warnings
    return document


def _sound_parts(data: dict[str, Any], context: dict[str, Any]) -> references.Parts:
    """What is well-formed in a document that as a whole is not, so that its references are checked all the same."""

    def sound(part: type[PartType], raw: Any) -> PartType | None:
        try:
            return part.model_validate(raw, context=context)
        except ValidationError:
            return None

    def each(part: type[PartType], name: str) -> dict[Any, PartType]:
        raw = data.get(name)
        pairs = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
        found = ((key, sound(part, value)) for key, value in pairs if not isinstance(key, str) or values.is_name(key))
        return {key: value for key, value in found if value is not None}

    services = data.get("services")
    return references.Parts(
        frozenset(services if isinstance(services, dict) else ()),
        each(ServicePart, "services"),
        each(RoutePart, "routes"),
        each(ListenerPart, "listeners"),
        sound(AdminPart, data.get("admin")),
        sound(LimitsPart, data.get("limits", {})),
    )
