"""What names a caller: a source of the sticky key of a service, and of the keys of its rates."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from graylb.model import snapshot, values
from graylb.model.base import OneKey


class StickyPart(OneKey):
    """One source of the sticky key."""

    noun: ClassVar[str] = "source"

    header: values.HeaderName | None = Field(default=None, description="A request header.")
    cookie: values.TokenName | None = Field(default=None, description="A cookie.")
    query: values.Filled | None = Field(default=None, description="A query parameter, percent-decoded.")
    metadata: values.HeaderName | None = Field(default=None, description="gRPC metadata; only on gRPC requests.")
    client_ip: values.AlwaysTrue | None = Field(default=None, description="`true`: the client's address.")

    def build(self) -> snapshot.StickyKey:
        if self.client_ip is not None:
            return snapshot.StickyKey("client_ip")
        if self.header is not None:
            return snapshot.StickyKey("header", self.header)
        if self.cookie is not None:
            return snapshot.StickyKey("cookie", self.cookie)
        if self.query is not None:
            return snapshot.StickyKey("query", self.query)
        assert self.metadata is not None
        return snapshot.StickyKey("metadata", self.metadata)
