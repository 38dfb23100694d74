"""What is carried, where it is kept, and how it is read from and written to the headers of a message."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from urllib.parse import unquote

from graylb.sdk import trail
from graylb.sdk.trail import Trail

MARK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}")
"""What a mark may be; anything else is taken for none. The proxy holds the same."""

MAX_BAGGAGE = 8192
"""Bytes of a baggage that is carried (W3C Baggage section 3.3.2); a longer one is left behind, the mark is not."""

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How marks are read and written in this process.

    service: how this service is called in a trail. headers: names of the mark, lower case; the first that is present
    is read, all of them are written. baggage: its key in W3C baggage; None: it is not looked for there, nor put there.
    answers_probes: whether a request with the header `x-graylb-probe` is told of this service.
    """

    service: str
    headers: tuple[str, ...] = ("x-service-version",)
    baggage: str | None = "x-service-version"
    answers_probes: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """What one request carries. `baggage` is the header's value as it came, without the mark's member."""

    mark: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    trail: Trail | None = None


def _from_environment() -> Settings:
    get = os.environ.get
    service = get("GRAYLB_SERVICE") or get("OTEL_SERVICE_NAME") or socket.gethostname()
    names = [name.strip().lower() for name in get("GRAYLB_MARK_HEADERS", "x-service-version").split(",")]
    key = get("GRAYLB_MARK_BAGGAGE", "x-service-version").strip()
    return Settings(
        service=service,
        headers=tuple(name for name in names if name),
        baggage=key if key not in ("", "off") else None,
        answers_probes=get("GRAYLB_PROBES", "on") != "off",
    )


_settings = _from_environment()
_current: ContextVar[Context] = ContextVar("graylb.sdk.context", default=Context())  # noqa: B039 it is frozen


def settings() -> Settings:
    return _settings


def configure(
    *,
    service: str | None = None,
    headers: Iterable[str] | None = None,
    baggage: str | bool | None = True,
    answers_probes: bool | None = None,
) -> Settings:
    """Changes the settings of this process; what is not given stays. baggage: its key, or None or False for none.

    At the start they are of the environment: GRAYLB_SERVICE (else OTEL_SERVICE_NAME, else the host's name),
    GRAYLB_MARK_HEADERS (names with commas between), GRAYLB_MARK_BAGGAGE (a key, or `off`), GRAYLB_PROBES (`on`, `off`).
    """
    global _settings
    made = _settings
    if service is not None:
        made = replace(made, service=service)
    if headers is not None:
        names = (headers,) if isinstance(headers, str) else tuple(headers)
        made = replace(made, headers=tuple(name.lower() for name in names))
    if baggage is not True:
        made = replace(made, baggage=baggage if isinstance(baggage, str) and baggage else None)
    if answers_probes is not None:
        made = replace(made, answers_probes=answers_probes)
    _settings = made
    return made


def current() -> Context:
    """What the request that is served here carries; an empty context outside of any."""
    return _current.get()


def attach(context: Context) -> Token[Context]:
    """Makes it the current one of this thread or task; give the token to `detach`."""
    return _current.set(context)


def detach(token: Token[Context]) -> None:
    """Undoes `attach`. From another task or thread than the one it was called in it does nothing."""
    with suppress(ValueError):  # a generator that is closed elsewhere than it ran
        _current.reset(token)


@contextmanager
def use(context: Context) -> Iterator[Context]:
    """`with use(Context(mark="v2")): …`"""
    token = attach(context)
    try:
        yield context
    finally:
        detach(token)


def extract(headers: Pairs) -> Context:
    """The context that these headers of a request or message carry. Names in any case; never raises for their content.

    A mark in a header counts more than one in baggage. Of a header that stands there twice the first counts.
    """
    found: dict[str, str] = {}
    lines: list[str] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        key = name.lower()
        if key == "baggage":
            lines.append(value)
        else:
            found.setdefault(key, value)
    own = _settings
    members, mark = _members(",".join(lines), own.baggage)
    for header in own.headers:
        if header in found:
            mark = _valid(found[header])
            break
    baggage = ",".join(members)
    probe = found.get(trail.PROBE) if own.answers_probes else None
    return Context(
        mark=mark,
        traceparent=found.get("traceparent"),
        tracestate=found.get("tracestate"),
        baggage=baggage if 0 < len(baggage) <= MAX_BAGGAGE else None,
        trail=Trail(probe, own.service, mark) if probe else None,
    )


def inject(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Adds to the headers of a call what the context (default: the current one) carries.

    A header that is there already stays as it is: who sets one by hand means it. Only baggage is added to.
    """
    present = {name.lower(): name for name in headers}
    for name, value in lines(context):
        if name not in present:
            headers[name] = value
        elif name == "baggage":
            headers[present[name]] = _joined(headers[present[name]], value)


def lines(context: Context | None = None) -> list[tuple[str, str]]:
    """What `inject` adds, as pairs with lower-case names."""
    context = context if context is not None else _current.get()
    made: list[tuple[str, str]] = []
    baggage = context.baggage
    if context.mark is not None:
        made += [(name, context.mark) for name in _settings.headers]
        if _settings.baggage is not None:
            member = f"{_settings.baggage}={context.mark}"
            baggage = f"{member},{baggage}" if baggage else member
    if context.traceparent is not None:
        made.append(("traceparent", context.traceparent))
        if context.tracestate is not None:
            made.append(("tracestate", context.tracestate))
    if baggage:
        made.append(("baggage", baggage))
    if context.trail is not None:
        made.append((trail.PROBE, context.trail.probe))
    return made


def _members(text: str, key: str | None) -> tuple[list[str], str | None]:
    """A baggage's members without the mark's, and the mark (W3C Baggage section 3.3.1)."""
    others: list[str] = []
    mark: str | None = None
    for member in text.split(",") if text else ():
        name, equals, rest = member.partition("=")
        if key is None or name.strip() != key or not equals:
            if member.strip():
                others.append(member.strip())
        elif mark is None:
            mark = _valid(unquote(rest.partition(";")[0]))
    return others, mark


def _joined(present: str, ours: str) -> str:
    """A baggage with those members of ours that it has not."""
    names = {member.partition("=")[0].strip() for member in present.split(",")}
    missing = [member for member in ours.split(",") if member.partition("=")[0].strip() not in names]
    return ",".join([present, *missing]) if present.strip() else ours


def _valid(value: str) -> str | None:
    value = value.strip(" \t")
    return value if MARK.fullmatch(value) else None
