"""gRPC with threads: `grpc.intercept_channel(channel, ClientInterceptor())`, and a server of `[ServerInterceptor()]`.

For `grpc.aio` see `graylb.sdk.grpc_aio`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any, NamedTuple

import grpc

from graylb.sdk import context as sdk
from graylb.sdk.trail import TRAIL, Trail


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _CallDetails(_Details, grpc.ClientCallDetails):  # type: ignore[misc]
    pass


class ClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Calls carry the current context, whatever their kind."""

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return _call(continuation, details, request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return _call(continuation, details, request)

    def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return _call(continuation, details, requests)

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return _call(continuation, details, requests)


def _call(continuation: Callable[..., Any], details: Any, request: Any) -> Any:
    call = continuation(
        _CallDetails(
            details.method,
            details.timeout,
            with_context(details.metadata),
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        ),
        request,
    )
    trail = sdk.current().trail
    if trail is not None:
        trail.add(details.method, lambda: trail_of(call.trailing_metadata()) if call.done() else None)
    return call


class ServerInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Serves each call in the context that its metadata carry, whatever its kind."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        wrap = _stream if handler.response_streaming else _unary
        return rewrapped(handler, wrap(behaviour(handler), _extracted(details)))


def with_context(metadata: Any) -> list[tuple[str, Any]]:
    """The metadata of a call and what the current context carries. A key that is there already stays as it is."""
    made = list(metadata or ())
    present = dict(made)
    for key, value in sdk.lines():
        if key not in present or (key == "baggage" and value != present[key]):
            made.append((key, value))
    return made


def trail_of(metadata: Any) -> str | None:
    return next((text(value) for key, value in metadata or () if key == TRAIL), None)


def text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _extracted(details: Any) -> sdk.Context:
    return sdk.extract((key, text(value)) for key, value in details.invocation_metadata or ())


def behaviour(handler: Any) -> Any:
    """What of the four a handler has."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def rewrapped(handler: Any, inner: Any) -> Any:
    """The same handler with another behaviour."""
    made = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return made(inner, handler.request_deserializer, handler.response_serializer)


def _unary(inner: Callable[..., Any], found: sdk.Context) -> Callable[..., Any]:
    def served(request: Any, context: Any) -> Any:
        with sdk.use(found):
            try:
                return inner(request, context)
            finally:
                tell(found.trail, context)

    return served


def _stream(inner: Callable[..., Any], found: sdk.Context) -> Callable[..., Iterator[Any]]:
    def served(request: Any, context: Any) -> Iterator[Any]:
        # each piece is made in the call's own context: a generator would leave it to whoever asks for the next one
        own = copy_context()
        own.run(sdk.attach, found)
        pieces = own.run(lambda: iter(inner(request, context)))
        try:
            while True:
                try:
                    piece = own.run(next, pieces)
                except StopIteration:
                    return
                yield piece
        finally:
            tell(found.trail, context)

    return served


def tell(trail: Trail | None, context: Any) -> None:
    """Adds the trail to the trailing metadata of a call that is about to end."""
    if trail is not None:
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), (TRAIL, trail.text())))
