"""Carries the mark of a request through a Python service: what came in with it goes out with the calls it makes.

Importing this loads nothing but the standard library; what belongs to a framework stands in a module of its own
(`graylb.sdk.asgi`, `.wsgi`, `.grpc`, `.grpc_aio`, `.httpx`, `.requests`, `.aiohttp`, `.celery`, `.threads`).
docs/sdk.md is the guide.
"""

from graylb.sdk.context import (
    Context,
    Settings,
    attach,
    configure,
    current,
    detach,
    extract,
    inject,
    settings,
    use,
)

__all__ = [
    "Context",
    "Settings",
    "attach",
    "configure",
    "current",
    "detach",
    "extract",
    "inject",
    "settings",
    "use",
]
