"""The `tracing` part of a document."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from graylb.model import snapshot_observe, values
from graylb.model.access_log import Percent
from graylb.model.base import Part
from graylb.model.values import deeper, fault

_ENDPOINT = re.compile(r"(?:https?://)?[^\s/?#@]+:[0-9]{1,5}(?:/[!-~]*)?")


def _endpoint(value: Any) -> str:
    found = values.filled(value)
    if not _ENDPOINT.fullmatch(found):
        raise fault("host:port, or http:// or https:// before it")
    return found


_Endpoint = Annotated[str, PlainValidator(_endpoint), WithJsonSchema({"type": "string"})]
_Protocol = Annotated[
    Literal["grpc", "http"], PlainValidator(values.choice("grpc", "http")), WithJsonSchema({"enum": ["grpc", "http"]})
]
_Queue = Annotated[
    int,
    PlainValidator(values.integer(16, 1_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 16, "maximum": 1_000_000}),
]


class OtlpPart(Part):
    """Where spans go: an OpenTelemetry collector, or whatever else takes OTLP."""

    endpoint: _Endpoint = Field(
        description="`host:port`, with `https://` before it for TLS; over HTTP, `/v1/traces` is added where no path is."
    )
    protocol: _Protocol = Field(default="grpc", description="`grpc`, as a rule port 4317, or `http`, port 4318.")
    headers: dict[values.HeaderKey, values.Text] = Field(
        default={}, description="Sent along, as a key that the receiver asks for."
    )
    ca: values.Filled | None = Field(
        default=None, description="PEM file of those who may sign the receiver's certificate."
    )
    cert: values.Filled | None = Field(default=None, description="PEM file of our certificate. Needs `key`.")
    key: values.Filled | None = Field(default=None, description="PEM file of our certificate's key.")
    timeout: values.Duration = Field(default=10.0, description="For one batch.")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise fault("cert and key together, or neither")
        return self

    def build(self) -> snapshot_observe.OtlpExport:
        endpoint = self.endpoint
        if "://" not in endpoint and (self.ca is not None or self.protocol == "http"):
            endpoint = f"{'https' if self.ca is not None else 'http'}://{endpoint}"
        if self.protocol == "http" and "/" not in endpoint.partition("://")[2]:
            endpoint += "/v1/traces"
        return snapshot_observe.OtlpExport(
            endpoint=endpoint,
            protocol=self.protocol,
            headers=tuple(self.headers.items()),
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            timeout=self.timeout,
        )


class TracingPart(Part):
    """A span for each request, in the trace that `traceparent` names (W3C) or in a new one."""

    otlp: OtlpPart = Field(description="Where spans go.")
    sample: Percent = Field(default=1.0, description="Percent of the traces that begin here.")
    parent_based: values.Bool = Field(
        default=True,
        description="Of traces that begin elsewhere, what `traceparent` says counts; `false`: `sample` does.",
    )
    always_errors: values.Bool = Field(
        default=True, description="Requests that fail (5xx, cut short) are told in any case."
    )
    service_name: values.Filled = Field(default="graylb", description="The resource's `service.name`.")
    attributes: dict[values.FilledKey, values.Text] = Field(
        default={}, description="More of the resource, such as `deployment.environment.name`."
    )
    queue: _Queue = Field(default=2048, description="Spans that wait to be sent; any more are dropped and counted.")

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if "service.name" in self.attributes:
            with deeper("attributes"):
                raise fault("service_name for the service's name")
        return self

    def build(self) -> snapshot_observe.Tracing:
        return snapshot_observe.Tracing(
            otlp=self.otlp.build(),
            sample=self.sample,
            parent_based=self.parent_based,
            always_errors=self.always_errors,
            service_name=self.service_name,
            attributes=tuple(self.attributes.items()),
            queue=self.queue,
        )
