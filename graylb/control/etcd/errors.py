"""What can go wrong with etcd, in few kinds. gRPC's errors become these at one place and go no further.

Codes and texts are those of etcd's `api/v3rpc/rpctypes/error.go`, versions 3.4 and 3.5.
"""

from __future__ import annotations

import re
from typing import Any, Final

import grpc


class EtcdError(Exception):
    """Base of all errors here. The message says which endpoint and what it said."""


class Unavailable(EtcdError):
    """No answer, or none that a quorum stands behind; later it may work.

    maybe_applied: the request reached a member, so that a write may have happened (or may still happen).
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class Unauthorised(EtcdError):
    """Wrong user or password, or no permission for the key.

    stale_token: a fresh token may help, as after its expiry or a restart of etcd; the client sees to it by itself.
    """

    def __init__(self, message: str, *, stale_token: bool = False) -> None:
        super().__init__(message)
        self.stale_token = stale_token


class Compacted(EtcdError):
    """The history from the wanted revision on is no longer kept. revision: the oldest kept one, 0 when unknown."""

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class Diverged(EtcdError):
    """This is not the store that was read before: another cluster, or one with a shorter history."""


class LeaseLost(EtcdError):
    """The lease has expired or was revoked; keys under it are gone."""


class Refused(EtcdError):
    """etcd will not do this, now or later: a full store, too many operations, a malformed request."""


class TooLarge(Refused):
    """A request is larger than etcd takes, or an answer larger than the client does."""


_TOKENS: Final = ("invalid auth token", "user name is empty", "revision of auth store is old", "auth revision")
_CREDENTIALS: Final = ("authentication failed", "permission denied", "root user", "user name not found", "auth:")
_NOT_APPLIED: Final = ("no leader", "failed to connect", "not capable")
_LARGER: Final = re.compile(r"received message larger than max", re.IGNORECASE)


def of_rpc(error: Any, endpoint: str) -> EtcdError:
    """The error of ours for an AioRpcError of a call to `endpoint`."""
    code, said = error.code(), error.details() or ""
    message = f"etcd at {endpoint}: {said or code.name}"
    match code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return Unauthorised(message, stale_token=any(text in said for text in _TOKENS))
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.FAILED_PRECONDITION:
            if any(text in said for text in _TOKENS):
                return Unauthorised(message, stale_token=True)
            return Unauthorised(message) if any(text in said for text in _CREDENTIALS) else Refused(message)
        case grpc.StatusCode.OUT_OF_RANGE if "compacted" in said:
            return Compacted(message)
        case grpc.StatusCode.OUT_OF_RANGE if "future revision" in said:
            return Unavailable(f"etcd at {endpoint} lags: {said}")
        case grpc.StatusCode.NOT_FOUND if "lease" in said:
            return LeaseLost(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _LARGER.search(said):
            return TooLarge(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "too many requests" in said:
            return Unavailable(message)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(f"etcd at {endpoint}: no answer in time", maybe_applied=True)
        case (
            grpc.StatusCode.UNAVAILABLE
            | grpc.StatusCode.UNKNOWN
            | grpc.StatusCode.INTERNAL
            | grpc.StatusCode.ABORTED
            | grpc.StatusCode.CANCELLED
        ):
            return Unavailable(message, maybe_applied=not any(text in said for text in _NOT_APPLIED))
        case _:
            return Refused(message)


def of_cancelled_watch(response: Any, endpoint: str) -> EtcdError:
    """Why etcd ended a watch of its own accord. response: a WatchResponse with `canceled`."""
    said = response.cancel_reason or "no reason given"
    message = f"etcd at {endpoint} ended the watch: {said}"
    if response.compact_revision > 0:
        return Compacted(message, response.compact_revision)
    if any(text in said for text in (*_TOKENS, *_CREDENTIALS)):
        # version 3.4 says "permission denied" for an expired token too
        return Unauthorised(message, stale_token=True)
    return Unavailable(message)
