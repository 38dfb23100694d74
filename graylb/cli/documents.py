"""Commands about documents: check, schema, version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graylb.cli.common import AsJson, EdgeOption, SidecarOption, fail, preset_of, print_json

if TYPE_CHECKING:
    from graylb.model.documents import Document
    from graylb.model.presets import Name
    from graylb.model.problems import ConfigError


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Documents.")],
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the whole document, with every setting that was left out.")
    ] = False,
    sidecar: SidecarOption = False,
    edge: EdgeOption = False,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with documents. Exit status 1 when something is."""
    preset = preset_of(sidecar, edge)
    if explain and len(files) > 1:
        fail("--explain: expected one FILE")
    checked = [(file, *_problems(file, preset)) for file in files]
    documents = [document for _, _, _, document in checked if document is not None]
    results = [(file, errors, warnings) for file, errors, warnings, _ in checked]
    if explain and documents:
        _print_in_full(documents[0], files[0], as_json)
    elif as_json:
        print_json([_as_data(*result) for result in results])
    else:
        for file, errors, warnings in results:
            for error in errors:
                print(f"error: {error}", file=sys.stderr)
            for warning in warnings:
                print(f"warning: {warning}", file=sys.stderr)
            if errors:
                print(f"{file}: {len(errors)} error{'s' if len(errors) > 1 else ''}")
            else:
                print(f"{file}: ok")
    raise typer.Exit(1 if any(errors for _, errors, _ in results) else 0)


def _problems(
    file: Path, preset: Name | None
) -> tuple[tuple[ConfigError, ...], tuple[ConfigError, ...], Document | None]:
    """(errors, warnings, document), found in the very way of `graylb run`, but for the state file."""
    from graylb.control import prepare
    from graylb.control.state import State
    from graylb.model.problems import ConfigErrors

    try:
        document = prepare.read(file, preset)
        prepare.prepare(document, State(), at=prepare.now())
    except ConfigErrors as error:
        return error.errors, (), None
    return (), document.warnings, document


def _print_in_full(document: Document, file: Path, as_json: bool) -> None:
    from graylb.model import effective

    data = effective.full(document)
    if as_json:
        print_json(data)
    else:
        print(f"# {file} in full: with its preset, and with the defaults of what it leaves out.")
        print(effective.to_yaml(data), end="")


def _as_data(file: Path, errors: tuple[ConfigError, ...], warnings: tuple[ConfigError, ...]) -> dict[str, Any]:
    return {
        "file": str(file),
        "ok": not errors,
        "errors": [error.to_dict() for error in errors],
        "warnings": [warning.to_dict() for warning in warnings],
    }


def schema(as_json: AsJson = True) -> None:
    """Print the JSON Schema of the document, for editors."""
    from graylb.model.schema import json_schema

    print_json(json_schema())


def version(as_json: AsJson = False) -> None:
    """Print the version of graylb and of what it runs on."""
    import platform
    from importlib import metadata

    from graylb import __version__

    found = {"graylb": __version__, "python": platform.python_version(), "uvloop": metadata.version("uvloop")}
    if as_json:
        print_json(found)
    else:
        print(f"graylb {found['graylb']} (Python {found['python']}, uvloop {found['uvloop']})")
