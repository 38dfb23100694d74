"""The command doctor: sends a probe along a chain of services and names the hop that dropped the mark."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import SplitResult, urlsplit

import typer

from graylb.cli.common import AsJson, fail, header_of, print_json

if TYPE_CHECKING:
    import ssl

    from graylb.release.trails import Verdict

SCHEMES = ("http", "https", "grpc", "grpcs")
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2


@dataclass(frozen=True, slots=True)
class Reply:
    """status: as it is shown, `HTTP 200` or `gRPC OK`. error: graylb's own reason, if the answer is of its own."""

    status: str
    trail: str | None
    error: str | None


def doctor(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="http(s)://HOST/PATH, or grpc(s)://HOST:PORT/package.Service/Method.")
    ],
    mark: Annotated[
        str | None,
        typer.Option(metavar="MARK", help="Sent with the probe. Default: none; then --header may choose a version."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="May be repeated.")
    ] = None,
    expect: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Services that are to be in the chain, by GRAYLB_SERVICE.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Who is called and need not answer: 'api.partner.com*'. May be repeated."),
    ] = None,
    secret: Annotated[
        Path | None, typer.Option("--secret", metavar="FILE", help="The file of mark.signed.secret: signs the mark.")
    ] = None,
    mark_header: Annotated[str, typer.Option(metavar="NAME", help="The mark's header.")] = "x-service-version",
    method: Annotated[str, typer.Option("--method", "-X", help="Request method, of HTTP.")] = "GET",
    timeout: Annotated[str, typer.Option(metavar="TIME", help="For the whole answer: 500ms, 5s.")] = "5s",
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of who signed the server's certificate.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a probe along a chain of services and name the hop that dropped the mark.

    Exit status: 0 every hop had it, 1 one dropped it or is missing, 2 nobody answers or bad input.
    """
    from graylb.release import trails

    place = _place(url)
    headers = [_sendable(header_of(each)) for each in header or ()]
    headers += [*_marked(mark, secret, mark_header), (trails.PROBE, "1")]
    seconds = _seconds(timeout)
    if place.scheme in ("http", "https"):
        reply = _by_http(url, place, method, headers, seconds, ca)
    else:
        reply = _by_grpc(place, headers, seconds, ca)
    names = [each.strip() for each in (expect or "").split(",") if each.strip()]
    verdict = trails.judge(reply.trail, mark, names, ignore or ())
    if as_json:
        sent = {"url": url, "mark": mark, "status": reply.status, "error": reply.error, "trail": reply.trail}
        print_json(sent | verdict.to_data())
    else:
        _print(verdict, reply, bool(names))
    if not verdict.fine:
        raise typer.Exit(1)


def _place(url: str) -> SplitResult:
    try:
        place = urlsplit(url)
        known = place.scheme in SCHEMES and bool(place.hostname) and place.port != 0
    except ValueError:
        known = False
    if not known or not url.isascii() or not url.isprintable():
        fail(f"{url!r}: expected http(s)://HOST/PATH or grpc(s)://HOST:PORT/package.Service/Method")
    if place.scheme.startswith("grpc") and (place.port is None or place.path.count("/") != 2 or place.path[-1] == "/"):
        fail(f"{url!r}: expected grpc(s)://HOST:PORT/package.Service/Method")
    return place


def _sendable(pair: tuple[str, str]) -> tuple[str, str]:
    name, value = pair
    if TOKEN.fullmatch(name) is None or not value.isascii() or not value.isprintable():
        fail(f"--header {f'{name}: {value}'!r}: expected a name and a value of printable ASCII")
    return name.lower(), value


def _marked(mark: str | None, secret: Path | None, name: str) -> list[tuple[str, str]]:
    from graylb.release.marks import is_mark

    name, _ = _sendable((name, ""))
    if mark is None:
        if secret is not None:
            fail("--secret: expected --mark with it")
        return []
    if not is_mark(mark):
        fail(f"--mark {mark!r}: expected letters, digits and ._+/:@-, at most 128, with a letter or digit first")
    if secret is None:
        return [(name, mark)]
    from graylb.cli.marks import signed

    return list(signed(mark, secret, "1m", name).items())


def _seconds(text: str) -> float:
    from pydantic_core import PydanticCustomError

    from graylb.model.values import duration

    try:
        return duration(text)
    except PydanticCustomError:
        fail(f"--timeout {text}: expected a time such as 500ms or 5s")


def _by_http(
    url: str, place: SplitResult, method: str, headers: list[tuple[str, str]], seconds: float, ca: Path | None
) -> Reply:
    """Redirects are not followed: where they lead to is another chain. The body is not waited for."""
    import asyncio

    import httpx

    async def ask(verify: ssl.SSLContext | bool) -> Reply:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(verify=verify, timeout=None, trust_env=False) as client,
            client.stream(method, url, headers=headers) as answer,
        ):
            found = answer.headers
            return Reply(
                f"HTTP {answer.status_code}", _trail(found.get_list("x-graylb-trail")), found.get("x-graylb-error")
            )

    try:
        return asyncio.run(ask(_context(ca) if place.scheme == "https" else False))
    except TimeoutError:
        fail(f"{url}: no answer within {seconds:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        fail(f"{url}: {error or type(error).__name__}")


def _context(ca: Path | None) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        fail(f"--ca {ca}: {getattr(error, 'strerror', None) or error}")


def _by_grpc(place: SplitResult, headers: list[tuple[str, str]], seconds: float, ca: Path | None) -> Reply:
    """An empty message; the answers are read to their end, whatever the kind of the method, as the trail comes last."""
    import grpc

    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    options += [("grpc.default_authority", value) for name, value in headers if name == "host"]
    target = place.netloc.rpartition("@")[2]
    if place.scheme == "grpcs":
        try:
            roots = ca.read_bytes() if ca is not None else None
        except OSError as error:
            fail(f"--ca {ca}: {error.strerror}")
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
    else:
        channel = grpc.insecure_channel(target, options)
    metadata = [(name, value) for name, value in headers if name != "host"]
    for name, _ in metadata:
        if re.fullmatch(r"[0-9a-z_.-]+", name) is None or name.endswith("-bin"):
            fail(
                f"--header {name!r}: expected a name that gRPC takes: letters, digits and _.-, without -bin at its end"
            )
    with channel:
        try:
            call = channel.unary_stream(place.path)(b"", metadata=metadata, timeout=seconds)
            for _ in call:
                pass
        except grpc.RpcError as failed:
            call = failed
        told = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
        code = call.code()
        # graylb and services tell their statuses with metadata; without any, it is the channel that failed
        if not told and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            fail(f"{place.geturl()}: {code.name}: {call.details()}")
    values = {key: [_text(value) for name, value in told if name == key] for key, _ in told}
    reasons = values.get("x-graylb-error", [])
    return Reply(f"gRPC {code.name}", _trail(values.get("x-graylb-trail", [])), reasons[0] if reasons else None)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _trail(values: list[str]) -> str | None:
    return ",".join(values) if values else None


def _print(verdict: Verdict, reply: Reply, expected: bool) -> None:
    for index, hop in enumerate(verdict.hops):
        print(f"{'  ' * verdict.depth(index)}{hop.name}: {_told(verdict, index)}")
    error = "" if reply.error is None else f", {reply.error} of graylb's own"
    if verdict.hops:
        print()
    print(f"answer: {reply.status}{error}")
    for finding in verdict.findings:
        print(f"problem: {finding.message}")
    if verdict.fine:
        print(f"fine: {verdict.summary()}")
        if not expected:
            print("A client without its hook ends the trail unseen: name who should be in it with --expect A,B,C")
    if verdict.cut:
        print("The trail is so long that its end may be missing")


def _told(verdict: Verdict, index: int) -> str:
    hop = verdict.hops[index]
    if not hop.answered:
        return "answered no probe"
    told = f"got {hop.mark}" if hop.mark is not None else "got no mark"
    passed = list(dict.fromkeys(each.mark for each in verdict.calls(index) if each.answered))
    return f"{told}, passed on {' and '.join(mark or 'none' for mark in passed)}" if passed else told
