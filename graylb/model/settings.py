"""The parts of a document that are about the proxy itself: listeners, administration, forwarding, limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from graylb.model import values
from graylb.model.base import Part

_ROLES = ("edge", "inbound", "outbound")
_TELLING = ("append", "replace", "off")

RoleName = Annotated[
    Literal["edge", "inbound", "outbound"],
    PlainValidator(values.choice(*_ROLES)),
    WithJsonSchema({"enum": list(_ROLES)}),
]
Telling = Annotated[
    Literal["append", "replace", "off"],
    PlainValidator(values.choice(*_TELLING)),
    WithJsonSchema({"enum": list(_TELLING)}),
]


class ListenerPart(Part):
    """An address that clients connect to."""

    address: values.ListenAddress = Field(description="IP address and port; port 0 lets the system choose.")
    role: RoleName = Field(
        default="edge", description="`edge` faces clients; `inbound` and `outbound` are the two sides of a sidecar."
    )


class AdminPart(Part):
    """The administration interface."""

    address: values.ListenAddress = Field(description="IP address and port; port 0 lets the system choose.")


class ForwardingPart(Part):
    """What instances are told about the client."""

    x_forwarded: Telling = Field(
        default="append",
        description="`X-Forwarded-For`, `-Proto` and `-Host`: `append` trusts what arrived and adds to it, `replace` "
        "starts anew, `off` leaves them alone.",
    )
    forwarded: Telling = Field(default="off", description="`Forwarded` of RFC 7239, in the same ways.")
    via: values.Bool = Field(default=False, description="`Via` on requests and responses.")


_HeadSize = Annotated[int, PlainValidator(values.size(1024, 2**20)), WithJsonSchema({"type": ["integer", "string"]})]
_UriSize = Annotated[int, PlainValidator(values.size(256, 2**20)), WithJsonSchema({"type": ["integer", "string"]})]
_Headers = Annotated[
    int, PlainValidator(values.integer(1, 1000)), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})
]
_Idle = Annotated[
    int, PlainValidator(values.integer(0, 65536)), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 65536})
]


class LimitsPart(Part):
    """Bounds of a connection. Sizes in bytes or as `64KiB`; times in seconds or as `250ms`, `5s`, `2m`."""

    head_bytes: _HeadSize = Field(default=65536, description="Request line and header fields together.")
    headers: _Headers = Field(default=100, description="Header fields of a request.")
    uri_bytes: _UriSize = Field(default=16384, description="The request target.")
    header_timeout: values.Duration = Field(default=10.0, description="From a request's first byte to its head's end.")
    idle_timeout: values.Duration = Field(default=75.0, description="A client connection between requests.")
    body_timeout: values.Duration = Field(default=60.0, description="Without a byte of a body under way.")
    half_close_grace: values.Duration = Field(
        default=1.0, description="For the answer to begin, after a client has shut its side."
    )
    upstream_idle_timeout: values.Duration = Field(default=60.0, description="An unused connection to an instance.")
    upstream_idle_connections: _Idle = Field(
        default=1024, description="Unused connections kept for an instance, in each worker."
    )
