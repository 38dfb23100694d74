"""The command lint: what is valid and yet probably a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graylb.cli.common import AsJson, fail, print_json

if TYPE_CHECKING:
    from graylb.model.problems import ConfigError
    from graylb.model.source_map import Source
    from graylb.release.findings import Finding, Place


def lint(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Documents.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for warnings too.")] = False,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="ID", help="Leave out a finding, such as GL008; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find rules that never win, overlaps, splits without instances, routes never taken. Exit status 1 for errors."""
    from graylb.release.findings import CATALOGUE

    left_out = set(ignore or ())
    if unknown := left_out - CATALOGUE.keys():
        fail(f"--ignore {min(unknown)}: expected one of {', '.join(CATALOGUE)}")
    bad = False
    results: list[dict[str, Any]] = []
    for file in files:
        errors, found = _lint(file)
        shown = [each for each in found if each["id"] not in left_out]
        bad = bad or bool(errors) or any(_counts(each["severity"], strict) for each in shown)
        results.append({"file": str(file), "errors": [error.to_dict() for error in errors], "findings": shown})
    if as_json:
        print_json(results)
    else:
        for result in results:
            _print(result)
    raise typer.Exit(1 if bad else 0)


def _counts(severity: str, strict: bool) -> bool:
    return severity == "error" or (strict and severity == "warning")


def _lint(file: Path) -> tuple[tuple[ConfigError, ...], list[dict[str, Any]]]:
    """(errors, findings with their places in the file). A document that is not valid has no findings."""
    from graylb import table
    from graylb.control import prepare
    from graylb.control.state import State
    from graylb.lint import lint as lint_snapshot
    from graylb.model import source_map
    from graylb.model.problems import ConfigErrors
    from graylb.release.findings import SEVERITIES

    try:
        document = prepare.read(file)
        _, snapshot = prepare.prepare(document, State(), at=prepare.now())
        source = source_map.parse(file.read_bytes(), str(file))
        image = table.compile(snapshot)
    except ConfigErrors as error:
        return error.errors, []
    except (OSError, ValueError) as error:
        fail(f"{file}: {error}", 1)
    found = [_placed(source, each) for each in lint_snapshot(snapshot, image, _ids(source, file))]
    return (), sorted(found, key=lambda each: (SEVERITIES.index(each["severity"]), each["line"], each["column"]))


def _placed(source: Source, found: Finding) -> dict[str, Any]:
    from graylb.model.problems import json_path

    path = resolve(source.data, found.place)
    line, column = source.position(path)
    return {"line": line, "column": column, "path": json_path(path), **found.to_data()}


def resolve(data: Any, place: Place) -> tuple[str | int, ...]:
    """The path of a place as far as the document has it: items of lists are named by their `name` or `address`."""
    path: list[str | int] = []
    for step in place:
        if not isinstance(data, list | dict):
            break
        if isinstance(data, list):
            step = next((n for n, item in enumerate(data) if n == step or _is_named(item, step)), len(data))
            if step == len(data):
                break
        elif path[-1:] == ["split"] and isinstance(data.get("weights"), dict) and step in data["weights"]:
            path.append("weights")  # the long form of a split
            data = data["weights"]
        elif step not in data:
            break
        data = data[step]
        path.append(step)
    return tuple(path)


def _is_named(item: Any, name: str | int) -> bool:
    from graylb.model.values import instance_address

    if not isinstance(item, dict):
        return False
    return item.get("name") == name or ("address" in item and instance_address(item["address"]) == name)


def _ids(source: Source, file: Path) -> dict[tuple[str, str], list[str]]:
    """Every list's ids as written."""
    from graylb.model.values import text

    found: dict[tuple[str, str], list[str]] = {}
    for service, part in source.data.get("services", {}).items():
        for name, ids in part.get("lists", {}).items():
            if isinstance(ids, list):
                found[service, name] = [text(each) for each in ids]
            else:
                lines = (file.parent / ids["file"]).read_text(encoding="utf-8").split("\n")
                found[service, name] = [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
    return found


def _print(result: dict[str, Any]) -> None:
    import sys

    for error in result["errors"]:
        print(f"error: {error['text']}", file=sys.stderr)
    for each in result["findings"]:
        print(f"{result['file']}:{each['line']}:{each['column']}: {each['severity']} {each['id']}: {each['what']}")
        print(f"    {each['why']}")
        if each["hint"]:
            print(f"    hint: {each['hint']}")
    counts = {
        kind: sum(each["severity"] == kind for each in result["findings"]) for kind in ("error", "warning", "info")
    }
    counts["error"] += len(result["errors"])
    told = [f"{count} {kind}{'s' if count > 1 and kind != 'info' else ''}" for kind, count in counts.items() if count]
    print(f"{result['file']}: {', '.join(told) or 'nothing found'}")
