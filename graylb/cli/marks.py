"""The command mark: a signed mark, for who is to have one at the edge."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from graylb.cli.common import AsJson, fail, print_json


def mark(
    value: Annotated[str, typer.Argument(metavar="MARK", help="A version, or a lane.")],
    secret: Annotated[Path, typer.Option("--secret", metavar="FILE", help="The file of mark.signed.secret.")],
    valid: Annotated[str, typer.Option("--for", metavar="TIME", help="How long it is believed: 30m, 12h.")] = "1h",
    header: Annotated[str, typer.Option("--header", metavar="NAME", help="The mark's.")] = "x-service-version",
    signature: Annotated[
        str, typer.Option("--signature", metavar="NAME", help="The signature's.")
    ] = "x-service-version-signature",
    as_json: AsJson = False,
) -> None:
    """Sign a mark: two headers that the edge believes until their time is over."""
    headers = signed(value, secret, valid, header, signature)
    if as_json:
        print_json(headers)
    else:
        for name, text in headers.items():
            print(f"{name}: {text}")


def signed(
    value: str,
    secret: Path,
    valid: str,
    header: str = "x-service-version",
    signature: str = "x-service-version-signature",
) -> dict[str, str]:
    """The two headers. valid: a time such as 30m, from now on. Fails in one line."""
    from pydantic_core import PydanticCustomError

    from graylb.model.marks import MIN_SECRET
    from graylb.model.values import duration
    from graylb.release.marks import is_mark, sign

    if not is_mark(value):
        fail(f"{value!r}: expected letters, digits and ._+/:@-, at most 128, with a letter or digit first")
    try:
        key = secret.read_text().strip()
        seconds = duration(valid)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{secret}: {getattr(error, 'strerror', None) or error}")
    except PydanticCustomError:
        fail(f"--for {valid}: expected a time such as 30m or 12h")
    if len(key.encode()) < MIN_SECRET:
        fail(f"{secret}: expected a secret of at least {MIN_SECRET} bytes")
    return {header: value, signature: sign(value, key, int(time.time() + seconds))}
