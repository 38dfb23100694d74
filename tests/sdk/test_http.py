"""Servers and clients of HTTP: what a request carries is what the calls made in it carry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from aiohttp import web

from graylb import sdk
from graylb.sdk import aiohttp as sdk_aiohttp
from graylb.sdk import asgi, wsgi
from graylb.sdk import httpx as sdk_httpx
from graylb.sdk import requests as sdk_requests
from tests.sdk import servers
from tests.sdk.servers import PARENT

ARRIVING = {"x-service-version": "v2", "traceparent": PARENT, "tracestate": "a=b", "baggage": "k=1"}
CARRIED = {
    "x-service-version": "v2",
    "traceparent": PARENT,
    "tracestate": "a=b",
    "baggage": "x-service-version=v2,k=1",
}


def carried(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    names = {"x-service-version", "traceparent", "tracestate", "baggage"}
    return {name.lower(): value for name, value in headers if name.lower() in names}


async def leaf(scope: Any, receive: Any, send: Any) -> None:
    """The last of a chain: tells what it was sent. /redirect sends on."""
    found = carried((name.decode(), value.decode()) for name, value in scope["headers"])
    at_home = scope["path"] != "/redirect"
    headers = [] if at_home else [(b"location", b"/")]
    await send({"type": "http.response.start", "status": 200 if at_home else 307, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})


@pytest.fixture(scope="module")
def end() -> Iterator[str]:
    with servers.asgi(asgi.Middleware(leaf)) as address:
        yield f"http://{address}"


def asgi_calling(url: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with sdk_httpx.instrument(httpx.AsyncClient(follow_redirects=True, verify=False)) as client:
            answer = await client.get(url)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": answer.content})

    return asgi.Middleware(app)


def test_asgi_and_httpx(end: str) -> None:
    client = sdk_httpx.instrument(httpx.AsyncClient())
    assert sdk_httpx.instrument(client) is client
    assert len(client.event_hooks["request"]) == 1
    with servers.asgi(asgi_calling(f"{end}/redirect")) as address:
        assert httpx.get(f"http://{address}/", headers=ARRIVING).json() == CARRIED
        assert httpx.get(f"http://{address}/").json() == {}  # nothing is left of the request before


def test_requests_at_once_do_not_mix(end: str) -> None:
    async def all_at_once(url: str) -> list[str]:
        async with httpx.AsyncClient() as plain:
            answers = [plain.get(url, headers={"x-service-version": f"v{n}"}) for n in range(50)]
            return [answer.json()["x-service-version"] for answer in await asyncio.gather(*answers)]

    with servers.asgi(asgi_calling(end)) as address:
        assert asyncio.run(all_at_once(f"http://{address}/")) == [f"v{n}" for n in range(50)]


@pytest.mark.parametrize("lazy", [False, True])
def test_wsgi_and_requests(end: str, lazy: bool) -> None:
    """lazy: the call is made while the body is sent, when the application has returned long ago."""
    session = sdk_requests.instrument(sdk_requests.instrument(requests.Session()))

    def body() -> Iterator[bytes]:
        yield session.get(f"{end}/redirect").content

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("x-own", "1")])
        return body() if lazy else list(body())

    with session, servers.wsgi(wsgi.Middleware(app)) as address:
        assert httpx.get(f"http://{address}/", headers=ARRIVING).json() == CARRIED
        assert httpx.get(f"http://{address}/").json() == {}
    assert sdk.current() == sdk.Context()


def test_wsgi_and_httpx_without_asyncio(end: str) -> None:
    with sdk_httpx.instrument(httpx.Client(follow_redirects=True)) as client:

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return [client.get(f"{end}/redirect").content]

        with servers.wsgi(wsgi.Middleware(app)) as address:
            assert httpx.get(f"http://{address}/", headers=ARRIVING).json() == CARRIED


def test_a_wsgi_body_is_closed_in_its_context(end: str) -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            closed.append(sdk.current().mark)

    made: Any = wsgi.Middleware(lambda environ, start_response: Body())({"HTTP_X_SERVICE_VERSION": "v2"}, print)
    assert list(made) == [b"x"]
    made.close()
    assert closed == ["v2"]


def aiohttp_app(url: str) -> web.Application:
    async def call(_: web.Request) -> web.StreamResponse:
        session = aiohttp.ClientSession(trace_configs=[sdk_aiohttp.trace_config()])
        async with session, session.get(url) as answer:
            return web.json_response(await answer.json(content_type=None))

    async def fail(_: web.Request) -> web.StreamResponse:
        raise web.HTTPConflict

    app = web.Application(middlewares=[sdk_aiohttp.middleware])
    app.router.add_get("/", call)
    app.router.add_get("/fail", fail)
    return app


def test_aiohttp(end: str) -> None:
    with servers.aiohttp_server(aiohttp_app(f"{end}/redirect")) as address:
        assert httpx.get(f"http://{address}/", headers=ARRIVING).json() == CARRIED
        assert httpx.get(f"http://{address}/").json() == {}


def test_a_probe_is_answered_with_the_trail_of_the_chain(end: str) -> None:
    """aiohttp -> requests by WSGI -> httpx by ASGI -> leaf, and a plain server besides."""
    name = sdk.settings().service
    probe = {"x-graylb-probe": "1", "x-service-version": "v2"}
    session = sdk_requests.instrument(requests.Session())
    with session, servers.asgi(leaf) as plain, servers.asgi(asgi_calling(end)) as third:

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            found = [session.get(f"http://{third}/").content]
            session.get(f"http://{plain}/p")
            start_response("200 OK", [])
            return found

        with (
            servers.wsgi(wsgi.Middleware(app)) as second,
            servers.aiohttp_server(aiohttp_app(f"http://{second}/")) as first,
        ):
            told = httpx.get(f"http://{first}/", headers=probe).headers["x-graylb-trail"]
            assert told == f"0;{name};v2,1;{name};v2,2;{name};v2,3;{name};v2,2;!{plain}/p;-"
            assert "x-graylb-trail" not in httpx.get(f"http://{first}/").headers
            answer = httpx.get(f"http://{first}/fail", headers=probe)
            assert (answer.status_code, answer.headers["x-graylb-trail"]) == (409, f"0;{name};v2")
            sdk.configure(answers_probes=False)
            try:
                assert "x-graylb-trail" not in httpx.get(f"http://{first}/", headers=probe).headers
            finally:
                sdk.configure(answers_probes=True)
