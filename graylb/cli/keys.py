"""Commands on keys, wherever they are kept: get, set, delete, edit, apply, export."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from graylb.cli.common import AdminOption, AsJson, DocumentOption, Reason, StateOption, fail, print_json
from graylb.cli.desk import Desk, Expect, desk, one_line, telling, told

if TYPE_CHECKING:
    from graylb.control.config_store import View
    from graylb.model.documents import Document

Key = Annotated[
    str, typer.Argument(metavar="KEY", help="Such as services/users/split, or shorter users/split.", show_default=False)
]


def get(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="A key, or a service. Default: all.")] = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in force: the value of a key, or the keys of a service, or all."""
    from graylb.control.views import tidy

    at = desk(document, state, admin)
    with telling():
        view = at.look(_full(key))
    if as_json:
        found = [
            {"key": each, "value": tidy(orjson.loads(item.value)), "revision": item.revision, "origin": item.origin}
            for each, item in view.items.items()
        ]
        print_json({"revision": view.revision, "items": found})
    elif list(view.items) == [_full(key)]:
        print_json(tidy(orjson.loads(view.items[_full(key)].value)))
    else:
        _print_items(view)
    if view.note and not as_json:
        print(f"note: {view.note}", file=sys.stderr)


def put(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON; - for stdin, @FILE for a file.")],
    reason: Reason = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    expect: Expect = None,
    as_json: AsJson = False,
) -> None:
    """Set a key. A bare split such as '{"v1": 90, "v2": 10}' is completed with salt and slots."""
    text = _text(value)
    at = desk(document, state, admin)
    with telling():
        outcome = at.put({_full(key): text}, action="set", why=reason, expected=expect)
    told(at, [outcome], as_json)


def delete(
    key: Key,
    reason: Reason = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    expect: Expect = None,
    as_json: AsJson = False,
) -> None:
    """Delete a key: a rule, a list, a split, the settings of a service."""
    at = desk(document, state, admin)
    with telling():
        outcome = at.put({_full(key): None}, action="delete", why=reason, expected=expect)
    told(at, [outcome], as_json)


def edit(
    key: Key,
    reason: Reason = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Edit a key in $EDITOR. Nothing is written when nothing is changed, or when somebody else was faster."""
    from graylb.control.config_store import ConfigStoreError
    from graylb.control.state import UnknownTarget
    from graylb.model.problems import ConfigErrors

    at = desk(document, state, admin)
    full = _full(key)
    revision, former = _to_edit(at, full)
    with tempfile.TemporaryDirectory(prefix="graylb-") as folder:
        file = Path(folder) / f"{full.rpartition('/')[2]}.json"
        file.write_bytes(former)
        before = former
        while True:
            _open_editor(file)
            text = file.read_bytes()
            if text == before or not text.strip():
                fail("nothing was written: the text is empty or as it was", 1 if before != former else 0)
            try:
                outcome = at.put({full: text}, action="set", why=reason, expected=revision)
                break
            except (ConfigErrors, ValueError, UnknownTarget) as error:
                print(f"graylb: {one_line(error)}", file=sys.stderr)
                if not (sys.stdin.isatty() and typer.confirm("edit again?", default=True, err=True)):
                    raise typer.Exit(2) from None
                before = text
            except ConfigStoreError as error:
                fail(f"{error}; what you wrote: {' '.join(text.decode(errors='replace').split())}", 1)
    told(at, [outcome], as_json)


def apply(
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="A document, or its services; - for stdin.")
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete rules, lists, splits and settings that its services do not have.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written.")] = False,
    reason: Reason = "",
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    expect: Expect = None,
    as_json: AsJson = False,
) -> None:
    """Write the services of a document as keys, all or nothing; what is in force already is left alone."""
    services = _services(file)
    at = desk(document, state, admin)
    with telling():
        outcomes = at.apply(services, prune=prune, dry_run=dry_run, why=reason, expected=expect)
    if dry_run and as_json:
        print_json([outcome.to_data() for outcome in outcomes])
    elif not outcomes and not as_json:
        print("nothing to change")
    elif dry_run:
        for outcome in outcomes:
            split = f": {outcome.after} (was {outcome.before})" if outcome.after != outcome.before else ""
            print(f"{outcome.service} would change{split}")
            for each in outcome.keys:
                print(f"  {each}")
    else:
        told(at, outcomes, as_json, many=True)


def export(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")] = None,
    document: DocumentOption = None,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Print the services in force as a document that `graylb apply` takes back, with every slot as it is."""
    from graylb.model import effective

    at = desk(document, state, admin)
    with telling():
        data = at.export()
    if output is None:
        if as_json:
            print_json(data)
        else:
            sys.stdout.write(effective.to_yaml(data))
        return
    text = orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n" if as_json else effective.to_yaml(data)
    try:
        fresh = output.with_name(output.name + ".tmp")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(output)
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}", 1)


def _full(key: str) -> str:
    """A key as stores have it: `users/split`, `/graylb/services/users/split` mean `services/users/split`."""
    if key.startswith("/") and "/services/" in key:
        return key[key.index("/services/") + 1 :]
    key = key.strip("/")
    return key if not key or key == "services" or key.startswith("services/") else f"services/{key}"


def _text(value: str) -> bytes:
    if value == "-":
        return sys.stdin.buffer.read()
    if value.startswith("@"):
        try:
            return Path(value[1:]).read_bytes()
        except OSError as error:
            fail(f"{value[1:]} cannot be read: {error.strerror}")
    return value.encode()


def _services(file: str) -> Document:
    from graylb.model import documents

    folder = Path(file).parent if file != "-" else Path()
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}")

    def read_file(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    with telling():
        return documents.load(text, "stdin" if file == "-" else file, read_file, alone=True)


def _to_edit(at: Desk, key: str) -> tuple[int, bytes]:
    """(revision, text): without salt and slots, which follow from the weights; `{}` for a key that is not there yet."""
    from graylb.control.views import tidy

    with telling():
        view = at.look()
    if key not in view.items:
        return view.revision, b"{}\n"
    data = tidy(orjson.loads(view.items[key].value))
    if isinstance(data, dict):
        for split in (data, data.get("split")):
            if isinstance(split, dict) and isinstance(split.get("slots"), str):
                del split["salt"], split["slots"]
    return view.revision, orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n"


def _open_editor(file: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        done = subprocess.run([*shlex.split(command), str(file)], check=False)
    except (OSError, ValueError) as error:
        fail(f"$EDITOR {command!r} cannot be run: {error}")
    if done.returncode:
        fail(f"nothing was written: {command} ended with status {done.returncode}", 1)


def _print_items(view: View) -> None:
    """One line each: key, revision, where it is written, value; cut where a terminal ends."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    keys, revisions = (max((len(str(each)) for each in column), default=0) for column in _columns(view))
    for key, item in view.items.items():
        line = f"{key:<{keys}}  {item.revision:>{revisions}} {item.origin:<5}  {_short(item.value)}"
        print(line if width is None or len(line) <= width else line[: width - 1] + "…")


def _columns(view: View) -> tuple[list[str], list[int]]:
    return list(view.items), [item.revision for item in view.items.values()]


def _short(value: bytes) -> str:
    from graylb.control.views import tidy

    data: Any = tidy(orjson.loads(value))
    if isinstance(data, dict) and isinstance(data.get("slots"), str):
        data = data["weights"]
    return orjson.dumps(data).decode()
