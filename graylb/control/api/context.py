"""What every router needs: the plane, the processes, the store, who calls, and which revision a write is based on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

import orjson
from fastapi import Depends, Header, Path, Query, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from graylb.control.api.failures import BadRevision
from graylb.control.comparisons import Comparisons
from graylb.control.config_store import ConfigStore
from graylb.control.health import Health
from graylb.control.live_view import Views
from graylb.control.plane import Plane
from graylb.model.values import near
from graylb.observe.slabs import Slabs

OPEN: Final = ("/live", "/ready")
"""Who asks for these is a load balancer or a kubelet, which has no token."""
NAME: Final = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
LOOK_EVERY: Final = 0.01
"""Seconds between two looks at what the workers have applied."""
LONGEST_WAIT: Final = 60.0


class Tree(Protocol):
    """The processes, as the supervisor knows them."""

    def ready(self) -> bool: ...
    def withdraw(self, withdrawn: bool) -> None: ...
    def drain(self, seconds: float | None = None) -> float: ...
    def status(self) -> dict[str, Any]: ...
    async def stats(self) -> list[dict[str, Any]]: ...
    @property
    def views(self) -> Views: ...
    @property
    def health(self) -> Health: ...
    @property
    def slabs(self) -> Slabs | None: ...
    @property
    def comparisons(self) -> Comparisons: ...


@dataclass(frozen=True, slots=True)
class Context:
    plane: Plane
    tree: Tree
    store: Callable[[], AbstractAsyncContextManager[ConfigStore]]

    async def wait(self, revision: int, seconds: float) -> tuple[bool | None, str | None]:
        """Whether every worker has it (None: nobody waited for that), and if not, why."""
        if self.plane.side is None or self.plane.side.part is None:
            self.plane.reload()  # rather than when the change of the file is noticed
        if not seconds:
            return None, None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            workers = [each["revision"] or 0 for each in self.tree.status()["workers"] if each["ready"]]
            if workers and min(workers) >= revision:
                return True, None
            if loop.time() >= deadline:
                refusal = self.plane.refusal
                return False, str(refusal) if refusal else f"not applied within {seconds:g} s"
            await asyncio.sleep(LOOK_EVERY)


def _context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


async def _store(context: Annotated[Context, Depends(_context)]) -> AsyncIterator[ConfigStore]:
    async with context.store() as store:
        yield store


def _who(request: Request) -> str:
    return str(request.state.who)


def _based_on(
    if_match: Annotated[
        str | None, Header(description='The ETag of what the change was made from, such as `"17"`. As `expected`.')
    ] = None,
) -> int | None:
    """Raises BadRevision."""
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRevision(f'If-Match: expected a revision, such as "17"; got {if_match[:40]!r}')
    return int(text)


def expected(body: int | None, header: int | None) -> int | None:
    """What the caller looked at, said in either way. Raises BadRevision when it is said in two."""
    if body is not None and header is not None and body != header:
        raise BadRevision(f"expected {body} in the body, but If-Match: {header}")
    return header if body is None else body


ContextOf = Annotated[Context, Depends(_context)]
StoreOf = Annotated[ConfigStore, Depends(_store)]
Who = Annotated[str, Depends(_who)]
BasedOn = Annotated[int | None, Depends(_based_on)]
ServiceName = Annotated[str, Path(pattern=NAME, description="A service.")]
RuleName = Annotated[str, Path(pattern=NAME, description="A rule of it.")]
Wait = Annotated[
    float,
    Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait until every worker has applied it. Default: not at all."),
]
NEEDS_WHO: Final = [Security(HTTPBearer(auto_error=False, description="Where the document has a `token_file`."))]
"""For the OpenAPI document; `guard` does it."""


class _Request(Request):
    async def json(self) -> Any:
        """By the grammar: no NaN, no half of a surrogate pair."""
        return orjson.loads(await self.body())


class Route(APIRoute):
    """Of every router here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}

        async def handle(request: Request) -> Response:
            for name in request.query_params:
                if name not in known and self.path not in OPEN:  # `?wiat=5` is a slip of the pen, too
                    meant = near(name, sorted(known))
                    expected = f'did you mean "{meant}"?' if meant else f"expected {', '.join(sorted(known)) or 'none'}"
                    raise ValueError(f"query: unknown parameter {name[:40]!r}; {expected}")
            return await handler(_Request(request.scope, request.receive))

        return handle
