"""`graylb register`: run a service that knows nothing of graylb, registered in etcd while it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from graylb.cli.common import fail

CONTEXT = {"allow_interspersed_args": False}
"""What comes after the command's name belongs to it, also without `--`."""


def register(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="The service, after --.")],
    service: Annotated[str, typer.Option(metavar="NAME", help="The service that this is an instance of.")],
    version: Annotated[str, typer.Option(metavar="VERSION", help="A SemVer, an image tag or any name.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where proxies reach it; or unix:/path.")],
    weight: Annotated[int, typer.Option(help="Share within its version; 0: registered, but without traffic.")] = 100,
    meta: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A tag; may be repeated.")] = None,
    zone: Annotated[str, typer.Option(help="Where it runs.")] = "",
    id: Annotated[str, typer.Option(metavar="ID", help="The end of its key. Default: the address.")] = "",
    etcd: Annotated[
        str, typer.Option(metavar="ENDPOINTS", envvar="GRAYLB_ETCD", help="host:port, or several with commas.")
    ] = "127.0.0.1:2379",
    prefix: Annotated[str, typer.Option(help="Of graylb's keys in etcd.")] = "/graylb",
    ttl: Annotated[int, typer.Option(min=1, help="Seconds until the key of a killed process is gone.")] = 10,
    user: Annotated[str, typer.Option(help="Of etcd.")] = "",
    password_file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The user's password is its first line.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(metavar="PATH", help="PEM: who may sign etcd's certificate.")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="PATH", help="PEM: the certificate to show to etcd.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PATH", help="PEM: its key.")] = None,
    wait: Annotated[str, typer.Option(metavar="TIME", help="How long the port may take to answer.")] = "30s",
    drain: Annotated[
        str, typer.Option(metavar="TIME", help="Between being taken out of etcd and being told to end.")
    ] = "0",
    check: Annotated[
        str, typer.Option(metavar="TIME", help="Take it out while its port has not answered for so long. 0: never.")
    ] = "0",
    probe: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where its port is asked. Default: the address.")
    ] = "",
) -> None:
    """Run a service, registered in etcd from its port's first answer until it is told to end.

    Signals are passed on. Before one that ends it (SIGTERM, SIGINT, SIGQUIT) the instance is taken out of etcd; a
    second one is passed on at once. The exit status is the command's.
    """
    environment = dict(os.environ)  # before gRPC's settings are in it, which are not the command's
    import asyncio

    from graylb.cli.companion import Companion, Manner, NeverAnswered
    from graylb.control.etcd.links import Options
    from graylb.model import values
    from graylb.register import Registration, checked

    try:
        options = Options(
            tuple(each.strip() for each in etcd.split(",") if each.strip()),
            user=user,
            password=_password(password_file),
            ca=ca,
            cert=cert,
            key=key,
            timeout=3.0,
        )
        registration = Registration(
            options,
            service=service,
            version=version,
            address=address,
            weight=weight,
            metadata=dict(map(_tag, meta or ())),
            zone=zone,
            id=id,
            prefix=prefix,
            ttl=ttl,
        )
        manner = Manner(
            checked("probe", values.instance_address, probe or address),
            wait=checked("wait", values.duration, _number(wait)),
            drain=0.0 if drain == "0" else checked("drain", values.duration, _number(drain)),
            check=0.0 if check == "0" else checked("check", values.duration, _number(check)),
        )
    except ValueError as error:
        fail(str(error))
    try:
        status = asyncio.run(Companion(registration, command, manner, environment, _say).run())
    except OSError as error:
        # statuses as of a shell
        fail(f"{command[0]}: {error.strerror}", 127 if isinstance(error, FileNotFoundError) else 126)
    except NeverAnswered as error:
        fail(str(error), 1)
    raise typer.Exit(status)


def _say(message: str) -> None:
    print(f"graylb: {message}", file=sys.stderr, flush=True)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"register: --meta {text}: expected KEY=VALUE, such as env=gray")
    return name, value


def _password(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"register: --password-file {path} cannot be read: {error}") from error
    if not lines or not lines[0]:
        raise ValueError(f"register: --password-file {path}: expected the password in its first line")
    return lines[0]
