"""Chains of real Python services: `a` calls `b`, `b` calls `c`; of `b` there is no v2.

Each service answers with its own name and version and what the next one said: `a2 b1 c2`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import httpx

from graylb.sdk import asgi, grpc_aio
from graylb.sdk.httpx import instrument
from tests.sdk import servers

VERSIONS = {"a": ("v1", "v2"), "b": ("v1",), "c": ("v1", "v2")}
NEXT = {"a": "b", "b": "c", "c": None}
CARRIED_BY_ALL = ("traceparent", "tracestate")


def http_service(name: str, version: str, outbound: str, *, with_sdk: bool) -> Any:
    """outbound: the Unix socket of who takes its calls. Without the SDK it passes on nothing but `traceparent`."""
    own = f"{name}{version[1:]}"
    following = NEXT[name]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = own
        if following is not None:
            given = {key.decode(): value.decode() for key, value in scope["headers"]}
            carried = {} if with_sdk else {key: given[key] for key in CARRIED_BY_ALL if key in given}
            transport = httpx.AsyncHTTPTransport(uds=outbound, verify=False)
            client = httpx.AsyncClient(transport=transport, timeout=servers.PATIENCE)
            async with instrument(client) if with_sdk else client:
                answer = await client.get(f"http://{following}.test/", headers=carried)
                body = f"{own} {answer.text}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    return asgi.Middleware(app) if with_sdk else app


@contextlib.contextmanager
def http_chain(outbound: str, *, with_sdk: bool = True) -> Iterator[dict[str, dict[str, str]]]:
    """service -> version -> address."""
    with contextlib.ExitStack() as stack:
        yield {
            name: {
                version: stack.enter_context(servers.asgi(http_service(name, version, outbound, with_sdk=with_sdk)))
                for version in versions
            }
            for name, versions in VERSIONS.items()
        }


def grpc_service(name: str, version: str, outbound: str) -> Callable[[], Awaitable[tuple[str, Any]]]:
    own = f"{name}{version[1:]}".encode()
    following = NEXT[name]

    async def serve() -> tuple[str, Any]:
        channel = None
        if following is not None:
            options = [("grpc.default_authority", f"{following}.test")]
            channel = grpc.aio.insecure_channel(
                f"unix:{outbound}", options=options, interceptors=grpc_aio.client_interceptors()
            )

        async def tell(request: bytes, context: Any) -> bytes:
            if channel is None:
                return own
            return own + b" " + await channel.unary_unary("/test.Chain/Tell")(b"", timeout=servers.PATIENCE)

        server = grpc.aio.server(interceptors=[grpc_aio.ServerInterceptor()], options=[("grpc.so_reuseport", 0)])
        handlers = {"Tell": grpc.unary_unary_rpc_method_handler(tell)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Chain", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

        async def close() -> None:
            await server.stop(None)
            if channel is not None:
                await channel.close()

        return f"127.0.0.1:{port}", close

    return serve


@contextlib.contextmanager
def grpc_chain(outbound: str) -> Iterator[dict[str, dict[str, str]]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: {
                version: stack.enter_context(servers.on_a_loop(grpc_service(name, version, outbound)))
                for version in versions
            }
            for name, versions in VERSIONS.items()
        }


def services(found: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Of a document. Testers are on v2 of `a`; everybody else on v1, of `c` by a split of its own."""
    made: dict[str, Any] = {
        name: {
            "hosts": [f"{name}.test"],
            "stable": "v1",
            "instances": [{"address": address, "version": version} for version, address in members.items()],
        }
        for name, members in found.items()
    }
    made["a"]["rules"] = [{"name": "testers", "match": {"headers": {"user-group": "beta"}}, "to": "v2"}]
    return made
