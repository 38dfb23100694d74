"""A document in full: every setting spelt out, also those that were left out, as data and as YAML that `load` accepts.

What has no words of its own stays away: settings whose default is that there is none, such as `sticky` or `mode`.
"""

from __future__ import annotations

from typing import Any

import yaml

from graylb.model.base import Part
from graylb.model.documents import Document
from graylb.model.services import ServicePart
from graylb.model.settings import LimitsPart
from graylb.model.source_map import plain_scalar
from graylb.model.translate import inner


def full(document: Document) -> dict[str, Any]:
    """Plain data; the document that it gives has an equal snapshot. Files of lists stay files."""
    data: dict[str, Any] = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    for listener, given in zip(document.listeners, data["listeners"], strict=True):
        given |= {"name": listener.called, "proxy_protocol": given.get("proxy_protocol", False)}
    names = {route.name for route in document.routes}
    for number, route in enumerate(data["routes"], 1):
        if f"route-{number}" not in names:  # the default need not be unique
            route.setdefault("name", f"route-{number}")
    named = {route.service for route in document.routes}
    for name, service in document.services.items():
        _service(service, data["services"][name], document.limits, routed=service.has_route or name not in named)
    ordered: dict[str, Any] = _tidy(data, Document)
    return ordered


def to_yaml(data: dict[str, Any]) -> str:
    """In the order of the data; texts that YAML 1.2 would take for something else are quoted."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)
    return text


def _service(part: ServicePart, data: dict[str, Any], limits: LimitsPart, *, routed: bool) -> None:
    if routed:
        data.setdefault("hosts", ["*"])
        data.setdefault("paths", [{"prefix": "/"}])
    data["stable"] = part.stable_version()
    connections = data["connections"]
    connections.setdefault("idle", limits.upstream_idle_connections)
    connections.setdefault("idle_timeout", limits.upstream_idle_timeout)
    for name, found in part.lists.items():
        if found.file is not None:
            data["lists"][name] = {"file": found.file}


def _tidy(data: Any, part: type[Part], container: str = "") -> Any:
    """Settings in the order of the reference; 5 for 5.0. container: as of `translate.inner`."""
    if isinstance(data, list):
        return [_tidy(value, part) for value in data]
    if not isinstance(data, dict):
        return int(data) if isinstance(data, float) and data.is_integer() else data
    if container == "dict" or part is Part:
        return {key: _tidy(value, part) for key, value in data.items()}
    kinds = {field.alias or name: inner(field.annotation) for name, field in part.model_fields.items()}
    return {key: _tidy(data[key], *kind) for key, kind in kinds.items() if key in data}


ONE_LINE = 100
"""Characters."""


class _Dumper(yaml.SafeDumper):
    """No aliases; on one line what is short and has nothing nested."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, _fits_a_line(sequence))

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, _fits_a_line([*mapping, *mapping.values()]))


def _fits_a_line(values: list[Any]) -> bool:
    return (
        not any(isinstance(each, dict | list) and each for each in values)
        and sum(len(str(v)) + 2 for v in values) < ONE_LINE
    )


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """PyYAML quotes what YAML 1.1 would misread; that other version knows fewer numbers."""
    style = None if isinstance(plain_scalar(value), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
