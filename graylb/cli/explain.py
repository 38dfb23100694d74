"""The command explain: what the proxy would do with one request, by the very matcher of the proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graylb.cli.common import (
    AdminOption,
    AsJson,
    DocumentOption,
    EdgeOption,
    SidecarOption,
    StateOption,
    Target,
    console,
    fail,
    header_of,
    locate,
    preset_of,
    print_json,
)

if TYPE_CHECKING:
    from graylb.model.presets import Name


def explain(
    path: Annotated[str, typer.Option(help="Path, with the query if there is one.")] = "/",
    method: Annotated[str, typer.Option(help="Request method.")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="May be repeated.")
    ] = None,
    client_ip: Annotated[str, typer.Option(help="Address of the client.")] = "127.0.0.1",
    client_certificate: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who the client's verified certificate names.")
    ] = None,
    listener: Annotated[
        str | None, typer.Option(metavar="NAME", help="The listener that it comes in by, where routes differ by it.")
    ] = None,
    draw: Annotated[int, typer.Option(min=0, help="Which draw of a split without a sticky key.")] = 0,
    pick: Annotated[int, typer.Option(min=0, help="Which pick among the instances of the version.")] = 0,
    document: DocumentOption = None,
    sidecar: SidecarOption = False,
    edge: EdgeOption = False,
    state: StateOption = None,
    admin: AdminOption = None,
    as_json: AsJson = False,
) -> None:
    """Explain one request: route, rule or slot, version, instance, and why earlier rules did not match."""
    import ipaddress

    from graylb.model.snapshot import CLIENT_CERTIFICATE

    headers = [header_of(each) for each in header or ()]
    if client_certificate is not None:
        headers.insert(0, (CLIENT_CERTIFICATE, client_certificate))
    try:
        ipaddress.ip_address(client_ip)
    except ValueError:
        fail(f"--client-ip {client_ip!r}: expected an IP address")
    if not path.startswith("/"):
        fail(f"--path {path!r}: expected a path that begins with /")
    preset = preset_of(sidecar, edge)
    target = locate(document, state, admin)
    request = {"method": method, "path": path, "headers": headers, "client_ip": client_ip, "draw": draw, "pick": pick}
    found = _explain(target, preset or target.preset, listener, **request)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _explain(target: Target, preset: Name | None, listener: str | None, **request: Any) -> dict[str, Any]:
    """By the table of the running proxy, else by the document and state as they are now; nothing is written."""
    if target.admin is not None:
        return _ask(target.admin, {"listener": listener, **request})
    from graylb import table
    from graylb.control import prepare
    from graylb.control.store import Store, StoreError
    from graylb.explain import choose_listener
    from graylb.explain import explain as explain_request
    from graylb.model.problems import ConfigErrors

    try:
        document = prepare.read(target.document, preset)
        _, snapshot = prepare.prepare(document, Store(target.state).read(), at=prepare.now())
    except (ConfigErrors, StoreError) as error:
        fail(str(error), 1)
    try:
        listener = choose_listener(snapshot, listener)
    except ValueError as error:
        fail(f"--listener: {error}")
    try:
        return explain_request(snapshot, table.compile(snapshot), listener=listener, **request)
    except ValueError as error:
        fail(f"the proxy would not accept this request: {error}")


def _ask(address: str, request: dict[str, Any]) -> dict[str, Any]:
    from graylb.cli.remote import RemoteDesk
    from graylb.control.config_store import ConfigStoreError

    try:
        return RemoteDesk(address).explain(request)
    except ValueError as error:
        fail(f"--{error}" if str(error).startswith("listener") else str(error))
    except ConfigStoreError as error:
        fail(str(error), 1)


def _print(found: dict[str, Any]) -> None:
    """A tree in the order of the decision."""
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(f"revision {found.get('revision', '-')}")
    for key, value in found.items():
        if key == "revision" or value is None:
            continue
        branch = tree.add(f"[bold]{escape(key.replace('_', ' '))}[/]: {_short(value)}")
        for each in value if isinstance(value, list) else ():
            branch.add(_short(each))
    out = console()
    out.width = 10_000  # a tree is cut at the width, and it is the end of a reason that says what was expected
    out.print(tree, soft_wrap=True)


def _short(value: Any) -> str:
    """One line of rich markup."""
    from rich.markup import escape

    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    if isinstance(value, list):
        return "" if value else "none"
    if isinstance(value, dict) and value.keys() == {"rule", "reason"}:
        return f"{escape(value['rule'])}: {escape(value['reason'])}"
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {_short(each)}" for key, each in value.items())
    return escape(str(value))
