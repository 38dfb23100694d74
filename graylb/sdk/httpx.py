"""Calls by httpx: `client = instrument(httpx.AsyncClient())`, or `httpx.Client()`."""

from __future__ import annotations

from typing import TypeVar

import httpx

from graylb.sdk import context as sdk
from graylb.sdk.trail import TRAIL

Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)


def instrument(client: Client) -> Client:
    """The client, whose requests carry the current context from now on. It is done once, however often it is called."""
    is_async = isinstance(client, httpx.AsyncClient)
    request, response = (_async_request, _async_response) if is_async else (_request, _response)
    hooks = client.event_hooks
    if request not in hooks["request"]:
        hooks["request"].append(request)
        hooks["response"].append(response)
        client.event_hooks = hooks
    return client


def _request(request: httpx.Request) -> None:
    sdk.inject(request.headers)


def _response(response: httpx.Response) -> None:
    trail = sdk.current().trail
    if trail is not None:
        trail.add(f"{response.request.url.netloc.decode()}{response.request.url.path}", response.headers.get(TRAIL))


async def _async_request(request: httpx.Request) -> None:
    _request(request)


async def _async_response(response: httpx.Response) -> None:
    _response(response)
