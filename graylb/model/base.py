"""What all parts of a document share."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from graylb.model.values import fault


class Part(BaseModel):
    """A mapping of the document: unknown keys are errors, and what was validated stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """The keys that were written, by their names in the document."""
        given = self.model_fields_set
        return {written: getattr(self, name) for name, written in _names(type(self)) if name in given}

    def filled(self, defaults: Self) -> Self:
        """With the settings of `defaults` that were not written here."""
        missing = defaults.model_fields_set - self.model_fields_set
        return self.model_copy(update={name: getattr(defaults, name) for name in missing})


@functools.cache
def _names(part: type[Part]) -> tuple[tuple[str, str], ...]:
    """(name, as it is written) of each field; asking pydantic takes longer, and there may be thousands of parts."""
    return tuple((name, field.alias or name) for name, field in part.model_fields.items())


class OneKey(Part):
    """A mapping of exactly one of the known keys."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    noun: ClassVar[str] = "key"

    @model_validator(mode="after")
    def _exactly_one(self) -> OneKey:
        if len(self.model_fields_set) != 1:
            known = ", ".join(field.alias or name for name, field in type(self).model_fields.items())
            keys = ", ".join(self.given())
            raise fault(f"exactly one of {known}", f"got {'the keys ' + keys if keys else 'no ' + self.noun}")
        return self
