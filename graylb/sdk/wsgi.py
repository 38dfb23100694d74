"""Servers by WSGI (Flask, Django, Bottle): `app.wsgi_app = Middleware(app.wsgi_app)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from typing import Any

from graylb.sdk import context as sdk
from graylb.sdk.trail import TRAIL

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Middleware:
    """Serves each request in the context that its headers carry, the body that is made while it is sent included."""

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = sdk.extract(
            (key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")
        )
        own = copy_context()
        own.run(sdk.attach, found)
        body = own.run(self.app, environ, start_response if found.trail is None else _telling(found, start_response))
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(body, list | tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            return body  # nothing of the application runs any more
        return _Body(body, own)


class _Body:
    """A body whose pieces are made in a context."""

    def __init__(self, body: Iterable[bytes], context: Context) -> None:
        self._body = body
        self._context = context
        self._pieces = context.run(iter, body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._pieces)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)


def _telling(context: sdk.Context, start_response: Callable[..., Any]) -> Callable[..., Any]:
    def told(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        assert context.trail is not None
        return start_response(status, [*headers, (TRAIL, context.trail.text())], *rest)

    return told
