"""The configuration document: one YAML or JSON text -> `Document`, or every error in it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, PlainValidator, PrivateAttr, ValidationError, WithJsonSchema

from graylb.model import presets, references, source_map, translate, values
from graylb.model.access_log import AccessLogPart
from graylb.model.base import Part
from graylb.model.discovery import RegistryPart
from graylb.model.marks import Mark
from graylb.model.problems import ConfigError, ConfigErrors, Path
from graylb.model.routes import RoutePart
from graylb.model.services import ReadFile, ServicePart
from graylb.model.settings import (
    AdminPart,
    EtcdPart,
    ForwardingPart,
    LimitsPart,
    ListenerPart,
    SidecarPart,
    Watchdog,
)
from graylb.model.snapshot import Pem
from graylb.model.tracing import TracingPart

PartType = TypeVar("PartType", bound=Part)
PresetName = Annotated[
    Literal["edge", "sidecar"],
    PlainValidator(values.choice("edge", "sidecar")),
    WithJsonSchema({"enum": ["edge", "sidecar"]}),
]


class Document(Part):
    """One whole configuration."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["listeners"]}, {"required": ["preset"]}, {"required": ["sidecar"]}]}
    )

    preset: PresetName | None = Field(
        default=None,
        description="Fills in what the document leaves out: see Presets. `--edge` and `--sidecar` ask for it, too. "
        "Default: none, or `sidecar` where that part is.",
    )
    sidecar: SidecarPart | None = Field(default=None, description="The short form of a sidecar.")
    listeners: Annotated[tuple[ListenerPart, ...], values.AT_LEAST_ONE] = Field(
        default=(), description="Where clients connect. Required, unless a preset brings them."
    )
    services: dict[values.NameKey, ServicePart] = Field(default={}, description="Service name to its settings.")
    routes: tuple[RoutePart, ...] = Field(
        default=(), description="Routes beyond the short form (`hosts` and `paths` of a service)."
    )
    admin: AdminPart | None = Field(default=None, description="The administration interface. Default: none.")
    workers: values.Workers = Field(default=1, description="Worker processes; `auto`: one for each CPU.")
    pin_workers: values.Bool = Field(default=False, description="Each worker on a CPU of its own.")
    watchdog: Watchdog = Field(
        default=10.0,
        description="A worker that gives no sign of life for so long is ended and replaced; `off`: never.",
    )
    decision_headers: values.Bool = Field(
        default=False,
        description="Answers carry `x-graylb-service`, `-version`, `-rule` or `-slot`, and `-revision`.",
    )
    forwarding: ForwardingPart = Field(default=ForwardingPart(), description="What instances are told of the client.")
    limits: LimitsPart = Field(default=LimitsPart(), description="Bounds of a connection.")
    access_log: AccessLogPart | None = Field(
        default=None, description="One line for each request. Default: none is written."
    )
    mark: Mark = Field(
        default=None,
        description="`true`, or settings: the version decision is carried along the call chain. Default: `false`.",
    )
    tracing: TracingPart | None = Field(default=None, description="Spans for a collector. Default: none.")
    etcd: EtcdPart | None = Field(
        default=None, description="Where more services, or parts of these, come from. Default: nowhere else."
    )
    registries: tuple[RegistryPart, ...] = Field(
        default=(), description="Where more instances come from. Default: nowhere else."
    )

    _warnings: tuple[ConfigError, ...] = PrivateAttr(())
    _sidecar: SidecarPart | None = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        """The same settings; where they stand in their texts, as warnings tell, does not matter."""
        return isinstance(other, Document) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @property
    def warnings(self) -> tuple[ConfigError, ...]:
        """What is allowed but may be a mistake, by position."""
        return self._warnings

    @property
    def resolved_sidecar(self) -> SidecarPart | None:
        """What this document's services, and with it those of other sources, have been placed by."""
        return self._sidecar

    @property
    def partial(self) -> bool:
        """Whether other sources have services, or parts of them, beside this document's."""
        return self.etcd is not None or bool(self.registries)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that were read, lists and certificates, as the document names them."""
        lists = (each for service in self.services.values() for each in service.lists.values())
        found = [each.file for each in lists if each.file is not None]
        return tuple(dict.fromkeys([*found, *(each.name for each in self.pems if each.name)]))

    @property
    def pems(self) -> tuple[Pem, ...]:
        """Certificates and keys, of listeners and of services; the secret of marks."""
        tls: list[Any] = [each.tls for each in self.listeners] + [each.tls for each in self.services.values()]
        tls += [each for part in tls for each in getattr(part, "certificates", ())]
        pems = [getattr(part, name, None) for part in tls for name in ("cert", "key", "client_ca", "ca")]
        if self.mark is not None and self.mark.signed is not None:
            pems.append(self.mark.signed.secret)
        return tuple(each for each in pems if each is not None)

    def to_data(self) -> dict[str, Any]:
        """Plain data that `load` accepts (as JSON or YAML) and that gives an equal document; lists are inlined."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        return data


