"""Commands about the running proxy: run, demo, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graylb.cli.caller import DEFAULT_ADMIN, NotRunning
from graylb.cli.common import (
    AdminOption,
    AsJson,
    EdgeOption,
    SidecarOption,
    StateOption,
    ask,
    console,
    fail,
    preset_of,
    print_json,
)


def run(
    document: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The document to serve.")],
    state: StateOption = None,
    ports_file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write addresses and process ids there, as JSON, once ready.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Worker processes, instead of what the document says.")
    ] = None,
    listen: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Instead of the document's listeners; may be repeated.")
    ] = None,
    admin: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Instead of the document's admin address.")
    ] = None,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that requests may take to finish after SIGTERM.")] = 30.0,
    log_format: Annotated[str, typer.Option(metavar="plain|json", help="Form of the log lines.")] = "plain",
    pid_file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the process id there, once ready.")
    ] = None,
    roll_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a new process has to take over after SIGUSR2.")
    ] = 60.0,
    spare: Annotated[
        bool, typer.Option(help="Keep a worker process in advance, to replace one that dies at once.")
    ] = True,
    sidecar: SidecarOption = False,
    edge: EdgeOption = False,
) -> None:
    """Serve a document until SIGTERM or Ctrl-C; SIGHUP reads it again, SIGUSR2 hands over to a new process."""
    from graylb.listeners import is_address
    from graylb.supervisor import Options, StartError
    from graylb.supervisor import run as serve

    if log_format not in ("plain", "json"):
        fail(f"--log-format {log_format}: expected plain or json")
    for address in [*(listen or ()), *([admin] if admin else ())]:
        if not is_address(address):
            fail(f"address {address!r}: expected host:port, such as 127.0.0.1:8080, or unix:/path")
    options = Options(
        document,
        state,
        ports_file,
        workers,
        tuple(listen or ()),
        admin,
        drain,
        "json" if log_format == "json" else "plain",
        pid_file,
        roll_timeout,
        spare,
        preset_of(sidecar, edge),
    )
    try:
        status = serve(options)
    except StartError as error:
        fail(str(error), 1)
    raise typer.Exit(status)


def demo() -> None:
    """Run the demo: the proxy on its demo document with two small upstreams of its own."""
    from graylb.demo.__main__ import main

    raise typer.Exit(main())


def status(admin: AdminOption = None, as_json: AsJson = False) -> None:
    """Show what the running proxy serves, and why it may not serve the newest document."""
    address = admin or DEFAULT_ADMIN
    try:
        found = ask(address, "/status")
        services = ask(address, "/services")
    except NotRunning as error:
        fail(str(error), 1)
    if as_json:
        print_json({**found, "services": services})
    else:
        _print_status(found, services)


def _registry(found: dict[str, Any]) -> str:
    """How much there is, and what of it may be a mistake."""
    text = f"{found['instances']} instances of {found['services']} services"
    if found["unserved"]:
        text += f"; [yellow]{found['unserved']} without an address of a scheme that is asked for[/]"
    if found["unversioned"]:
        text += f"; [yellow]no version is named by those of[/] {', '.join(found['unversioned'])}"
    return text


def _print_status(found: dict[str, Any], services: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    ready = "[green]ready[/]" if found["ready"] else "[red]not ready[/]"
    out.print(f"graylb {found['version']}, process {found['pid']}: {ready}")
    out.print(f"revision {found['revision']} since {found['applied_at']}, digest {found['digest'][:12]}")
    out.print(f"document {escape(found['document'])}\nlisteners {', '.join(map(escape, found['listeners']))}")
    if found["refusal"]:
        out.print(f"[red]refused since {found['refusal']['since']}, revision {found['revision']} stays in force:[/]")
        for error in found["refusal"]["errors"]:
            out.print(f"  {escape(error['text'])}")
    for each in found["registries"]:
        out.print(f"registry {escape(each['name'])} at {escape(each['prefix'])}: {_registry(each)}")
        if not each["connected"]:
            out.print(f"  [red]not followed since {each['since'] or 'the start'}:[/] {escape(each['error'])}")
    for text in found["restart_needed"]:
        out.print(f"[yellow]takes effect at the next start or roll:[/] {escape(text)}")
    for warning in found["warnings"]:
        out.print(f"[yellow]warning:[/] {escape(warning['text'])}")
    workers = Table("worker", "pid", "ready", "revision", "restarts")
    for each in found["workers"]:
        revision = "-" if each["revision"] is None else str(each["revision"])
        workers.add_row(
            str(each["worker"]),
            str(each["pid"] or "-"),
            "yes" if each["ready"] else "no",
            revision,
            str(each["restarts"]),
        )
    out.print(workers)
    table = Table("service", "stable", "split", "rules", "instances", "set by")
    for each in services:
        split = " ".join(f"{version}={weight:g}" for version, weight in (each["split"] or {}).items()) or "-"
        table.add_row(
            *map(escape, (each["name"], each["stable"], split)),
            str(each["rules"]),
            str(each["instances"]),
            "command" if each["overridden"] else "document",
        )
    out.print(table)
