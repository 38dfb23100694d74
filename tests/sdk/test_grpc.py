"""gRPC with threads and with asyncio: the four kinds of calls, as servers and as clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from graylb import sdk
from graylb.sdk.grpc import ClientInterceptor, ServerInterceptor
from graylb.sdk.grpc_aio import ServerInterceptor as AioServerInterceptor
from graylb.sdk.grpc_aio import client_interceptors
from tests.sdk import servers

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
HANDLERS = {kind: getattr(grpc, f"{kind}_rpc_method_handler") for kind in KINDS}
OPTIONS = [("grpc.so_reuseport", 0)]


def generic(handlers: dict[str, Any]) -> Any:
    return grpc.method_handlers_generic_handler("test.Marks", handlers)


def mark() -> bytes:
    return (sdk.current().mark or "none").encode()


class Behaviours:
    """Each answers with the mark of its context, or with what the next server answers."""

    def __init__(self, ask: Callable[[str], bytes] | None = None) -> None:
        self.ask = ask

    def told(self, kind: str) -> bytes:
        return self.ask(kind) if self.ask is not None else mark()

    def unary_unary(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-own", "1"),))
        return self.told("unary_unary")

    def unary_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(3):
            yield self.told("unary_stream")

    def stream_unary(self, requests: Iterator[bytes], context: Any) -> bytes:
        list(requests)
        return self.told("stream_unary")

    def stream_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for _ in requests:
            yield self.told("stream_stream")

    def handlers(self) -> dict[str, Any]:
        return {kind: HANDLERS[kind](getattr(self, kind)) for kind in KINDS}


@contextmanager
def threaded(behaviours: Any) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[ServerInterceptor()], options=OPTIONS)
    server.add_generic_rpc_handlers([generic(behaviours.handlers())])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def call(channel: Any, kind: str, metadata: Any = ()) -> tuple[list[bytes], dict[str, str]]:
    """The messages of an answer, and its trailing metadata."""
    method = getattr(channel, kind)(f"/test.Marks/{kind}")
    request = iter([b"", b"", b""]) if kind.startswith("stream") else b""
    if kind.endswith("stream"):
        answer = method(request, metadata=metadata)
        found = list(answer)
    else:
        value, answer = method.with_call(request, metadata=metadata)
        found = [value]
    return found, dict(answer.trailing_metadata())


def count(kind: str) -> int:
    return 3 if kind.endswith("stream") else 1


@pytest.mark.parametrize("kind", KINDS)
def test_with_threads(kind: str) -> None:
    name = sdk.settings().service
    with threaded(Behaviours()) as last, grpc.insecure_channel(last) as plain:
        channel = grpc.intercept_channel(plain, ClientInterceptor())

        def ask(kind: str) -> bytes:
            return call(channel, kind)[0][0]

        with threaded(Behaviours(ask)) as first, grpc.insecure_channel(first) as caller:
            found, _ = call(caller, kind, (("x-service-version", "v2"), ("x-bin", b"1")))
            assert found == [b"v2"] * count(kind)
            assert call(caller, kind, (("baggage", "a=1,x-service-version=v3"),))[0][0] == b"v3"
            assert call(caller, kind)[0][0] == b"none"
            _, trailing = call(caller, kind, (("x-service-version", "v2"), ("x-graylb-probe", "1")))
            assert trailing["x-graylb-trail"] == ",".join([f"0;{name};v2", *[f"1;{name};v2"] * count(kind)])
            assert ("x-own" in trailing) == (kind == "unary_unary")


def test_a_future_carries_it_too_and_metadata_set_by_hand_stay() -> None:
    with threaded(Behaviours()) as last, grpc.insecure_channel(last) as plain:
        method = grpc.intercept_channel(plain, ClientInterceptor()).unary_unary("/test.Marks/unary_unary")
        with sdk.use(sdk.Context(mark="v2")):
            assert method.future(b"").result() == b"v2"
            assert method(b"", metadata=(("x-service-version", "v9"),)) == b"v9"
        assert method(b"") == b"none"


def test_what_is_not_served_is_unimplemented_as_before() -> None:
    with threaded(Behaviours()) as last, grpc.insecure_channel(last) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Marks/none")(b"", metadata=(("x-graylb-probe", "1"),))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class AioBehaviours:
    def __init__(self, ask: Callable[[str], Awaitable[bytes]] | None = None) -> None:
        self.ask = ask

    async def told(self, kind: str) -> bytes:
        return await self.ask(kind) if self.ask is not None else mark()

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        return await self.told("unary_unary")

    async def unary_stream(self, request: bytes, context: Any) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
            yield await self.told("unary_stream")

    async def stream_unary(self, requests: Any, context: Any) -> bytes:
        async for _ in requests:
            pass
        return await self.told("stream_unary")

    async def stream_stream(self, requests: Any, context: Any) -> None:
        async for _ in requests:
            await context.write(await self.told("stream_stream"))

    def handlers(self) -> dict[str, Any]:
        made = {kind: HANDLERS[kind](getattr(self, kind)) for kind in KINDS}
        return made | {"plain": HANDLERS["unary_unary"](lambda request, context: mark())}


async def aio_call(channel: Any, kind: str, metadata: Any = (), name: str = "") -> tuple[list[bytes], dict[str, str]]:
    async def requests() -> Any:
        for _ in range(3):
            yield b""

    method = getattr(channel, kind)(f"/test.Marks/{name or kind}")
    answer = method(requests() if kind.startswith("stream") else b"", metadata=metadata)
    found = [piece async for piece in answer] if kind.endswith("stream") else [await answer]
    return found, dict(await answer.trailing_metadata())


async def aio_server(behaviours: AioBehaviours) -> tuple[Any, str]:
    server = grpc.aio.server(interceptors=[AioServerInterceptor()], options=OPTIONS)
    server.add_generic_rpc_handlers([generic(behaviours.handlers())])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


def test_with_asyncio() -> None:
    asyncio.run(_with_asyncio())


async def _with_asyncio() -> None:
    service = sdk.settings().service
    last, address = await aio_server(AioBehaviours())
    onward = grpc.aio.insecure_channel(address, interceptors=client_interceptors())

    async def ask(kind: str) -> bytes:
        return (await aio_call(onward, kind))[0][0]

    first, address = await aio_server(AioBehaviours(ask))
    caller = grpc.aio.insecure_channel(address)
    try:
        for kind in KINDS:
            found, _ = await aio_call(caller, kind, (("x-service-version", "v2"),))
            assert found == [b"v2"] * count(kind), kind
            assert (await aio_call(caller, kind))[0][0] == b"none", kind
            _, trailing = await aio_call(caller, kind, (("x-service-version", "v2"), ("x-graylb-probe", "1")))
            wanted = ",".join([f"0;{service};v2", *[f"1;{service};v2"] * count(kind)])
            assert trailing["x-graylb-trail"] == wanted, kind
        found, _ = await aio_call(caller, "unary_unary", (("x-service-version", "v2"),), name="plain")
        assert found == [b"v2"]
        answers = [aio_call(caller, "unary_stream", (("x-service-version", f"v{n}"),)) for n in range(30)]
        assert [found[0][0] for found in await asyncio.gather(*answers)] == [b"v%d" % n for n in range(30)]
    finally:
        await caller.close()
        await onward.close()
        await first.stop(None)
        await last.stop(None)


def test_a_caller_with_asyncio_of_a_server_with_threads() -> None:
    async def main(address: str) -> bytes:
        async with grpc.aio.insecure_channel(address, interceptors=client_interceptors()) as channel:
            with sdk.use(sdk.Context(mark="v2")):
                return (await aio_call(channel, "unary_unary"))[0][0]

    with threaded(Behaviours()) as address:
        assert asyncio.run(main(address)) == b"v2"


def test_the_helper_server_stops() -> None:
    """`servers.on_a_loop` is what chains are made of; it must not leave a loop behind."""

    async def serve() -> tuple[str, Callable[[], Awaitable[Any]]]:
        server, address = await aio_server(AioBehaviours())
        return address, lambda: server.stop(None)

    with servers.on_a_loop(serve) as address, grpc.insecure_channel(address) as channel:
        assert call(channel, "unary_unary", (("x-service-version", "v2"),))[0] == [b"v2"]
