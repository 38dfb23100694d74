"""grpc.aio: `insecure_channel(…, interceptors=client_interceptors())`, `server(interceptors=[ServerInterceptor()])`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from graylb.sdk import context as sdk
from graylb.sdk.grpc import behaviour, rewrapped, tell, text, trail_of, with_context

PATIENCE = 1.0  # seconds that a probe waits for the end of a call


def client_interceptors() -> list[Any]:
    """One for each of the four kinds of calls: grpc.aio takes an interceptor for one kind only."""
    return [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await _call(continuation, details, request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await _call(continuation, details, request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await _call(continuation, details, requests)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await _call(continuation, details, requests)


async def _call(continuation: Callable[..., Any], details: Any, request: Any) -> Any:
    metadata = grpc.aio.Metadata(*with_context(details.metadata))
    call = await continuation(details._replace(metadata=metadata), request)
    trail = sdk.current().trail
    if trail is not None:
        method = details.method
        ended: list[str | None] = []
        trail.add(method if isinstance(method, str) else method.decode(), lambda: ended[0] if ended else None)

        async def note() -> None:
            with contextlib.suppress(TimeoutError):  # a call that goes on has not told anything yet
                ended.append(trail_of(await asyncio.wait_for(call.trailing_metadata(), PATIENCE)))

        trail.pending.append(note)
    return call


class ServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Serves each call in the context that its metadata carry, whatever its kind."""

    async def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        found = sdk.extract((key, text(value)) for key, value in details.invocation_metadata or ())
        inner = behaviour(handler)
        if inspect.isasyncgenfunction(inner):
            return rewrapped(handler, _generated(inner, found))
        if inspect.iscoroutinefunction(inner):
            return rewrapped(handler, _awaited(inner, found))
        return rewrapped(handler, _called(inner, found))


def _generated(inner: Callable[..., Any], found: sdk.Context) -> Callable[..., AsyncIterator[Any]]:
    async def served(request: Any, context: Any) -> AsyncIterator[Any]:
        token = sdk.attach(found)  # a call is a task of its own, so the context stays between the pieces
        try:
            async for piece in inner(request, context):
                yield piece
        finally:
            sdk.detach(token)
            await _tell(found, context)

    return served


def _awaited(inner: Callable[..., Any], found: sdk.Context) -> Callable[..., Any]:
    async def served(request: Any, context: Any) -> Any:
        with sdk.use(found):
            try:
                return await inner(request, context)
            finally:
                await _tell(found, context)

    return served


def _called(inner: Callable[..., Any], found: sdk.Context) -> Callable[..., Any]:
    """A plain function, which grpc.aio runs in a thread."""

    def served(request: Any, context: Any) -> Any:
        with sdk.use(found):
            return inner(request, context)

    return served


async def _tell(found: sdk.Context, context: Any) -> None:
    if found.trail is not None:
        for note in found.trail.pending:
            await note()
        found.trail.pending.clear()
        tell(found.trail, context)
