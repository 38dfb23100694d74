"""What commands share: options, failing in one line, JSON, and finding the proxy that runs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import orjson
import typer

from graylb.cli import caller
from graylb.cli.caller import DEFAULT_ADMIN, BadAddress, NotAllowed, NotRunning

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DocumentOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The document. Default: that of the proxy which runs."),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="PATH", help="The state file. Default: FILE.state.json.")
]
AdminOption = Annotated[
    str | None,
    typer.Option(
        "--admin",
        metavar="ADDRESS",
        envvar="GRAYLB_ADMIN",
        help=f"The admin address of the proxy which runs. Default: the document's, else {DEFAULT_ADMIN}.",
    ),
]
SidecarOption = Annotated[
    bool, typer.Option("--sidecar", help="Fill in what the document leaves out, for a sidecar: preset sidecar.")
]
EdgeOption = Annotated[
    bool, typer.Option("--edge", help="Fill in what the document leaves out, for an edge: preset edge.")
]
Reason = Annotated[str, typer.Option("--reason", "-m", metavar="TEXT", help="Why, for the history.")]


def fail(message: str, status: int = 2) -> NoReturn:
    """One message on stderr, and the exit status: 2 for bad input, 1 for everything else."""
    print(f"graylb: {message}", file=sys.stderr)
    raise typer.Exit(status)


def header_of(text: str) -> tuple[str, str]:
    """Of `name: value`. Fails in one line."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        fail(f"--header {text!r}: expected 'name: value'")
    return name.strip(), value.strip()


def preset_of(sidecar: bool, edge: bool) -> Literal["sidecar", "edge"] | None:
    if sidecar and edge:
        fail("--sidecar --edge: expected one of them")
    return "sidecar" if sidecar else "edge" if edge else None


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def ask(address: str, path: str) -> Any:
    """JSON of the admin API. Raises NotRunning; fails in one line where there is a proxy that refuses."""
    try:
        return caller.ask(address, path)
    except NotAllowed as error:
        fail(str(error), 1)
    except BadAddress as error:
        fail(str(error))


@dataclass(frozen=True, slots=True)
class Target:
    """The document and state that a command is about; `admin` and `preset` of the proxy when one runs on them."""

    document: Path
    state: Path
    admin: str | None
    preset: Literal["sidecar", "edge"] | None = None


def locate(document: Path | None, state: Path | None, admin: str | None) -> Target:
    """By the options, or else by the proxy that answers at the admin address. Fails in one line."""
    from graylb.control.store import state_path

    if document is None:
        address = admin or DEFAULT_ADMIN
        try:
            status = ask(address, "/status")
            return Target(Path(status["document"]), Path(status["state"]), address, status["preset"])
        except NotRunning as error:
            fail(f"{error}; name the document with -c FILE, or the proxy with --admin ADDRESS", 1)
    if not document.is_file():
        fail(f"{document}: no such file")
    state = state or state_path(document)
    address = admin or _admin_of(document)
    status = _status_on(address, state)
    return Target(document, state, None) if status is None else Target(document, state, address, status["preset"])


def _admin_of(document: Path) -> str:
    """What the document says, as far as it can be read at all."""
    import yaml

    from graylb.model import presets

    try:
        data = yaml.load(document.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if "admin" not in data and "sidecar" in data:
            return presets.SIDECAR_ADMIN
        address = str(data["admin"]["address"])
        return f"https://{address}" if data["admin"].get("tls") else address
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return DEFAULT_ADMIN


def _status_on(address: str, state: Path) -> dict[str, Any] | None:
    """Of the proxy there, if it runs on that state."""
    try:
        status: dict[str, Any] = ask(address, "/status")
        return status if os.path.realpath(status["state"]) == os.path.realpath(state) else None
    except (NotRunning, KeyError, TypeError):
        return None


def user() -> str:
    """Who gives the command, for the history."""
    import getpass

    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
