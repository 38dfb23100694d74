"""What a document may hold, for editors (JSON Schema) and for people (Markdown), made from the documents' fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from graylb.model import presets
from graylb.model.base import OneKey, Part
from graylb.model.conditions import Group
from graylb.model.documents import Document
from graylb.model.translate import inner

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_PLURAL = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a document. It knows shapes; `load` also knows what values and names must be."""
    schema: dict[str, Any] = _tidy(Document.model_json_schema(by_alias=True, mode="validation"))
    schema["$defs"]["Value"] = _VALUE
    return {"$schema": DIALECT, **schema, "title": "graylb configuration"}


_SCALAR = {"type": ["string", "number", "boolean"]}
_VALUE = {
    "title": "Value",
    "description": "A value to equal, a list of them, or one operator.",
    "anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}, {"$ref": "#/$defs/Operators"}],
}


def _tidy(node: Any) -> Any:
    """Without nulls, which no setting takes, and with one definition for what conditions compare with."""
    if isinstance(node, list):
        return [_tidy(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {key: _tidy(value) for key, value in node.items()}
    if "default" in node:
        node["default"] = _without_nulls(node["default"])
        if node["default"] is None:
            del node["default"]
    if isinstance(node.get("title"), str):
        node["title"] = node["title"].removesuffix("Part")
    choices = node.get("anyOf")
    if isinstance(choices, list):
        choices = [each for each in choices if each != {"type": "null"}]
        if _SCALAR in choices and {"$ref": "#/$defs/Operators"} in choices:
            choices = [{"$ref": "#/$defs/Value"}]
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        node = {**choices[0], **rest} if len(choices) == 1 else {**rest, "anyOf": choices}
    return node


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def reference_markdown() -> str:
    """The page `docs/configuration.md`: a table of settings for each mapping of the document."""
    schema = json_schema()
    parts = [_INTRODUCTION]
    for path, part in _sections(Document, "", set()):
        parts.append(_section(path, part, schema))
    rows = [f"| `{path}` | `{_flow(value)}` | {_cell(why)} |" for path, value, why in presets.EDGE]
    return "\n".join([*parts, _PRESETS.replace("EDGE_ROWS", "\n".join(rows))])


def _flow(value: Any) -> str:
    """As in YAML."""
    return json.dumps(value).replace('"', "")


_INTRODUCTION = """\
# Configuration

<!-- Made from the fields of graylb/model by graylb.model.schema.reference_markdown; a test holds it to them. -->

One YAML (1.2) or JSON document. Unknown keys are errors, and so is a key without a value. `graylb check FILE` names
every error with its line and path; `graylb schema` prints the JSON Schema. `config/reference.yaml` shows every
setting in its place, and the other files in `config/` are whole documents to begin with.

Times are seconds or texts such as `250ms`, `5s`, `2m`, `1h`; sizes are bytes or texts such as `64KiB`, `1MiB`.
Where a text is wanted, numbers stand for themselves as written: version `1.10` is not `1.1`.

A condition compares with a **value**: a bare one must be equal, a list must contain it, and a mapping of one operator
says otherwise (see Operators). An absent value satisfies no operator, and so every negated one.
"""


_PRESETS = f"""\
## Presets

A preset fills in what a document leaves out; what the document says wins, setting by setting. `preset: edge` or
`preset: sidecar` in the document asks for it, and so does `graylb run --edge` or `--sidecar` (likewise `check` and
`explain`). `graylb check --explain FILE` prints the whole document that comes of it.

### `preset: edge`

For a proxy that faces strangers.

| setting | value | why |
| --- | --- | --- |
EDGE_ROWS

### `preset: sidecar`

For a proxy beside one instance of a service, in the same pod or on the same host. The `sidecar` part names that
instance; with it there, `preset: sidecar` goes without saying.

* Listener `{presets.INBOUND}`, role `{presets.INBOUND}`, on `sidecar.inbound`: all of its requests go to the local
  app, whatever their Host. It is a service of its own, called `NAME{presets.LOCAL}` after `sidecar.service`. Its host
  is `*`, its one listener `{presets.INBOUND}`, its one instance `sidecar.app` with `sidecar.version`. Other settings
  of it, such as `timeouts`, `connections` or `rules`, may stand under that name in `services`.
* Listener `{presets.OUTBOUND}`, role `{presets.OUTBOUND}`, on `sidecar.outbound`: the app's own calls go by their Host
  (or the authority of an absolute target, as with `http_proxy`) to the other services of the document. A service that
  gives no `hosts` answers to its name; with `sidecar.namespace` also to what Kubernetes calls it: `cart`, `cart.shop`,
  `cart.shop.svc` and `cart.shop.svc.cluster.local`. A Host that no service has gets 404: nothing is passed through.
* Services and `routes` that give no `listeners` are for `{presets.OUTBOUND}` only, so they never answer on the inbound
  side. The local service may be among them, with its other versions and its split: calls of the app to it go there,
  requests from outside go to the local app.
* A listener of the document that has one of the two names takes its place; others are there beside them.
* `admin` is on `{presets.SIDECAR_ADMIN}`.
"""


def _sections(part: type[Part], path: str, seen: set[type[Part]]) -> Iterator[tuple[str, type[Part]]]:
    """Every mapping of the document once, in reading order, with a path where it stands."""
    if part in seen:
        return
    seen.add(part)
    yield path, part
    for name, field in part.model_fields.items():
        key = field.alias or name
        below, inside = inner(field.annotation)
        if below is not Part:
            many = "[]" if inside == "tuple" else ".NAME" if inside == "dict" else ""
            yield from _sections(below, f"{path}.{key}{many}".lstrip("."), seen)


def _section(path: str, part: type[Part], schema: dict[str, Any]) -> str:
    title = part.__name__.removesuffix("Part")
    properties = (schema if part is Document else schema["$defs"][part.__name__])["properties"]
    heading = f"## {title}" + (f": `{path}`" if path and part.__name__ != "Operators" else "")
    text = (part.__doc__ or "").strip()
    rows = []
    for name, field in part.model_fields.items():
        key = field.alias or name
        default = "required" if field.is_required() else _default(field.default, properties[key])
        rows.append(f"| `{key}` | {_kind(properties[key])} | {default} | {_cell(field.description or '')} |")
    if part is Group:  # the keys of Match once more
        return "\n".join([heading, "", f"{_plain(text)} The keys are those of Match, but for `not`.", ""])
    if issubclass(part, OneKey):
        head = ["| exactly one of | takes | | |", "| --- | --- | --- | --- |"]
    else:
        head = ["| key | takes | default | |", "| --- | --- | --- | --- |"]
    return "\n".join([heading, "", _plain(text), "", *head, *rows, ""])


def _default(value: Any, property_: dict[str, Any]) -> str:
    """In the document's form; nothing where it says nothing, as that of a mapping with defaults of its own."""
    if value is None or value == {} or value == () or value == "" or isinstance(value, Part):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(property_['default'])}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split())


def _kind(node: dict[str, Any]) -> str:
    if "$ref" in node:
        return str(node["$ref"]).rpartition("/")[2].removesuffix("Part")
    if "enum" in node:
        return ", ".join(f"`{each}`" for each in node["enum"])
    if "const" in node:
        return f"`{json.dumps(node['const']).strip(chr(34))}`"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(map(_kind, node["anyOf"])))
    kind = node.get("type")
    if isinstance(kind, list):
        return "text" if "boolean" in kind else " or ".join(_PLURAL[each] for each in kind)
    if kind == "array":
        return f"list of {_kind(node['items'])}"
    if kind == "object":
        return f"mapping to {_kind(node['additionalProperties'])}" if node.get("additionalProperties") else "mapping"
    return _PLURAL[str(kind)]
