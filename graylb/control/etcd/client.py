"""etcd's requests, asked of one endpoint after the other, with errors of ours and a token that is renewed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio

from graylb.control.etcd import errors, values
from graylb.control.etcd.errors import Compacted, EtcdError, LeaseLost, Refused, TooLarge, Unauthorised, Unavailable
from graylb.control.etcd.links import Link, Links, Options
from graylb.control.etcd.messages import rpc
from graylb.control.etcd.pieces import in_pieces
from graylb.control.etcd.values import Compare, Delete, KeyValue, Listing, Operation, Put, TxnResult

PAGE: Final = 500
"""Keys in one answer of a listing."""
LISTINGS: Final = 3
"""How often a listing is begun anew when its revision was compacted away meanwhile."""

Metadata = tuple[tuple[str, str], ...]
Method = Callable[[Link], Any]


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What one member says of itself. leader: its id, 0 when it knows none. size: bytes of the store's file.

    alarms: what etcd complains about, such as NOSPACE.
    """

    endpoint: str
    version: str
    cluster_id: int
    member_id: int
    leader: int
    term: int
    revision: int
    size: int
    alarms: tuple[str, ...]


class Client:
    """One client for a process and an event loop; use it as an async context manager, or close it.

    Every method raises `Unavailable` and `Unauthorised`, and `Refused` for what etcd will never do. Reads are tried
    once at each endpoint; writes only where the one before cannot have carried them out.
    """

    def __init__(self, options: Options, *, chance: random.Random | None = None) -> None:
        self.options = options
        self.links = Links(options, chance or random.Random())
        self._token: str | None = None
        self._token_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is under way."""
        await self.links.close()

    # -- keys ----------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, revision: int = 0, serializable: bool = False) -> KeyValue | None:
        """The key as it is, or as it was at `revision` (raises Compacted). serializable: of a member without quorum."""
        request = rpc.RangeRequest(key=values.encode(key), revision=revision, serializable=serializable)
        answer = await self._call(lambda link: link.kv.Range, request, repeat=True, leader=not serializable)
        return values.key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, revision: int = 0, serializable: bool = False) -> Listing:
        """All keys that begin with `prefix`, as of one revision: now, or `revision` (raises Compacted).

        serializable: any member answers, also one without quorum; what it says may be old.
        """
        for last in (*[False] * (LISTINGS - 1), True):
            try:
                return await self._list(prefix, revision, serializable)
            except Compacted:
                if last or revision:
                    raise
        raise AssertionError

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """The revision it got. Raises LeaseLost."""
        answer = await self._call(lambda link: link.kv.Put, Put(key, value, lease).message())
        return int(answer.header.revision)

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """How many keys there were."""
        answer = await self._call(lambda link: link.kv.DeleteRange, Delete(key, prefix).message())
        return int(answer.deleted)

    async def txn(
        self, compare: Iterable[Compare], success: Iterable[Operation], failure: Iterable[Operation] = ()
    ) -> TxnResult:
        """All of `success` when every comparison holds, else all of `failure`; up to 128 each, a key put once.

        Raises LeaseLost for a put under a lease that is gone.
        """
        request = rpc.TxnRequest(
            compare=await in_pieces(Compare.message, compare),
            success=await in_pieces(values.operation, success),
            failure=await in_pieces(values.operation, failure),
        )
        answer = await self._call(lambda link: link.kv.Txn, request)
        results = tuple(await in_pieces(values.result, answer.responses))
        return TxnResult(answer.succeeded, answer.header.revision, results)

    # -- leases --------------------------------------------------------------------------------------------------

    async def grant(self, ttl: int) -> tuple[int, int]:
        """(id, seconds) of a new lease; etcd may give more seconds than asked for."""
        answer = await self._call(lambda link: link.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl))
        return answer.ID, answer.TTL

    async def keep_alive(self, lease: int, *, seconds: float | None = None) -> int:
        """Its full time again, in seconds. Raises LeaseLost. seconds: how long one endpoint may take."""
        request = rpc.LeaseKeepAliveRequest(ID=lease)
        answer = await self._call(_KeepAlive, request, repeat=True, seconds=seconds)
        if answer.TTL <= 0:
            raise LeaseLost(f"etcd: lease {lease:x} has expired")
        return int(answer.TTL)

    async def revoke(self, lease: int) -> None:
        """Ends it with all keys under it. Raises LeaseLost when it has gone already."""
        await self._call(lambda link: link.lease.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease), repeat=True)

    # -- the rest ------------------------------------------------------------------------------------------------

    async def status(self) -> MemberStatus:
        """Of the member that this client talks to now."""
        async with self.links.use() as link:
            endpoint = link.endpoint
            answer = await self._ask(link, link.maintenance.Status, rpc.StatusRequest(), leader=False)
        return MemberStatus(
            endpoint=endpoint,
            version=answer.version,
            cluster_id=answer.header.cluster_id,
            member_id=answer.header.member_id,
            leader=answer.leader,
            term=answer.raftTerm,
            revision=answer.header.revision,
            size=answer.dbSize,
            alarms=tuple(answer.errors),
        )

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[tuple[Link, Metadata]]:
        """A link and the metadata for a stream over it; failures of the link or the token are noted, and mapped."""
        async with self.links.use() as link:
            try:
                yield link, await self._metadata(link, leader=True)
            except grpc.aio.AioRpcError as error:
                problem = errors.of_rpc(error, link.endpoint)
                self._note(link, problem)
                raise problem from error
            except EtcdError as error:
                self._note(link, error)
                raise

    async def _call(
        self, method: Method, request: Any, *, repeat: bool = False, leader: bool = True, seconds: float | None = None
    ) -> Any:
        """repeat: doing it twice is doing it once. leader: a member that knows no leader says so instead of waiting."""
        left = len(self.options.endpoints)
        renewed = False
        while True:
            async with self.links.use() as link:
                try:
                    return await self._ask(link, method(link), request, leader, seconds=seconds)
                except Unavailable as error:
                    left -= 1
                    if not left or not (repeat or not error.maybe_applied):
                        raise
                except Unauthorised as error:
                    if renewed or not error.stale_token or not self.options.user:
                        raise
                    renewed = True

    async def _ask(
        self,
        link: Link,
        method: Any,
        request: Any,
        leader: bool,
        *,
        token: bool = True,
        seconds: float | None = None,
    ) -> Any:
        try:
            metadata = await self._metadata(link, leader, token=token)
            return await method(request, timeout=seconds or self.options.timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            problem = errors.of_rpc(error, link.endpoint)
            self._note(link, problem)
            raise problem from error

    def _note(self, link: Link, problem: EtcdError) -> None:
        if isinstance(problem, Unavailable):
            self.links.drop(link)
        elif isinstance(problem, Unauthorised) and problem.stale_token:
            self._token = None

    async def _metadata(self, link: Link, leader: bool, *, token: bool = True) -> Metadata:
        metadata: Metadata = (("hasleader", "true"),) if leader else ()
        if token and self.options.user:
            async with self._token_lock:
                if self._token is None:
                    self._token = await self._authenticate(link)
            if self._token:
                metadata = (*metadata, ("token", self._token))
        return metadata

    async def _authenticate(self, link: Link) -> str:
        """A token, as plain metadata: gRPC gives call credentials to TLS connections only. Empty: etcd wants none."""
        request = rpc.AuthenticateRequest(name=self.options.user, password=self.options.password)
        try:
            answer = await self._ask(link, link.auth.Authenticate, request, leader=True, token=False)
        except (Refused, Unauthorised) as error:
            if "authentication is not enabled" in str(error):
                return ""
            raise
        return str(answer.token)

    async def _list(self, prefix: str, revision: int, serializable: bool) -> Listing:
        start, cluster, page = values.span(prefix, prefix=True), 0, PAGE
        items: dict[str, KeyValue] = {}
        while True:
            request = rpc.RangeRequest(**start, limit=page, revision=revision, serializable=serializable)
            try:
                answer = await self._call(lambda link: link.kv.Range, request, repeat=True, leader=not serializable)
            except TooLarge:
                if page == 1:
                    raise
                page = max(1, page // 8)
                continue
            if cluster and answer.header.cluster_id != cluster:
                raise Unavailable("etcd: the endpoints belong to different clusters")
            revision, cluster = revision or answer.header.revision, answer.header.cluster_id
            items.update((each.key, each) for each in map(values.key_value, answer.kvs))
            if not answer.more:
                return Listing(revision, cluster, items)
            start["key"] = answer.kvs[-1].key + b"\0"


class _KeepAlive:
    """The stream of keep-alives used as a call: one question, one answer."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def __call__(self, request: Any, *, timeout: float, metadata: Metadata) -> Any:  # noqa: ASYNC109 as gRPC has it
        call = self._link.lease.LeaseKeepAlive([request], timeout=timeout, metadata=metadata)
        try:
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise Unavailable(f"etcd at {self._link.endpoint}: no answer about the lease", maybe_applied=True)
            return answer
        finally:
            call.cancel()
