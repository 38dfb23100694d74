"""Where a rule sends requests, and a mirror copies: a version, or a subset of the instances."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from graylb.model import values
from graylb.model.base import Part
from graylb.model.values import fault


class Target(Part):
    """The instances that a rule sends to; all parts that are given must agree."""

    version: values.Version | None = Field(default=None, description="Instances of this version.")
    semver: values.SemverRange | None = Field(
        default=None, description="Instances whose version is a SemVer within the range, e.g. `>=2,<3`."
    )
    metadata: dict[values.FilledKey, values.Text] | None = Field(
        default=None, description="Instances whose metadata has all of these values."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.version or self.semver or self.metadata):
            raise fault("version, semver or metadata")
        return self


def version_target(value: Any) -> Any:
    return value if isinstance(value, dict | Target) else {"version": value}


To = Annotated[Target, BeforeValidator(version_target, json_schema_input_type=str | Target)]
