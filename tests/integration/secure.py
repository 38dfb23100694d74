"""Engines over TLS: certificates of listeners, how instances are called."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from graylb import _tls
from graylb.model.snapshot import Connections, Origination, Pem
from tests.certificates import Authority, Pair
from tests.integration import engines
from tests.integration.engines import Rig

BIG = bytes(range(256)) * 16384  # 4 MiB


def entry(pair: Pair, *names: str, **more: Any) -> dict[str, Any]:
    return {"names": names, "cert": pair.cert, "key": pair.key, **more}


def certificates(*entries: dict[str, Any], protocols: tuple[str, ...] = ("http/1.1",)) -> _tls.Certificates:
    return _tls.Certificates(entries, protocols)


def run(test: Callable[[Rig], Awaitable[None]], tls: _tls.Certificates, **options: Any) -> None:
    """The test, with a rig that listens over TLS."""

    async def with_tls(rig: Rig) -> None:
        rig.listen(tls=tls)
        await test(rig)

    engines.run_bare(with_tls, **options)


def originating(authority: Authority, name: str | None = "up.test", **more: Any) -> Connections:
    return Connections(tls=Origination(ca=Pem.of("ca.pem", authority.pem.decode()), server_name=name, **more))


def know(rig: Rig, *authorities: Authority | Pair) -> None:
    """What the supervisor sends before a table that names it."""
    texts = [
        text for each in authorities for text in ([each.pem] if isinstance(each, Authority) else [each.cert, each.key])
    ]
    rig.engine.certify([], {hashlib.sha256(text).hexdigest(): text for text in texts})
