"""One watch: the changes of a key or prefix from a revision on, for as long as the stream lasts.

There is no resuming here. A watch ends with an error that says what to do next: `Unavailable` (watch again from after
the last change), `Compacted` and `Diverged` (list again).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from graylb.control.etcd import errors, values
from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import Diverged, Unavailable
from graylb.control.etcd.messages import kv, rpc
from graylb.control.etcd.pieces import in_pieces
from graylb.control.etcd.values import KeyValue

_DELETE: Final = kv.Event.DELETE


@dataclass(frozen=True, slots=True)
class Change:
    """One put or, with `now` None, one deletion, also by the end of a lease. revision: the one it made."""

    key: str
    revision: int
    now: KeyValue | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole revisions, in their order. Empty: etcd only says that the watch stands; at first, and now and then."""

    changes: tuple[Change, ...]


async def watch(
    client: Client, key: str, *, prefix: bool = False, start: int, cluster_id: int = 0
) -> AsyncGenerator[Batch, None]:
    """From revision `start` on; the first batch is empty and says that the watch was created.

    cluster_id: of the store that was listed before, 0 for any. Close the iterator (`aclosing`) to end the watch.
    Raises Diverged for another cluster or one whose history ends before start - 1: such a watch would never fire.
    """
    request = rpc.WatchRequest(
        create_request=rpc.WatchCreateRequest(
            **values.span(key, prefix=prefix), start_revision=start, progress_notify=True, fragment=True
        )
    )
    async with client.stream() as (link, metadata):
        call = link.watch.Watch(metadata=metadata)
        try:
            await _create(client, call, request, link.endpoint)
            async with aclosing(_responses(call, request, link.endpoint, client.options.timeout)) as responses:
                async for response in responses:
                    _check(response, start, cluster_id, link.endpoint)
                    yield Batch(tuple(await in_pieces(_change, response.events)))
        finally:
            call.cancel()


def _check(response: Any, start: int, cluster_id: int, endpoint: str) -> None:
    cluster, revision = response.header.cluster_id, response.header.revision
    if cluster_id and cluster != cluster_id:
        raise Diverged(f"etcd at {endpoint} is cluster {cluster:x}, no longer {cluster_id:x}")
    if response.created and revision + 1 < start:
        raise Diverged(f"etcd at {endpoint} is at revision {revision}, expected {start - 1} or later")


async def _create(client: Client, call: Any, request: Any, endpoint: str) -> None:
    """Raises EtcdError."""
    try:
        async with asyncio.timeout(client.options.timeout):
            await call.write(request)
    except TimeoutError as error:
        raise Unavailable(f"etcd at {endpoint}: no watch within {client.options.timeout:g} s") from error
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        # etcd ended the stream before it was asked anything, and gRPC forgets why; a plain question gets the reason
        await client.get(values.decode(request.create_request.key))
        raise Unavailable(f"etcd at {endpoint} refused the watch") from error


async def _responses(call: Any, request: Any, endpoint: str, patience: float) -> AsyncGenerator[Any, None]:
    """Responses with the events of fragments joined, the one that creates the watch first. Raises EtcdError."""
    try:
        async with asyncio.timeout(patience):
            created = await _read(call, endpoint)
    except TimeoutError as error:
        raise Unavailable(f"etcd at {endpoint}: no watch within {patience:g} s") from error
    yield created
    whole = None
    while True:
        response = await _read(call, endpoint)
        if whole is None:
            whole = response
        else:
            whole.events.extend(response.events)
        if not response.fragment:
            yield whole
            whole = None


async def _read(call: Any, endpoint: str) -> Any:
    response = await call.read()
    if response is grpc.aio.EOF:
        raise Unavailable(f"etcd at {endpoint} ended the watch")
    if response.canceled:
        raise errors.of_cancelled_watch(response, endpoint)
    return response


def _change(event: Any) -> Change:
    now = None if event.type == _DELETE else values.key_value(event.kv)
    return Change(values.decode(event.kv.key), event.kv.mod_revision, now)
