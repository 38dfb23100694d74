"""Servers by ASGI (Starlette, FastAPI, Quart, Django): `app = Middleware(app)`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from graylb.sdk import context as sdk
from graylb.sdk.trail import TRAIL

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[Any]]


class Middleware:
    """Serves each HTTP request and WebSocket in the context that its headers carry."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        found = sdk.extract((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        token = sdk.attach(found)
        try:
            await self.app(scope, receive, send if found.trail is None else _telling(found, send))
        finally:
            sdk.detach(token)


def _telling(context: sdk.Context, send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start" and context.trail is not None:
            pair = (TRAIL.encode(), context.trail.text().encode("latin-1"))
            message = {**message, "headers": [*message.get("headers", ()), pair]}
        await send(message)

    return told