def load(
    text: str | bytes,
    name: str,
    read_file: ReadFile | None = None,
    preset: presets.Name | None = None,
    *,
    alone: bool = False,
    now: int | None = None,
) -> Document:
    """The document in a YAML or JSON text, with what its preset fills in; `name` stands for it in errors.

    read_file: gives the text of a list file, by its path as the document has it (relative to the document); it may
    raise OSError or ValueError. preset: asked for outside the text. alone: it is for the services in it only, so it
    needs no listeners, no preset is applied, and what they lack may be elsewhere. now: Unix seconds, to warn of
    certificates by their dates. Raises ConfigErrors with every error of the text, sorted by position, and nothing else.
    """
    source = source_map.parse(text, name)
    if not isinstance(source.data, dict):
        raise ConfigErrors([translate.problem(source, (), expected="a mapping with listeners and services")])
    context = {"read_file": read_file}
    errors: list[ConfigError] = []
    try:
        read = _whole(Document.model_validate(source.data, context=context))
    except ValidationError as error:
        errors = translate.from_validation(source, error, Document)
        read = _sound(source.data, context)
    errors += translate.nulls(source, errors)
    if any(key in source.data and getattr(read.document, key) is None for key in ("preset", "sidecar")):
        raise ConfigErrors(errors)  # what else the document says has no meaning before these are right
    if alone and read.document.sidecar is not None:
        why = "a sidecar's services are placed for that sidecar alone"
        errors.append(translate.problem(source, ("sidecar",), "services without it", why, key=True))
    try:
        resolved = presets.Resolved(read.document) if alone else presets.resolve(read.document, preset)
    except presets.Unresolved as error:
        # what is wrong in shape may be all that keeps the preset from being applied
        raise ConfigErrors(errors or [_fault(source, each) for each in error.faults]) from None
    document = resolved.document
    meant = any(error.suggestion == "listeners" for error in errors)
    if not document.listeners and "listeners" not in source.data and not meant and not alone:
        errors.append(translate.missing(source, ("listeners",), _LISTENERS))
    found, warnings = references.check(source, read.parts(resolved, source.data, alone), now)
    if errors or found:
        raise ConfigErrors([*errors, *found])
    document._warnings = warnings
    document._sidecar = read.document.sidecar
    return document


_LISTENERS = "a list of at least one, such as [{address: 127.0.0.1:8080}], or preset: edge or sidecar"


def _fault(source: source_map.Source, fault: presets.Fault) -> ConfigError:
    if fault.missing:
        return translate.missing(source, fault.path, fault.expected)
    return translate.problem(source, fault.path, fault.expected, fault.message, key=fault.key)


@dataclass(frozen=True, slots=True)
class _Read:
    """What a text has of a document: all of it, or the parts that are well-formed; and their indices in the text."""

    document: Document
    listeners: Sequence[int]
    routes: Sequence[int]
    registries: Sequence[int]
    limits: bool = True

    def parts(self, resolved: presets.Resolved, data: dict[str, Any], alone: bool) -> references.Parts:
        """Of the resolved document, by where the text has them."""
        document = resolved.document
        written = data.get("services")
        places: list[Path] = [*(("listeners", index) for index in self.listeners), *resolved.added]
        return references.Parts(
            frozenset(document.services) | frozenset(written if isinstance(written, dict) else ()),
            document.services,
            dict(zip(self.routes, document.routes, strict=True)),
            dict(zip(places, document.listeners, strict=True)),
            document.admin,
            document.limits if self.limits else None,
            partial=alone or "etcd" in data or bool(data.get("registries")),
            registries=dict(zip(self.registries, document.registries, strict=True)),
            etcd=alone or "etcd" in data,
            alone=alone,
        )


def _whole(document: Document) -> _Read:
    return _Read(document, range(len(document.listeners)), range(len(document.routes)), range(len(document.registries)))


def _sound(data: dict[str, Any], context: dict[str, Any]) -> _Read:
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

    listeners, routes = each(ListenerPart, "listeners"), each(RoutePart, "routes")
    registries = each(RegistryPart, "registries")
    services = each(ServicePart, "services") if isinstance(data.get("services"), dict) else {}
    single: dict[str, Any] = {
        "admin": sound(AdminPart, data.get("admin")),
        "limits": sound(LimitsPart, data.get("limits", {})),
        "sidecar": sound(SidecarPart, data.get("sidecar")),
        "preset": data.get("preset") if data.get("preset") in ("edge", "sidecar") else None,
    }
    document = Document.model_construct(
        None,
        listeners=tuple(listeners.values()),
        routes=tuple(routes.values()),
        services=services,
        registries=tuple(registries.values()),
        **{name: value for name, value in single.items() if value is not None},
    )
    return _Read(document, tuple(listeners), tuple(routes), tuple(registries), limits=single["limits"] is not None)
