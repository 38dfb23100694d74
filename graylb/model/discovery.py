"""The `registries` part of a document: where frameworks register instances, and which services these join. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from graylb.model import registries, values
from graylb.model.base import Part
from graylb.model.problems import ConfigError, ConfigErrors, json_path, shown
from graylb.model.registries import LAYOUTS, PREFIXES, Found, Layout
from graylb.model.services import InstancePart
from graylb.model.settings import EtcdServersPart
from graylb.model.values import deeper, fault

UNVERSIONED: Final = "unversioned"
"""The version of instances that name none, unless a registry says otherwise."""
UNSERVED: Final = frozenset(("https", "grpcs"))
"""Schemes of addresses that instances could not be asked by yet."""

_TAKES = ("known", "all")
_TAG = "metadata."


class MappedPart(Part):
    """What a service of a registry is here."""

    service: values.Name = Field(description="The service that its instances join.")
    version: values.Version | None = Field(
        default=None, description="Of all its instances, whatever they say. Default: as they say."
    )


def _mapped(value: Any) -> Any:
    if isinstance(value, str):
        return MappedPart(service=values.name(value))
    if not isinstance(value, dict | MappedPart):
        raise fault("the name of a service, or {service: NAME, version: VERSION}")
    return value


def _mapped_data(part: MappedPart) -> str | dict[str, str]:
    if part.version is None:
        return part.service
    return {"service": part.service, "version": part.version}


_Mapped = Annotated[
    MappedPart, BeforeValidator(_mapped, json_schema_input_type=values.Name | MappedPart), PlainSerializer(_mapped_data)
]


def _prefix(value: Any) -> str:
    """Without a slash at its end."""
    found = values.filled(value).rstrip("/")
    if not found or "//" in found:
        raise fault("a prefix of keys, such as /microservices")
    return found


def _tag(value: Any) -> str:
    found = values.filled(value)
    if not found.startswith(_TAG) or found == _TAG:
        raise fault("metadata.NAME")
    return found


class RegistryPart(Part):
    """Instances that services of other frameworks register in etcd, read as they are; see docs/registries.md."""

    kind: Annotated[Layout, PlainValidator(values.choice(*LAYOUTS)), WithJsonSchema({"enum": list(LAYOUTS)})] = Field(
        description="Whose form the keys have."
    )
    name: values.Name | None = Field(default=None, description="In status and messages. Unique. Default: the kind.")
    etcd: EtcdServersPart | None = Field(default=None, description="Where it is. Default: the document's `etcd`.")
    prefix: Annotated[str, PlainValidator(_prefix), WithJsonSchema(values.SCALAR)] | None = Field(
        default=None, description="What its keys begin with. Default: what the framework writes unless told otherwise."
    )
    services: dict[values.FilledKey, _Mapped] = Field(
        default={},
        description="What the framework calls a service, to the service that its instances join. One that is not here "
        "joins the service of the same name.",
    )
    take: Annotated[
        Literal["known", "all"], PlainValidator(values.choice(*_TAKES)), WithJsonSchema({"enum": list(_TAKES)})
    ] = Field(
        default="known",
        description="`known`: what stands in `services` above, in the document or in its etcd. `all`: any other is a "
        "service here, too, and answers to its name as host.",
    )
    version_from: Annotated[str, PlainValidator(_tag), WithJsonSchema(values.SCALAR)] | None = Field(
        default=None,
        description="`metadata.NAME`: the tag that has an instance's version. Default: where the framework has it.",
    )
    default_version: values.Version | None = Field(
        default=None,
        description=f"Of instances that name none. Default: `{UNVERSIONED}`, and the status counts them.",
    )
    schemes: Annotated[tuple[values.TokenName, ...], values.AT_LEAST_ONE] = Field(
        default=("http",),
        description="Of an instance with several addresses, which one: the first of these that it has. Addresses that "
        "tell no scheme are taken as they are.",
    )

    @property
    def called(self) -> str:
        return self.name or self.kind

    @property
    def watched(self) -> tuple[tuple[str, str], ...]:
        """(prefix, what else the keys begin with): one pair, or one for each service where there is no prefix."""
        prefix = self.prefix or PREFIXES[self.kind]
        return ((f"{prefix}/", ""),) if prefix else tuple(("", name) for name in self.services)

    @model_validator(mode="after")
    def _prefix_or_services(self) -> Self:
        if self.prefix is None and not PREFIXES[self.kind]:
            expected = f"a prefix, or the services to follow: {self.kind} writes at the root of etcd"
            if not self.services:
                raise fault(expected, "nothing is followed")
            if self.take == "all":
                with deeper("take"):
                    raise fault("known, or a prefix beside it", "all keys of etcd would be followed")
        return self


@dataclass(frozen=True, slots=True)
class Reading:
    """What one key says. service: here; "" for none, as where its name is not asked for and no service's here can be.

    unversioned: the instances name no version. skipped: there are addresses, but none with one of the schemes.
    """

    service: str
    instances: tuple[InstancePart, ...]
    unversioned: bool = False
    skipped: bool = False


NOTHING: Final = Reading("", ())


def read(part: RegistryPart, prefix: str, key: str, value: bytes) -> Reading:
    """prefix: of `part.watched`; key: the whole one. Raises ConfigErrors whose file is the key."""
    every = registries.parse(part.kind, prefix, key, value)
    if not every:
        return NOTHING
    first = every[0]
    mapped = part.services.get(f"{first.domain}/{first.service}") or part.services.get(first.service)
    if mapped is not None:
        service = mapped.service
    elif not prefix:
        return NOTHING  # of another service, whose name begins alike
    elif values.is_name(first.service):
        service = first.service
    elif part.take == "all":
        got = f"{shown(first.service)} is no name of a service here"
        raise ConfigErrors([ConfigError(key, 1, 1, "", "", "services of the registry to give it one", got)])
    else:
        return NOTHING
    picked = registries.pick(every, part.schemes)
    versions = [_version(part, mapped, each, key) for each in picked]
    made = tuple(_instance(each, version or UNVERSIONED) for each, version in zip(picked, versions, strict=True))
    return Reading(service, made, not all(versions), not picked)


def _version(part: RegistryPart, mapped: MappedPart | None, found: Found, key: str) -> str:
    """ "" where nothing says it."""
    if mapped is not None and mapped.version is not None:
        return mapped.version
    own = found.version
    if part.version_from is not None:
        tag = part.version_from.removeprefix(_TAG)
        own = dict(found.metadata).get(tag, "")
        if own and not values.is_version(own):
            path = json_path(("metadata", tag))
            raise ConfigErrors([ConfigError(key, 1, 1, path, shown(own), values.A_VERSION)])
    return own or part.default_version or ""


def _instance(found: Found, version: str) -> InstancePart:
    """All of it was checked when it was parsed."""
    metadata: Mapping[str, str] = dict(found.metadata)
    return InstancePart.model_construct(address=found.address, version=version, weight=found.weight, metadata=metadata)
