"""What goes into etcd and comes out of it, as plain values.

Keys are text here and bytes there: UTF-8, and whatever is none survives as surrogates (PEP 383), both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from graylb.control.etcd.messages import rpc


@dataclass(frozen=True, slots=True)
class KeyValue:
    """create_revision: of its latest creation; version: 1 at creation, one more with each put; lease: 0 for none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys of a prefix as they were at `revision`, in the order of their names."""

    revision: int
    cluster_id: int
    items: dict[str, KeyValue]


_OPERATORS: Final = {"==": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}
_TARGETS: Final = {
    "version": "VERSION",
    "create_revision": "CREATE",
    "mod_revision": "MOD",
    "value": "VALUE",
    "lease": "LEASE",
}


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. A key that is absent has version and revisions 0.

    prefix: of every key that begins so; it holds too where there is none, unless it is one of values.
    """

    key: str
    target: Literal["version", "create_revision", "mod_revision", "value", "lease"]
    operator: Literal["==", "!=", "<", ">"]
    value: int | bytes
    prefix: bool = False

    def message(self) -> Any:
        return rpc.Compare(
            **span(self.key, prefix=self.prefix),
            target=getattr(rpc.Compare, _TARGETS[self.target]),
            result=getattr(rpc.Compare, _OPERATORS[self.operator]),
            **{self.target: self.value},
        )


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, "create_revision", "==", 0)


def unchanged(key: str, mod_revision: int) -> Compare:
    """The key is as it was when it was read; 0: it does not exist, as then."""
    return Compare(key, "mod_revision", "==", mod_revision)


def none_since(prefix: str, revision: int) -> Compare:
    """No key that begins so was put after `revision`; deletions are not noticed."""
    return Compare(prefix, "mod_revision", "<", revision + 1, prefix=True)


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0

    def message(self) -> Any:
        return rpc.PutRequest(key=encode(self.key), value=self.value, lease=self.lease)


@dataclass(frozen=True, slots=True)
class Delete:
    """One key, or with `prefix` all that begin with it."""

    key: str
    prefix: bool = False

    def message(self) -> Any:
        return rpc.DeleteRangeRequest(**span(self.key, prefix=self.prefix))


@dataclass(frozen=True, slots=True)
class Get:
    """One key, or with `prefix` all that begin with it. limit: 0 for all. created: only those of that revision.

    keys_only: values are left out.
    """

    key: str
    prefix: bool = False
    limit: int = 0
    keys_only: bool = False
    created: int = 0

    def message(self) -> Any:
        return rpc.RangeRequest(
            **span(self.key, prefix=self.prefix),
            limit=self.limit,
            keys_only=self.keys_only,
            min_create_revision=self.created,
            max_create_revision=self.created,
        )


Operation: TypeAlias = Put | Delete | Get
Result: TypeAlias = tuple[KeyValue, ...] | int | None
"""Of a Get: what was found; of a Delete: how many keys went; of a Put: None."""

_FIELDS: Final[dict[type[Operation], str]] = {
    Put: "request_put",
    Delete: "request_delete_range",
    Get: "request_range",
}


@dataclass(frozen=True, slots=True)
class TxnResult:
    """succeeded: the comparisons held. revision: of the store afterwards, which what was put has as mod_revision.

    results: of each operation that was carried out, in their order.
    """

    succeeded: bool
    revision: int
    results: tuple[Result, ...]


def encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def decode(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def after(prefix: bytes) -> bytes:
    """The end of the range of keys that begin with `prefix`; a zero byte means: no end."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def span(key: str, *, prefix: bool) -> dict[str, bytes]:
    """`key` and `range_end` of etcd's requests. The empty prefix is every key."""
    start = encode(key)
    return {"key": start or b"\0", "range_end": after(start)} if prefix else {"key": start}


def key_value(message: Any) -> KeyValue:
    return KeyValue(
        decode(message.key),
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def operation(op: Operation) -> Any:
    return rpc.RequestOp(**{_FIELDS[type(op)]: op.message()})


def result(response: Any) -> Result:
    """Of one ResponseOp."""
    match response.WhichOneof("response"):
        case "response_range":
            return tuple(key_value(each) for each in response.response_range.kvs)
        case "response_delete_range":
            return int(response.response_delete_range.deleted)
        case _:
            return None
