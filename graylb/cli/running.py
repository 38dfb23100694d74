"""Commands about the running proxy: run, demo, status."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from graylb.cli.caller import DEFAULT_ADMIN, NotRunning
from graylb.cli.common import (
    AdminOption,
    AsJson,
    DocumentOption,
    EdgeOption,
    SidecarOption,
    StateOption,
    Target,
    ask,
    console,
    fail,
    locate,
    preset_of,
    print_json,
)

_LEVELS: Final[dict[str, Literal["debug", "info", "warning", "error"]]] = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
}


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
    log_level: Annotated[
        str, typer.Option(metavar="debug|info|warning|error", help="The least of the lines to be logged.")
    ] = "info",
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
    from graylb.control.spawning import spawn_early

    if log_format not in ("plain", "json"):
        fail(f"--log-format {log_format}: expected plain or json")
    level = _LEVELS.get(log_level)
    if level is None:
        fail(f"--log-level {log_level}: expected debug, info, warning or error")
    early = spawn_early(workers)  # on another core while this one loads
    try:
        gc.disable()  # hardly anything that a start makes is garbage, and looking for it takes a tenth of the time
        from graylb.listeners import is_address
        from graylb.supervisor import Options, StartError
        from graylb.supervisor import run as serve

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
            level,
        )
        status = serve(options, settle=_settle_memory, early=early)
    except StartError as error:
        fail(str(error), 1)
    finally:
        for each in early:
            each.end()
    raise typer.Exit(status)


def _settle_memory() -> None:
    """What the start made stays, ten thousand instances perhaps: a collection that looks at it takes a tenth of a
    second, in which no change gets on. Later ones look at what came since, and less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def demo() -> None:
    """Run the demo: the proxy on its demo document with two small upstreams of its own."""
    from graylb.demo.__main__ import main

    raise typer.Exit(main())


def status(document: DocumentOption = None, admin: AdminOption = None, as_json: AsJson = False) -> None:
    """Show what the running proxy serves, and why it may not serve the newest document; with etcd, of every node.

    Where no proxy runs on the document that -c names, the nodes are told by its etcd.
    """
    target = locate(document, None, admin) if document is not None else None
    if target is not None and target.admin is None:
        _nodes_alone(target, as_json)
        return
    address = (target.admin if target is not None else None) or admin or DEFAULT_ADMIN
    try:
        found = ask(address, "/status")
        services = ask(address, "/services")
    except NotRunning as error:
        fail(str(error), 1)
    nodes: list[dict[str, Any]] = []
    if found["etcd"] and found["etcd"]["connected"]:
        with contextlib.suppress(NotRunning):  # etcd may have gone in this very moment
            nodes = ask(address, "/nodes")
    if as_json:
        print_json({**found, "services": services, "nodes": nodes})
    else:
        _print_status(found, services)
        if found["etcd"]:
            _print_etcd(found["etcd"])
            _print_nodes(nodes)


def _nodes_alone(target: Target, as_json: bool) -> None:
    from graylb.cli.desk import LocalDesk, telling

    with telling():
        nodes = list(LocalDesk(target).nodes())
    if as_json:
        print_json({"nodes": nodes})
    elif nodes:
        _print_nodes(nodes)
    else:
        fail(f"no proxy runs on {target.document}", 1)


def _print_etcd(found: dict[str, Any]) -> None:
    from rich.markup import escape

    out = console()
    state = "connected" if found["connected"] else f"[red]not connected since {found['since']}[/]: {found['error']}"
    leader = f", leader {found['leader']}" if found["leader"] else ""
    out.print(f"etcd {state}, prefix {escape(found['prefix'])}, node {escape(found['node'])}{escape(leader)}")
    out.print(f"seen {found['seen']}, applied {found['applied']}, lag {found['lag']:g} s")
    for text in found["problems_writing"]:
        out.print(f"[yellow]this node cannot lead, or not tell how it fares:[/] {escape(text)}")
    if found["last_good"]["served"]:
        out.print(f"[yellow]serving what was good last:[/] {escape(found['last_good']['file'])}")


def _print_nodes(nodes: list[dict[str, Any]]) -> None:
    """Of all that tell: what each has applied, how late it is, and what it refuses."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    table = Table("node", "version", "applied", "since", "lag", "refused")
    for each in nodes:
        refused = [str(key.get("key")) for key in each.get("refused", ())]
        told = [str(each.get(name, "-")) for name in ("node", "version", "revision", "applied_at")]
        table.add_row(*map(escape, [*told, f"{each.get('lag', 0):g} s", ", ".join(refused) or "-"]))
    out.print(table)
    told_of: dict[str, list[str]] = {}
    for each in nodes:
        for key in each.get("refused", ()):
            for error in key.get("errors", ()):
                told_of.setdefault(error["text"], []).append(each["node"])
        for text in (*each.get("problems", ()), *([each["problem"]] if each.get("problem") else [])):
            told_of.setdefault(text, []).append(each["node"])
    for text, names in told_of.items():
        out.print(f"[red]{escape(', '.join(names))}:[/] {escape(text)}", soft_wrap=True)


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
    for each in found["ejected"]:
        out.print(
            f"[yellow]ejected by worker {each['worker']} until {each['until']}:[/] {escape(each['address'])} of "
            f"{escape(each['service'])} ({escape(each['version'])}): {escape(each['why'])}"
        )
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
