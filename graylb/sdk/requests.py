"""Calls by requests: `session = instrument(requests.Session())`."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from graylb.sdk import context as sdk
from graylb.sdk.trail import TRAIL


class _Adapter(BaseAdapter):
    """What a session sends by, redirects too: another adapter, with the context put onto each request."""

    def __init__(self, inner: BaseAdapter) -> None:
        super().__init__()
        self.inner = inner

    def send(self, request: requests.PreparedRequest, *rest: Any, **options: Any) -> requests.Response:
        carried = {name: value for name, value in request.headers.items() if isinstance(value, str)}
        sdk.inject(carried)
        request.headers.update(carried)
        response = self.inner.send(request, *rest, **options)
        trail = sdk.current().trail
        if trail is not None:
            url = urlsplit(str(request.url))
            trail.add(f"{url.netloc}{url.path}", response.headers.get(TRAIL))
        return response

    def close(self) -> None:
        self.inner.close()


def instrument(session: requests.Session) -> requests.Session:
    """The session, whose requests carry the current context from now on. Mount adapters of your own before."""
    for prefix, adapter in list(session.adapters.items()):
        if not isinstance(adapter, _Adapter):
            session.mount(prefix, _Adapter(adapter))
    return session
